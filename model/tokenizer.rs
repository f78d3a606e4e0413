//! Text ↔ token ids: `tokenizer.json` through the `tokenizers` crate, `<s>` in front.

mod charsmap;
mod growth;
mod surplus;

use crate::config::Config;
use crate::{Error, Result, files};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::Decoder;

/// Bytes of a token, at most; published ones have up to 256. Some models look at as many from each
/// place of a text on, and a text may have as many for each of its tokens.
const LONGEST: usize = 1024;

/// The tokenizer of one checkpoint.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same, but without special tokens in texts; few texts need it.
    plain: OnceLock<tokenizers::Tokenizer>,
    /// How special tokens are spelled.
    special: Vec<String>,
    /// Ids of added tokens, special or not: a text is cut at them before it is tokenized.
    added: HashSet<u32>,
    bos: u32,
    eos: Vec<u32>,
    longest: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. Tokens that the model has no row for and that no text asks for are
    /// left out; added ones of them (a `<pad>`) are text where a text spells them.
    ///
    /// # Errors
    /// When it cannot be read or parsed, its steps could make more than a hundred bytes of one, or a
    /// text could get an id that the model's vocabulary has not.
    pub fn open(path: &Path, config: &Config) -> Result<Self> {
        Self::parse(&std::fs::read(path).map_err(Error::io(path))?, path, config)
    }

    /// Reads the text of a `tokenizer.json`; `path` is what errors name.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn parse(text: &[u8], path: &Path, config: &Config) -> Result<Self> {
        let format = |problem: String| Error::Format { path: path.into(), problem };
        files::check_pointer(text, path)?;
        // Before anything is tokenized: added tokens are, as the file is read.
        growth::check(text).map_err(format)?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(text))
            .map_err(|e| format(format!("not a tokenizer: {e}")))?;
        let beyond = |(_, id): &(String, u32)| *id as usize >= config.vocab;
        if let Some((token, id)) = inner.get_vocab(true).into_iter().find(beyond) {
            inner = surplus::without(text, &inner, config.vocab).ok_or_else(|| {
                format(format!(
                    "token {token:?}: expected an id below vocab_size {}, found {id}",
                    config.vocab
                ))
            })?;
        }
        // Lengths are this program's affair: a file that truncates would hide what was cut.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| format(e.to_string()))?;
        let longest = inner.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
        if longest > LONGEST {
            return Err(format(format!(
                "expected tokens of at most {LONGEST} bytes, found one of {longest}"
            )));
        }
        let all = inner.get_added_tokens_decoder();
        let added = all.keys().copied().collect();
        let special = all.into_values().filter(|t| t.special).map(|t| t.content).collect();
        let (plain, bos, eos) = (OnceLock::new(), config.bos, config.eos.clone());
        Ok(Self { inner, plain, special, added, bos, eos, longest })
    }

    /// Ids of a text that starts a sequence: `<s>` in front.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.bos];
        ids.extend(self.encode_continued(text)?);
        Ok(ids)
    }

    /// Ids of a text that continues a sequence: nothing in front.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continued(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false));
        Ok(encoding.map_err(Error::Tokenize)?.get_ids().to_vec())
    }

    /// Ids of `before` and a text behind it, from those that the text has on its own, as
    /// [`Tokenizer::encode_continued`] makes them: what `encode` makes of both in one string. A
    /// SentencePiece vocabulary puts a space in front of a text, which is not there behind another.
    /// Ids that no text has (a part of a character, a spelling of the caller's) stay as they are.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_joined(&self, before: &str, ids: &[u32]) -> Result<Vec<u32>> {
        // Behind an added token (`</s>`) nothing depends on what is in front of it.
        let first = ids.iter().position(|id| self.added.contains(id)).unwrap_or(ids.len());
        for head in (0..=first).rev() {
            let (head, rest) = ids.split_at(head);
            let text = self.decode(head)?;
            if self.encode_continued(&text)? == head {
                let mut joined = self.encode(&format!("{before}{text}"))?;
                joined.extend(rest);
                return Ok(joined);
            }
            // Three tokens at most are a part of a character that is not finished.
            if first - head.len() == 3 || !text.ends_with('\u{FFFD}') {
                break;
            }
        }
        Ok([&self.encode(before)?, ids].concat())
    }

    /// Ids of a turn, nothing in front: as [`Tokenizer::encode_continued`], but whoever writes
    /// `</s>` in it writes four characters and does not end a turn.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_turn(&self, text: &str) -> Result<Vec<u32>> {
        if !self.special.iter().any(|token| text.contains(token)) {
            return self.encode_continued(text);
        }
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        let encoding = guarded(|| plain.encode_fast(text, false));
        Ok(encoding.map_err(Error::Tokenize)?.get_ids().to_vec())
    }

    /// A token on its own: its text, special ones as spelled, and its bytes. What is only a part of
    /// a character is U+FFFD; it has bytes where the vocabulary spells them, as in `<0xE2>`.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn token(&self, id: u32) -> Result<(String, Option<Vec<u8>>)> {
        let spelled = self.piece(id).unwrap_or_default();
        if self.special.contains(&spelled) {
            let bytes = spelled.clone().into_bytes();
            return Ok((spelled, Some(bytes)));
        }
        // Decoders strip a space in front of a text, so a token shows its own behind another.
        let (one, two) = (self.decode(&[id])?, self.decode(&[id, id])?);
        let text = two.strip_prefix(&one).unwrap_or(&one).to_string();
        let hex = spelled.strip_prefix("<0x").and_then(|s| s.strip_suffix('>'));
        let bytes = match hex.map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => Some(vec![byte]),
            _ => (!text.contains('\u{FFFD}')).then(|| text.clone().into_bytes()),
        };
        Ok((text, bytes))
    }

    /// Where tokens of a text end, in its bytes, and how many there are up to there; ascending, and
    /// without the ends within a character that several tokens spell. The last is the text's end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ends(&self, text: &str) -> Result<Vec<(usize, usize)>> {
        let encoding = guarded(|| self.inner.encode(text, false)).map_err(Error::Tokenize)?;
        let mut ends: Vec<(usize, usize)> = Vec::with_capacity(encoding.len() + 1);
        // A normalizer may drop what is at the end; the last end is this text's all the same.
        let offsets = encoding.get_offsets().iter().map(|&(_, end)| end).zip(1..);
        for (end, tokens) in offsets.chain([(text.len(), encoding.len())]) {
            match ends.last_mut() {
                Some(last) if last.0 >= end => last.1 = tokens,
                _ if end > 0 && text.is_char_boundary(end) => ends.push((end, tokens)),
                _ => {}
            }
        }
        Ok(ends)
    }

    /// Text of the ids, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(Error::Tokenize)
    }

    /// The id of a token as spelled in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as spelled in the vocabulary.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens in the vocabulary, added ones counted.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Bytes beyond which a text has more than so many tokens, whatever they are: twice those that
    /// the longest spelling stands for, because a normalizer may shorten a text.
    pub fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(2 * self.longest)
    }

    /// A beginning of the text that has more than so many tokens, or all of it. Tokenizing takes
    /// some 100 bytes of memory for each of a text, so what lies far behind the last token that
    /// counts need not be looked at.
    pub fn beginning<'t>(&self, text: &'t str, tokens: usize) -> &'t str {
        &text[..text.floor_char_boundary(self.most_bytes(tokens))]
    }

    /// Bytes of the longest spelling in the vocabulary: no token stands for more of a text.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether the id ends an answer.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// The bytes that each id adds to a text, by id; None where it adds none: special tokens, and
    /// ids that are no token's. Where a text begins, its first space may not be shown.
    ///
    /// # Errors
    /// When the decoder does more than put tokens together: then a token has no bytes of its own.
    pub fn token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let reads = |token: &str, text: &str| {
            let Some(decoder) = self.inner.get_decoder() else { return false };
            let found = guarded(|| decoder.decode(vec!["a".into(), token.into()]));
            found.is_ok_and(|found| found == format!("a{text}"))
        };
        if !reads("b", "b") {
            let problem = "expected a decoder that puts tokens together and no more".into();
            return Err(Error::Tokenize(problem));
        }
        let (marks, fallback) = (reads("▁b", " b"), reads("<0x41>", "A"));
        let letters = if reads("Ġb", " b") { byte_letters() } else { HashMap::new() };
        let special = self.inner.get_added_vocabulary();
        let bytes = |id| {
            let token =
                self.inner.id_to_token(id).filter(|token| !special.is_special_token(token))?;
            if let Some(byte) = fallback_byte(&token).filter(|_| fallback) {
                return Some(vec![byte]);
            }
            // Without letters, or with one that is none, a token is its own text.
            match token.chars().map(|c| letters.get(&c).copied()).collect::<Option<Vec<u8>>>() {
                Some(bytes) => Some(bytes),
                None if marks => Some(token.replace('▁', " ").into_bytes()),
                None => Some(token.into_bytes()),
            }
        };
        let ids = self.inner.get_vocab(true).into_values().max().map_or(0, |last| last + 1);
        Ok((0..ids).map(bytes).collect())
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self) -> Stream<'_> {
        self.stream_after(&[])
    }

    /// A decoder for ids that come one by one after these: it shows what they add to these ids'
    /// text, a space in front of them included.
    pub fn stream_after(&self, ids: &[u32]) -> Stream<'_> {
        // The window begins with a token that has a text of its own, so that decoders, which strip
        // the first space of a text, strip none that is new; and with no part of a character.
        let has_text = |&id: &u32| {
            let piece = self.piece(id);
            piece.is_some_and(|p| fallback_byte(&p).is_none() && !self.special.contains(&p))
        };
        let start = ids.iter().rposition(has_text).unwrap_or(0);
        Stream { tokenizer: self, ids: ids[start..].to_vec(), shown: ids.len() - start }
    }
}

