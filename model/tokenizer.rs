//! Conversion between text and token ids: the `tokenizers` crate reads `tokenizer.json`, and this
//! module puts `<s>` in front.

mod charsmap;
mod gguf;
mod growth;
mod hidden;
mod surplus;
mod train;

use crate::config::{Config, Family};
use crate::{Error, Result, files};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::Decoder;

pub(crate) use hidden::{END, Hidden};

/// Maximum bytes of a token; published tokenizers have up to 256. Some models scan that many
/// bytes from each position of a text, and a text may have that many bytes per token.
const LONGEST: usize = 1024;

/// The tokenizer of one checkpoint.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same tokenizer, but it reads special tokens in a text as plain characters. Built on
    /// first use, because few texts need it.
    plain: OnceLock<tokenizers::Tokenizer>,
    /// The same, but special tokens between marks are read as such. Built on first use.
    marked: OnceLock<hidden::Marked>,
    /// Spellings of the special tokens.
    special: Vec<String>,
    /// Ids of added tokens, special or not. A text is split at them before it is tokenized.
    added: HashSet<u32>,
    start: Vec<u32>,
    eos: Vec<u32>,
    longest: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. A Mistral or Mixtral gets `<s>` alone in front of a text, as GritLM
    /// was trained, and a Llama what the file's post-processor says. Tokens without a row in the
    /// model's embedding table are dropped if no text can produce them. The spelling of an added
    /// one among them (a `<pad>`) is then plain text.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, its steps could expand one byte to more than a
    /// hundred, or a text could get an id outside the model's vocabulary.
    pub fn open(path: &Path, config: &Config) -> Result<Self> {
        Self::parse(&std::fs::read(path).map_err(Error::io(path))?, path, config)
    }

    /// Returns the text of a `tokenizer.json` that makes the same tokens.
    ///
    /// # Errors
    /// When a part of the tokenizer has no such text.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| Error::Tokenize(e.to_string()))
    }

    /// Parses the text of a `tokenizer.json`. Errors name `path`.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn parse(text: &[u8], path: &Path, config: &Config) -> Result<Self> {
        let format = |problem: String| Error::Format { path: path.into(), problem };
        files::check_pointer(text, path)?;
        // Check before the crate reads the file, because reading it tokenizes the added tokens.
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
        // This program handles lengths itself: truncation by the file would silently lose text.
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
        let (start, eos) = (vec![config.bos], config.eos.clone());
        let (plain, marked) = (OnceLock::new(), OnceLock::new());
        let tokenizer = Self { inner, plain, marked, special, added, start, eos, longest };
        match config.family {
            Family::Llama => tokenizer.started_by_post_processor(),
            Family::Mistral | Family::Mixtral => Ok(tokenizer),
        }
    }

    /// Lets the file's own post-processor say what goes in front of a text.
    fn started_by_post_processor(mut self) -> Result<Self> {
        // What the post-processor puts behind a text does not matter: a prompt is continued.
        let text = "a";
        let bare = self.encode_continued(text)?;
        let whole = guarded(|| self.inner.encode_fast(text, true)).map_err(Error::Tokenize)?;
        let whole = whole.get_ids();
        let at = (0..=whole.len()).find(|&at| whole[at..].starts_with(&bare)).ok_or_else(|| {
            let problem = "expected a post-processor that leaves a text's tokens as they are";
            Error::Tokenize(problem.into())
        })?;
        // Of a text without tokens, all are the post-processor's.
        let at = if bare.is_empty() { whole.len() } else { at };
        self.start = whole[..at].to_vec();
        Ok(self)
    }

    /// Returns the ids in front of every text that starts a sequence: `<s>`, or nothing.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// Encodes a text that starts a sequence, with [`Tokenizer::start`] in front.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.start.clone();
        ids.extend(self.encode_continued(text)?);
        Ok(ids)
    }

    /// Encodes a text that continues a sequence, with nothing in front.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continued(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false));
        Ok(encoding.map_err(Error::Tokenize)?.get_ids().to_vec())
    }

    /// Encodes `before` followed by a text that is given by its own ids, as
    /// [`Tokenizer::encode_continued`] returns them. The result is what `encode` returns for both
    /// in one string: a SentencePiece vocabulary puts a space in front of a text, but not where
    /// the text follows another. Ids that do not round-trip through text (part of a character, a
    /// spelling of the caller's own) stay as they are.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_joined(&self, before: &str, ids: &[u32]) -> Result<Vec<u32>> {
        // Tokens after an added token (`</s>`) do not depend on the text in front of it.
        let first = ids.iter().position(|id| self.added.contains(id)).unwrap_or(ids.len());
        for head in (0..=first).rev() {
            let (head, rest) = ids.split_at(head);
            let text = self.decode(head)?;
            if self.encode_continued(&text)? == head {
                let mut joined = self.encode(&format!("{before}{text}"))?;
                joined.extend(rest);
                return Ok(joined);
            }
            // An unfinished character has at most three tokens.
            if first - head.len() == 3 || !text.ends_with('\u{FFFD}') {
                break;
            }
        }
        Ok([&self.encode(before)?, ids].concat())
    }

    /// Encodes a turn of a conversation, with nothing in front. Unlike
    /// [`Tokenizer::encode_continued`] it reads special tokens in the text as plain characters,
    /// so that a user's `</s>` does not end the turn.
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

    /// Returns the text of a single token, special ones as spelled, and its bytes. The text of a
    /// token that is only part of a character is U+FFFD; its bytes are known where the vocabulary
    /// spells them, as in `<0xE2>`.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn token(&self, id: u32) -> Result<(String, Option<Vec<u8>>)> {
        let spelled = self.piece(id).unwrap_or_default();
        if self.special.contains(&spelled) {
            let bytes = spelled.clone().into_bytes();
            return Ok((spelled, Some(bytes)));
        }
        // Decoders strip a text's leading space, so decode the token twice: the second keeps its
        // space.
        let (one, two) = (self.decode(&[id])?, self.decode(&[id, id])?);
        let text = two.strip_prefix(&one).unwrap_or(&one).to_string();
        let hex = spelled.strip_prefix("<0x").and_then(|s| s.strip_suffix('>'));
        let bytes = match hex.map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => Some(vec![byte]),
            _ => (!text.contains('\u{FFFD}')).then(|| text.clone().into_bytes()),
        };
        Ok((text, bytes))
    }

    /// Returns where the tokens of a text end, as (byte offset, number of tokens up to there),
    /// ascending. Ends within a character that several tokens spell are left out. The last entry
    /// is the text's end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ends(&self, text: &str) -> Result<Vec<(usize, usize)>> {
        let encoding = guarded(|| self.inner.encode(text, false)).map_err(Error::Tokenize)?;
        let mut ends: Vec<(usize, usize)> = Vec::with_capacity(encoding.len() + 1);
        // A normalizer may drop the end of a text, so add the text's own end.
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

    /// Decodes ids to text, leaving special tokens out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(Error::Tokenize)
    }

    /// Decodes ids to text, with special tokens as spelled.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn spell(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(Error::Tokenize)
    }

    /// Returns the id of a token, as spelled in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns a token as spelled in the vocabulary.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the number of tokens in the vocabulary, added ones included.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns a length in bytes beyond which any text has more than `tokens` tokens. It is twice
    /// the longest spelling per token, because a normalizer may shorten a text.
    pub fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(2 * self.longest)
    }

    /// Returns a prefix of the text that has more than `tokens` tokens, or all of it. Tokenizing
    /// takes some 100 bytes of memory per byte of text, so callers skip text far beyond the last
    /// token that counts.
    pub fn beginning<'t>(&self, text: &'t str, tokens: usize) -> &'t str {
        &text[..text.floor_char_boundary(self.most_bytes(tokens))]
    }

    /// Returns the bytes of the longest spelling in the vocabulary, the most that a token covers.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Returns whether the id is an end-of-sequence token.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// Returns the bytes that each id adds to a text, indexed by id. Special tokens and ids
    /// without a token have `None`. A text's first space may not be shown.
    ///
    /// # Errors
    /// When the decoder does more than concatenate tokens, so that a token has no bytes of its
    /// own.
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
            // A token with a character outside the byte alphabet, or without such an alphabet, is
            // its own text.
            match token.chars().map(|c| letters.get(&c).copied()).collect::<Option<Vec<u8>>>() {
                Some(bytes) => Some(bytes),
                None if marks => Some(token.replace('▁', " ").into_bytes()),
                None => Some(token.into_bytes()),
            }
        };
        let ids = self.inner.get_vocab(true).into_values().max().map_or(0, |last| last + 1);
        Ok((0..ids).map(bytes).collect())
    }

    /// Returns a decoder for ids that arrive one by one.
    pub fn stream(&self) -> Stream<'_> {
        self.stream_after(&[])
    }

    /// Returns a decoder for ids that arrive one by one after `ids`. It shows what they add to
    /// the text of `ids`, including a space in front of them.
    pub fn stream_after(&self, ids: &[u32]) -> Stream<'_> {
        // Decoders strip a text's first space. The window therefore begins with a token that has
        // text of its own, so that no new space is stripped, and never with part of a character.
        let has_text = |&id: &u32| {
            let piece = self.piece(id);
            piece.is_some_and(|p| fallback_byte(&p).is_none() && !self.special.contains(&p))
        };
        let start = ids.iter().rposition(has_text).unwrap_or(0);
        Stream { tokenizer: self, ids: ids[start..].to_vec(), shown: ids.len() - start }
    }
}

