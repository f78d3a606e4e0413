//! Texts cut into chunks that an embedding pass holds whole.

use crate::{Embed, Encoded, Engine, Error, Result};
use gritlm_model::prompt::{self, embed_prefix};
use std::ops::Range;

/// How long chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Tokens of a chunk as it is embedded, at most: `<s>`, the tag and the title are counted. So it
    /// is also what a chunk's keys and values take.
    pub tokens: usize,
    /// Tokens at a chunk's end with which the next begins.
    pub overlap: usize,
}

/// Bytes of a title in an error.
const SHOWN: usize = 60;

/// The fewest tokens of a chunk: GritLM's tag takes seven, and a title a quarter.
pub const MIN_CHUNK: usize = 32;

impl Default for Chunking {
    /// 512 tokens, what GritLM's embeddings are cut at and were trained to; no overlap: it would add
    /// its share to the time of indexing and to the bytes of all caches, and chunks end where
    /// sentences do.
    fn default() -> Self {
        Self { tokens: 512, overlap: 0 }
    }
}

impl Chunking {
    /// Whether chunks of this length can be made for a model of so many positions.
    ///
    /// # Errors
    /// When they are too short, too long, or overlap by more than half.
    pub fn check(&self, positions: usize) -> Result<()> {
        if !(MIN_CHUNK..=positions).contains(&self.tokens) {
            return Err(Error::Option {
                option: "--chunk",
                expected: format!("{MIN_CHUNK} to {positions} tokens"),
                found: self.tokens.to_string(),
            });
        }
        if self.overlap > self.tokens / 4 {
            return Err(Error::Option {
                option: "--overlap",
                expected: format!("at most a quarter of --chunk, {}", self.tokens / 4),
                found: self.overlap.to_string(),
            });
        }
        Ok(())
    }
}

/// A part of a text, ready to be embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its bytes in the text.
    pub bytes: Range<usize>,
    /// Tokens of [`prompt::document`] of the title and it.
    pub encoded: Encoded,
}

impl Engine {
    /// The title as documents of this title have it in front of each chunk: at most a quarter of a
    /// chunk.
    ///
    /// # Errors
    /// When the tokenizer cannot take it, or chunks of so many tokens are longer than the model's
    /// positions and so is the title.
    pub fn chunk_title(&self, title: &str, how: Chunking) -> Result<String> {
        let title = self.tokenizer().beginning(title, how.tokens);
        self.check_bytes("title", title.len())?;
        let ends = self.ends(title)?;
        let fit = ends.partition_point(|end| end.tokens <= how.tokens / 4);
        Ok(ends[..fit].last().map_or("", |end| &title[..end.at]).trim_end().into())
    }

