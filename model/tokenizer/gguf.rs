//! Builds the tokenizer that the metadata of a GGUF file describe.
//!
//! A GGUF file has the vocabulary, but not the steps of a `tokenizer.json`: llama.cpp knows them
//! by name. This module writes down the `tokenizer.json` that the metadata stand for, so that one
//! parser checks both.

mod gpt2;
mod llama;
mod write;

use super::{LONGEST, Tokenizer};
use crate::config::Config;
use crate::gguf::{Metadata, Strings};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;

/// The keys of the lists, which have one entry per token.
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file: byte-level BPE (`tokenizer.ggml.model` = `gpt2`) or
    /// SentencePiece's BPE (`llama`). `<s>` goes in front of a text where `add_bos_token` says so
    /// or, without that key, where llama.cpp puts it. `add_eos_token` has no effect, because
    /// prompts are to be continued.
    ///
    /// # Errors
    /// When the file names a model or a pre-tokenizer (`tokenizer.ggml.pre`) that is not
    /// supported, a list is missing, has another length than the vocabulary or invalid entries,
    /// a token comes twice, or as [`Tokenizer::parse`].
    pub fn from_gguf(metadata: &Metadata, config: &Config) -> Result<Self> {
        let text = json(metadata, config)?;
        Self::parse(&text, metadata.path(), config)?.started_by_post_processor()
    }
}

/// Returns the `tokenizer.json` that the metadata stand for.
fn json(metadata: &Metadata, config: &Config) -> Result<Vec<u8>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let key = "tokenizer.ggml.model";
    let (steps, merges, adds_bos) = match metadata.string(key)? {
        "gpt2" => gpt2::steps(&vocabulary)?,
        "llama" => llama::steps(&vocabulary)?,
        _ => return metadata.fail(key, "\"gpt2\" or \"llama\"", metadata.get(key)),
    };
    let key = "tokenizer.ggml.add_bos_token";
    let adds_bos = if metadata.has(key) { metadata.flag(key)? } else { adds_bos };
    let post_processor = match vocabulary.spelling(config.bos) {
        Some(bos) if adds_bos => json!({
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": bos, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [],
            "special_tokens": { bos: { "id": bos, "ids": [config.bos], "tokens": [bos] } },
        }),
        _ => Value::Null,
    };
    let file = File {
        version: "1.0",
        added_tokens: vocabulary.added(),
        normalizer: steps.normalizer,
        pre_tokenizer: steps.pre_tokenizer,
        post_processor,
        decoder: steps.decoder,
        model: Model {
            r#type: "BPE",
            unk_token: steps.unknown,
            fuse_unk: true,
            byte_fallback: steps.byte_fallback,
            ignore_merges: steps.ignores_merges,
            vocab: &vocabulary.ids,
            merges,
        },
    };
    serde_json::to_vec(&file).map_err(|e| Error::Tokenize(e.to_string()))
}

/// A `tokenizer.json`.
#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    added_tokens: Vec<Added<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

/// A token that a text is split at before it is tokenized.
#[derive(Serialize)]
struct Added<'a> {
    id: u32,
    content: &'a str,
    special: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
}

/// The model of a `tokenizer.json`.
#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: &'a HashMap<Cow<'a, str>, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

/// The steps around a vocabulary.
struct Steps<'a> {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    unknown: Option<&'a str>,
    byte_fallback: bool,
    /// Whether a word that is a token stays whole, whatever the merges would make of it.
    ignores_merges: bool,
}

/// Pairs of tokens that become one, first those that are merged first.
type Merges<'a> = Vec<(&'a str, &'a str)>;

/// What a token is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Stands for text without a token.
    Unknown,
    /// Has a meaning of its own and no text, as `<s>`.
    Control,
    /// Is found in a text before it is tokenized.
    User,
    /// Never comes of a text.
    Unused,
    /// A byte, spelled `<0xXX>`.
    Byte,
}