/// Calls the `tokenizers` crate. It panics on some files with parts that do not fit a text or
/// token; a panic becomes an error like others, on any thread.
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

/// Decodes ids one by one into text, never splitting a UTF-8 character.
///
/// A byte-fallback vocabulary spells rare characters as several tokens, so text is held back
/// while it ends in an unfinished character. Only a window of ids is decoded again. The last
/// piece shown stays at its front, so that spaces come out as in the whole text.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Number of `ids` whose text has been shown.
    shown: usize,
}

impl Stream<'_> {
    /// Returns the text that `id` completes; it is empty while a character is unfinished.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.take(false)
    }

    /// Returns the text still held back; an unfinished character becomes U+FFFD.
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
        // A character that began before the first new id is new as a whole.
        let begun = before.trim_end_matches('\u{FFFD}');
        // A run of invalid UTF-8 decodes to U+FFFD throughout, so the text shown need not be a
        // prefix of the whole any more. In that case the new text begins after the same number of
        // characters.
        let new = match whole.strip_prefix(&before).or_else(|| whole.strip_prefix(begun)) {
            Some(new) => new.to_string(),
            None => whole.chars().skip(before.chars().count()).collect(),
        };
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(new)
    }
}

/// Returns the byte of a token like `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// Returns GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, and every other
/// byte gets a letter from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let mut hidden = '\u{100}'..;
    let letter = |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => hidden.next(),
    };
    let letters: Vec<Option<char>> = (0..=255).map(letter).collect();
    letters.into_iter().zip(0..=255).filter_map(|(letter, byte)| Some((letter?, byte))).collect()
}