    /// Cuts a text into chunks, each of at most [`Chunking::tokens`] tokens as it is embedded after
    /// the title: nothing is cut off. Cuts are where tokens and characters end; where one is in a
    /// chunk's last quarter, after a paragraph, else after a sentence or line. Every byte of the text
    /// is in a chunk, and the same text gives the same chunks. None of an empty text.
    ///
    /// ```
    /// use gritlm::rag::Chunking;
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let text = "A sentence of some words. ".repeat(40);
    /// let cuts = engine.chunks("Title", &text, Chunking { tokens: 64, overlap: 0 })?;
    /// assert!(cuts.iter().all(|cut| cut.encoded.tokens.len() <= 64));
    /// assert!(cuts.iter().all(|cut| text[cut.bytes.clone()].ends_with("words. ")));
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the tokenizer cannot take the text, or the title fills a chunk (see
    /// [`Engine::chunk_title`]) or could not fit the model's positions.
    pub fn chunks(&self, title: &str, text: &str, how: Chunking) -> Result<Vec<Cut>> {
        self.check_bytes("title", title.len())?;
        let whole = Embed { max_length: usize::MAX, ..Embed::default() };
        // What stands before the text, and one for the space that may end a chunk.
        let before = self.tokenizer().encode(&format!("{}{title}", embed_prefix("")))?.len();
        let room = how.tokens.saturating_sub(before + 1);
        let no_room = || {
            let problem = format!("leaves no room for text in chunks of {} tokens", how.tokens);
            let shown = &title[..title.floor_char_boundary(SHOWN)];
            let more = if shown.len() < title.len() { "…" } else { "" };
            Error::Input { what: format!("title {shown:?}{more}"), problem }
        };
        if room == 0 {
            return Err(no_room());
        }
        let mut cuts: Vec<Cut> = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let ends = self.ends_of_first(&text[start..], room)?;
            let mut most = room;
            let (cut, end) = loop {
                let fit = ends.partition_point(|end| end.tokens <= most);
                if fit == 0 {
                    return Err(no_room());
                }
                let end = preferred(&text[start..], &ends[..fit], fit == ends.len());
                let bytes = start..start + end.at;
                let document = prompt::document(title, &text[bytes.clone()]);
                let encoded = self.encode_texts(&[document], &whole)?.remove(0);
                // Within the prompt the text may be a token or two longer than alone.
                match encoded.tokens.len().saturating_sub(how.tokens) {
                    0 => break (Cut { bytes, encoded }, end),
                    more => most = end.tokens.saturating_sub(more),
                }
            };
            match cuts.last() {
                // Nothing but what the last chunk has.
                Some(last) if cut.bytes.end <= last.bytes.end => {
                    start = last.bytes.end;
                    continue;
                }
                _ => cuts.push(cut),
            }
            if start + end.at == text.len() {
                break;
            }
            // At least one token further, whatever the overlap.
            let shared = |e: &&End| e.tokens + how.overlap >= end.tokens;
            start += ends.iter().find(shared).map_or(end.at, |e| e.at);
        }
        Ok(cuts)
    }

    /// Where tokens end at the beginning of a text: at least as many as asked for and one more, or
    /// all.
    fn ends_of_first(&self, text: &str, tokens: usize) -> Result<Vec<End>> {
        // Four bytes a token are usual; the last of a part may be a part of one.
        let mut length = 6 * tokens;
        loop {
            let part = &text[..text.floor_char_boundary(length)];
            let mut ends = self.ends(part)?;
            if part.len() == text.len() {
                return Ok(ends);
            }
            ends.pop();
            if ends.last().is_some_and(|end| end.tokens > tokens) {
                return Ok(ends);
            }
            length *= 2;
        }
    }

    /// Where tokens end and characters, too; a single space after one is counted to it, so that what
    /// comes next begins with a word.
    fn ends(&self, text: &str) -> Result<Vec<End>> {
        let bytes = text.as_bytes();
        let mut ends: Vec<End> = Vec::new();
        for (mut at, tokens) in self.tokenizer().ends(text)? {
            let next = bytes.get(at + 1).is_some_and(|b| !b.is_ascii_whitespace());
            at += usize::from(next && bytes[at] == b' ');
            match ends.last_mut() {
                Some(last) if last.at == at => last.tokens = tokens,
                _ => ends.push(End { at, tokens }),
            }
        }
        Ok(ends)
    }
}

/// A place where a text can be cut.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Bytes before it.
    at: usize,
    /// Tokens before it.
    tokens: usize,
}

/// Where to cut, of the places that fit: the last, unless one in the last quarter ends a paragraph,
/// or else a sentence or line.
fn preferred(text: &str, ends: &[End], is_all: bool) -> End {
    let last = ends[ends.len() - 1];
    if is_all {
        return last;
    }
    let quarter = ends.iter().rev().take_while(|end| 4 * end.tokens >= 3 * last.tokens);
    let find = |is_end: fn(&str) -> bool| {
        quarter.clone().find(|end| is_end(text[..end.at].trim_end_matches(' ')))
    };
    find(ends_paragraph).or_else(|| find(ends_sentence)).copied().unwrap_or(last)
}

fn ends_paragraph(text: &str) -> bool {
    text.ends_with("\n\n")
}

fn ends_sentence(text: &str) -> bool {
    let quotes = ['"', '\'', ')', ']', '”', '’', '»'];
    text.ends_with('\n')
        || text.trim_end_matches(quotes).ends_with(['.', '!', '?', '…', '。', '！', '？'])
}
