//! Keeps what users say apart from what a chat template says: a special token that is spelled in
//! a message stays plain text, and one that the template writes is a token.
//!
//! A template sees messages in which each spelling is a placeholder, and otherwise the messages
//! themselves, so that whatever it asks of them (trim, split, compare) has the right answer. In
//! its output, the spellings that are left are the template's own.

use super::{Tokenizer, guarded};
use crate::{Error, Result};
use std::collections::HashMap;
use tokenizers::AddedToken;

// Noncharacters: Unicode assigns them for use within a program, and no text has them.
/// Around a special token's spelling that means the token.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
/// Around the number of a hidden spelling.
const PLACE: char = '\u{FDD2}';
/// The end of a message, where a template's output is to be cut.
pub(crate) const END: char = '\u{FDD3}';

/// A tokenizer that reads special tokens as plain characters, but where they are between marks.
pub(super) struct Marked {
    inner: tokenizers::Tokenizer,
    /// The tokens' own ids, by the ids of their spellings between marks.
    ids: HashMap<u32, u32>,
}

impl Marked {
    fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let mut inner = tokenizer.inner.clone();
        inner.set_encode_special_tokens(true);
        let special: Vec<(u32, AddedToken)> =
            inner.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).collect();
        let marked = |content: &str| format!("{OPEN}{content}{CLOSE}");
        let twin = |(_, token): &(u32, AddedToken)| AddedToken {
            content: marked(&token.content),
            special: false,
            normalized: false,
            ..token.clone()
        };
        let twins: Vec<AddedToken> = special.iter().map(twin).collect();
        guarded(|| inner.add_tokens(twins)).map_err(Error::Tokenize)?;
        let id = |(id, token): &(u32, AddedToken)| {
            Some((inner.token_to_id(&marked(&token.content))?, *id))
        };
        let ids = special.iter().filter_map(id).collect();
        Ok(Self { inner, ids })
    }
}

/// The spellings of special tokens in a conversation, hidden from its template.
pub(crate) struct Hidden<'t> {
    tokenizer: &'t Tokenizer,
    texts: Vec<String>,
}

impl<'t> Hidden<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, texts: Vec::new() }
    }

    /// Returns a message with a placeholder for each special token in it, and for each part of
    /// one at an end, which the template might complete. Noncharacters that are used here become
    /// U+FFFD.
    pub(crate) fn hide(&mut self, text: &str) -> String {
        let text = text.replace([OPEN, CLOSE, PLACE, END], "\u{FFFD}");
        let special = &self.tokenizer.special;
        let starts = |token: &&String| {
            (1..token.len())
                .rev()
                .find(|&at| token.is_char_boundary(at) && text.ends_with(&token[..at]))
                .unwrap_or(0)
        };
        let ends = |token: &&String| {
            (1..token.len())
                .find(|&at| token.is_char_boundary(at) && text.starts_with(&token[at..]))
                .map_or(0, |at| token.len() - at)
        };
        let front = special.iter().map(|token| ends(&token)).max().unwrap_or(0);
        let back = special.iter().map(|token| starts(&token)).max().unwrap_or(0);
        let mut shown = String::with_capacity(text.len());
        let front = front.min(text.len() - back.min(text.len()));
        let (first, rest) = text.split_at(front);
        let (middle, last) = rest.split_at(rest.len() - back.min(rest.len()));
        self.place(first, &mut shown);
        for (token, after) in self.tokenizer.cut(middle) {
            self.place(token, &mut shown);
            shown += after;
        }
        self.place(last, &mut shown);
        shown
    }

    /// Appends the placeholder of a text, unless it is empty.
    fn place(&mut self, text: &str, shown: &mut String) {
        if !text.is_empty() {
            let number = self.texts.iter().position(|one| one == text).unwrap_or_else(|| {
                self.texts.push(text.into());
                self.texts.len() - 1
            });
            *shown += &format!("{PLACE}{number}{PLACE}");
        }
    }

    /// Encodes what a template wrote, with nothing in front.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode(&self, rendered: &str) -> Result<Vec<u32>> {
        if self.texts.is_empty() {
            return self.tokenizer.encode_continued(rendered);
        }
        let mut text = String::with_capacity(rendered.len());
        for (token, after) in self.tokenizer.cut(rendered) {
            if !token.is_empty() {
                text.extend([OPEN]);
                text += token;
                text.extend([CLOSE]);
            }
            text += after;
        }
        // Every other part is the number of a placeholder; what is no number is as it was.
        let parts = text.split(PLACE).enumerate().map(|(index, part)| match index % 2 {
            1 => part
                .parse()
                .ok()
                .and_then(|n: usize| self.texts.get(n))
                .map_or(part, String::as_str),
            _ => part,
        });
        let text: String = parts.collect();
        let marked = match self.tokenizer.marked.get() {
            Some(marked) => marked,
            None => {
                let made = Marked::new(self.tokenizer)?;
                self.tokenizer.marked.get_or_init(|| made)
            }
        };
        let encoding = guarded(|| marked.inner.encode_fast(text, false));
        let ids = encoding.map_err(Error::Tokenize)?.get_ids().to_vec();
        Ok(ids.into_iter().map(|id| marked.ids.get(&id).copied().unwrap_or(id)).collect())
    }
}

impl Tokenizer {
    /// Cuts a text at its special tokens: pairs of a token's spelling and the text up to the
    /// next. The first pair has no token where the text does not begin with one.
    fn cut<'a>(&self, text: &'a str) -> Vec<(&'a str, &'a str)> {
        // The leftmost first and, of those that begin there, the longest.
        let mut found: Vec<(usize, usize)> = self
            .special
            .iter()
            .filter(|token| !token.is_empty())
            .flat_map(|token| text.match_indices(token.as_str()))
            .map(|(at, token)| (at, token.len()))
            .collect();
        found.sort_unstable_by_key(|&(at, length)| (at, std::cmp::Reverse(length)));
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        let (mut token, mut start) = ("", 0);
        for (at, length) in found {
            if at >= start {
                pairs.push((token, &text[start..at]));
                token = &text[at..at + length];
                start = at + length;
            }
        }
        pairs.push((token, &text[start..]));
        pairs
    }
}