/// The kinds by their numbers in files.
const KIND_NUMBERS: [(i32, Kind); 6] = [
    (1, Kind::Normal),
    (2, Kind::Unknown),
    (3, Kind::Control),
    (4, Kind::User),
    (5, Kind::Unused),
    (6, Kind::Byte),
];

/// The tokens of a GGUF file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a Strings,
    kinds: Vec<Kind>,
    ids: HashMap<Cow<'a, str>, u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the tokens and their types.
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata.strings(TOKENS)?;
        let wrong = |expected: &str, found: String| {
            Err(Error::Metadata {
                path: metadata.path().into(),
                key: TOKENS.into(),
                expected: expected.into(),
                found,
            })
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0..) {
            if token.len() > LONGEST {
                let expected = format!("tokens of at most {LONGEST} bytes");
                return wrong(&expected, format!("one of {}", token.len()));
            }
            // As llama.cpp spells them: a text is not to become a token of nothing.
            let token = match token {
                "" => Cow::Owned(format!("[EMPTY_{id}]")),
                token => Cow::Borrowed(token),
            };
            if let Some(before) = ids.insert(token.clone(), id) {
                let found = format!("{token:?} as {before} and as {id}");
                return wrong("each token once", found);
            }
        }
        if tokens.is_empty() {
            return wrong("at least one token", "none".into());
        }
        let kind = |&number: &i32| {
            // Some old files have 0 in place of 1.
            let known =
                KIND_NUMBERS.iter().find(|(known, _)| *known == number.max(1) && number >= 0);
            known.map(|&(_, kind)| kind).ok_or_else(|| Error::Metadata {
                path: metadata.path().into(),
                key: TYPES.into(),
                expected: "types from 1 to 6".into(),
                found: number.to_string(),
            })
        };
        let kinds = metadata.integers(TYPES)?.iter().map(kind).collect::<Result<Vec<Kind>>>()?;
        let vocabulary = Self { metadata, tokens, kinds, ids };
        vocabulary.check_length(TYPES, vocabulary.kinds.len())?;
        Ok(vocabulary)
    }

    /// Refuses a list that does not have one entry per token.
    fn check_length(&self, key: &str, found: usize) -> Result<()> {
        let expected = self.tokens.len();
        if found == expected {
            return Ok(());
        }
        Err(Error::Metadata {
            path: self.metadata.path().into(),
            key: key.into(),
            expected: format!("one entry for each of {expected} tokens"),
            found: found.to_string(),
        })
    }

    /// Returns a token's spelling.
    fn spelling(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize).filter(|token| !token.is_empty())
    }

    /// Iterates over ids, spellings and kinds; tokens without a spelling are left out.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        let tokens = (0..).zip(self.tokens.iter()).zip(&self.kinds);
        tokens.map(|((id, token), &kind)| (id, token, kind)).filter(|t| !t.1.is_empty())
    }

    /// Returns the tokens that are found in a text before it is tokenized.
    fn added(&self) -> Vec<Added<'a>> {
        let added = |(id, content, kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::User => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
            Some(Added { id, content, special, single_word, lstrip, rstrip, normalized })
        };
        self.iter().filter_map(added).collect()
    }

    /// Returns the file's own merges, or `None` where it has none.
    fn merges(&self) -> Result<Option<Merges<'a>>> {
        let key = "tokenizer.ggml.merges";
        if !self.metadata.has(key) {
            return Ok(None);
        }
        let pair = |merge: &'a str| {
            let pair = merge.split_once(' ').filter(|(left, right)| {
                let whole = [*left, *right].concat();
                [*left, *right, &whole].iter().all(|token| self.ids.contains_key(*token))
            });
            pair.ok_or_else(|| Error::Metadata {
                path: self.metadata.path().into(),
                key: key.into(),
                expected: "pairs of tokens that make a token, with a space between them".into(),
                found: format!("{:?}", merge.chars().take(60).collect::<String>()),
            })
        };
        self.metadata.strings(key)?.iter().map(pair).collect::<Result<_>>().map(Some)
    }
}

/// Returns a step that cuts a text at the matches of a pattern and between them.
fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false
    })
}