/// What a call of the crate returns. A file may have parts that fit no text or token, on which the
/// crate panics; that is an error like others, whichever thread asked.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => returned.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let line = text.and_then(|text| text.lines().next()).unwrap_or_default();
            Err(format!("a part of tokenizer.json does not fit this: {line}"))
        }
    }
}

/// Turns ids that come one by one into text, never splitting a UTF-8 character.
///
/// A byte-fallback vocabulary spells rare characters as several tokens; text is held back while it
/// ends in an unfinished one. Only a window of ids is decoded again: the last piece shown stays in
/// front, so that spaces come out as in the whole text.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// How many of `ids` have been shown.
    shown: usize,
}

impl Stream<'_> {
    /// The text that `id` completes; empty while a character is unfinished.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.take(false)
    }

    /// What is still held back; an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown])?;
        let whole = self.tokenizer.decode(&self.ids)?;
        if whole == before || (whole.ends_with('\u{FFFD}') && !all) {
            return Ok(String::new());
        }
        // A character that began before the first id is new as a whole.
        let begun = before.trim_end_matches('\u{FFFD}');
        // A run of bytes that is no UTF-8 decodes to U+FFFD throughout, so that what was shown need
        // not be a prefix any more; then what follows as many characters is new.
        let new = match whole.strip_prefix(&before).or_else(|| whole.strip_prefix(begun)) {
            Some(new) => new.to_string(),
            None => whole.chars().skip(before.chars().count()).collect(),
        };
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(new)
    }
}

/// The byte of a token like `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's alphabet: a letter for each byte, itself where it can be seen in Latin-1, else one of
/// those from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let mut hidden = '\u{100}'..;
    let letter = |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => hidden.next(),
    };
    let letters: Vec<Option<char>> = (0..=255).map(letter).collect();
    letters.into_iter().zip(0..=255).filter_map(|(letter, byte)| Some((letter?, byte))).collect()
}
