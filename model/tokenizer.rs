//! Text ↔ token ids: `tokenizer.json` through the `tokenizers` crate, `<s>` in front.

use crate::config::Config;
use crate::{Error, Result};
use std::path::Path;

/// The tokenizer of one checkpoint.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be read or parsed, or has ids that the model's vocabulary has not.
    pub fn open(path: &Path, config: &Config) -> Result<Self> {
        Self::parse(&std::fs::read(path).map_err(Error::io(path))?, path, config)
    }

    /// Reads the text of a `tokenizer.json`; `path` is what errors name.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn parse(text: &[u8], path: &Path, config: &Config) -> Result<Self> {
        let format = |problem: String| Error::Format { path: path.into(), problem };
        let mut inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|e| format(format!("not a tokenizer: {e}")))?;
        // Lengths are this program's affair: a file that truncates would hide what was cut.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| format(e.to_string()))?;
        if let Some((token, id)) =
            inner.get_vocab(true).into_iter().find(|&(_, id)| id as usize >= config.vocab)
        {
            return Err(format(format!(
                "token {token:?}: expected an id below vocab_size {}, found {id}",
                config.vocab
            )));
        }
        Ok(Self { inner, bos: config.bos, eos: config.eos.clone() })
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
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| Error::Tokenize(e.to_string()))?.get_ids().to_vec())
    }

    /// Text of the ids, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::Tokenize(e.to_string()))
    }

    /// The id of a token as spelled in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens in the vocabulary, added ones counted.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the id ends an answer.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self) -> Stream<'_> {
        Stream { tokenizer: self, ids: Vec::new(), shown: 0 }
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
        if whole.len() <= before.len() || (whole.ends_with('\u{FFFD}') && !all) {
            return Ok(String::new());
        }
        // A run of bytes that is no UTF-8 decodes to U+FFFD throughout, so that what was shown need
        // not be a prefix any more; then what follows as many characters is new.
        let new = match whole.strip_prefix(&before) {
            Some(new) => new.to_string(),
            None => whole.chars().skip(before.chars().count()).collect(),
        };
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(new)
    }
}
