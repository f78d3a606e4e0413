//! Splits texts into chunks that one embedding pass holds in full.

use crate::{Error, Result};
use gritlm::{Embed, Encoded, Engine};
use gritlm_model::prompt::{self, embed_prefix};
use std::ops::Range;

/// The length of chunks and their overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// The most tokens of a chunk as it is embedded, including `<s>`, the embedding tag and the
    /// title. A chunk's keys and values cover the same tokens.
    pub tokens: usize,
    /// Tokens at the end of a chunk that the next chunk repeats.
    pub overlap: usize,
}

/// The most bytes of a title that an error message shows.
const SHOWN: usize = 60;

/// The smallest allowed [`Chunking::tokens`]: GritLM's embedding tag takes seven tokens, and the
/// title up to a quarter of the chunk.
pub const MIN_CHUNK: usize = 32;

impl Default for Chunking {
    /// Returns 512 tokens, the length at which GritLM's embeddings are truncated and for which
    /// they were trained. There is no overlap: it would increase the indexing time and the size
    /// of all caches by its share, and chunks end at sentences anyway.
    fn default() -> Self {
        Self { tokens: 512, overlap: 0 }
    }
}

impl Chunking {
    /// Checks that a model with `positions` positions can embed chunks of this length.
    ///
    /// # Errors
    /// When chunks are too short, too long, or overlap by more than a quarter.
    pub fn check(&self, positions: usize) -> Result<()> {
        if !(MIN_CHUNK..=positions).contains(&self.tokens) {
            return Err(gritlm::Error::Option {
                option: "chunk",
                expected: format!("{MIN_CHUNK} to {positions} tokens"),
                found: self.tokens.to_string(),
            }
            .into());
        }
        if self.overlap > self.tokens / 4 {
            return Err(gritlm::Error::Option {
                option: "overlap",
                expected: format!("at most a quarter of `chunk`, {}", self.tokens / 4),
                found: self.overlap.to_string(),
            }
            .into());
        }
        Ok(())
    }
}

/// A part of a text, encoded for embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Byte range of the chunk in the text.
    pub bytes: Range<usize>,
    /// Encoded [`prompt::document`] of the title and the chunk's text.
    pub encoded: Encoded,
}

impl Chunking {
    /// Returns the title as it precedes the text in each chunk, truncated to a quarter of a
    /// chunk.
    ///
    /// # Errors
    /// When the tokenizer cannot take the title, or it is longer than the model's positions
    /// (possible only if chunks of `tokens` are longer, too).
    pub fn title(self, engine: &Engine, title: &str) -> Result<String> {
        let title = engine.tokenizer().beginning(title, self.tokens);
        engine.check_bytes("title", title.len())?;
        let ends = ends(engine, title)?;
        let fit = ends.partition_point(|end| end.tokens <= self.tokens / 4);
        Ok(ends[..fit].last().map_or("", |end| &title[..end.at]).trim_end().into())
    }

    /// Splits a text into chunks, each of at most [`Chunking::tokens`] tokens as it is embedded
    /// after the title, so that embedding truncates nothing. A chunk ends where both a token and
    /// a character end: after a paragraph if one ends in the last quarter of the chunk, else
    /// after a sentence or line there, else at the last place that fits. Every byte of the text
    /// is in a chunk, and the same text always gives the same chunks. An empty text has none.
    ///
    /// ```
    /// use gritlm_rag::Chunking;
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let text = "A sentence of some words. ".repeat(40);
    /// let cuts = Chunking { tokens: 64, overlap: 0 }.cut(&engine, "Title", &text)?;
    /// assert!(cuts.iter().all(|cut| cut.encoded.tokens.len() <= 64));
    /// assert!(cuts.iter().all(|cut| text[cut.bytes.clone()].ends_with("words. ")));
    /// # Ok::<(), gritlm_rag::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the tokenizer cannot take the text, or the title fills a chunk (see
    /// [`Chunking::title`]) or could not fit the model's positions.
    pub fn cut(self, engine: &Engine, title: &str, text: &str) -> Result<Vec<Cut>> {
        engine.check_bytes("title", title.len())?;
        let whole = Embed::default().max_length(usize::MAX);
        // Reserves the tokens before the text, and one for the space that may end a chunk.
        let before = engine.tokenizer().encode(&format!("{}{title}", embed_prefix("")))?.len();
        let room = self.tokens.saturating_sub(before + 1);
        let no_room = || {
            let problem = format!("leaves no room for text in chunks of {} tokens", self.tokens);
            let shown = &title[..title.floor_char_boundary(SHOWN)];
            let more = if shown.len() < title.len() { "…" } else { "" };
            Error::from(gritlm::Error::Input { what: format!("title {shown:?}{more}"), problem })
        };
        if room == 0 {
            return Err(no_room());
        }
        let mut cuts: Vec<Cut> = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let ends = ends_of_first(engine, &text[start..], room)?;
            let mut most = room;
            let (cut, end) = loop {
                let fit = ends.partition_point(|end| end.tokens <= most);
                if fit == 0 {
                    return Err(no_room());
                }
                let end = preferred(&text[start..], &ends[..fit], fit == ends.len());
                let bytes = start..start + end.at;
                let document = prompt::document(title, &text[bytes.clone()]);
                let encoded = engine.encode_texts(&[document], &whole)?.remove(0);
                // In the prompt the text may be a token or two longer than on its own.
                match encoded.tokens.len().saturating_sub(self.tokens) {
                    0 => break (Cut { bytes, encoded }, end),
                    more => most = end.tokens.saturating_sub(more),
                }
            };
            match cuts.last() {
                // The chunk would repeat only what the last one contains.
                Some(last) if cut.bytes.end <= last.bytes.end => {
                    start = last.bytes.end;
                    continue;
                }
                _ => cuts.push(cut),
            }
            if start + end.at == text.len() {
                break;
            }
            // The next chunk starts at least one token further, whatever the overlap.
            let shared = |e: &&End| e.tokens + self.overlap >= end.tokens;
            start += ends.iter().find(shared).map_or(end.at, |e| e.at);
        }
        Ok(cuts)
    }
}

/// Returns where tokens end at the beginning of a text: more than `tokens` of them, or all if
/// the text is shorter.
fn ends_of_first(engine: &Engine, text: &str, tokens: usize) -> Result<Vec<End>> {
    // A token usually has about four bytes. The last token is dropped because the cut may
    // split it.
    let mut length = 6 * tokens;
    loop {
        let part = &text[..text.floor_char_boundary(length)];
        let mut ends = ends(engine, part)?;
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

/// Returns the places where both a token and a character end. A single space after a token
/// counts to it, so that the next chunk begins with a word.
fn ends(engine: &Engine, text: &str) -> Result<Vec<End>> {
    let bytes = text.as_bytes();
    let mut ends: Vec<End> = Vec::new();
    for (mut at, tokens) in engine.tokenizer().ends(text)? {
        let next = bytes.get(at + 1).is_some_and(|b| !b.is_ascii_whitespace());
        at += usize::from(next && bytes[at] == b' ');
        match ends.last_mut() {
            Some(last) if last.at == at => last.tokens = tokens,
            _ => ends.push(End { at, tokens }),
        }
    }
    Ok(ends)
}

/// A place where a text can be split.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Bytes of the text before this place.
    at: usize,
    /// Tokens of the text before this place.
    tokens: usize,
}

/// Chooses where to split: at the last of `ends` that ends a paragraph within the last quarter,
/// else at the last there that ends a sentence or line, else at the last of all.
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
