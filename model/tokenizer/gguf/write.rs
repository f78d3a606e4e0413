//! The metadata of a GGUF file that say what a tokenizer is.
//!
//! A GGUF file knows the steps of a tokenizer by name, so which name fits is found by trying: the
//! tokenizer that the metadata stand for must give the ids of the original.

use super::super::{Tokenizer, fallback_byte, guarded};
use super::{KIND_NUMBERS, Kind, TOKENS, TYPES, gpt2, llama};
use crate::config::Config;
use crate::gguf::{Metadata, Strings, Value};
use crate::{Error, Result};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Texts at which tokenizers of different steps differ: contractions, letters with and without
/// case, numbers of several lengths, spaces, line breaks, punctuation, code, composed and
/// decomposed accents, scripts without spaces, emoji.
const PROBES: [&str; 12] = [
    "Hello, world! I'm sure it's John's, they've said so; WE'LL SEE, IT'S",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 v2.0.1 0x7fff ½ ² Ⅷ ٣٤",
    "def f(x):\n    return x[\"key\"] + 0x1F  # comment\r\n\tif (a==b&&c!=d){i++;}\n\n\nend",
    "camelCase HTTPServer XMLHttpRequest iPhone McDonald ABCdef",
    "«Привет», мир! Ещё ёлка. Ελληνικά ΑΒΓ",
    "e\u{301}cole école naïve nai\u{308}ve ﬁne Å \u{212B}",
    "你好，世界。日本語のテキスト 한국어 ไทย हिन्दी العربية עברית",
    "🚀 (normal) 😶\u{200d}🌫\u{fe0f} (joined) ✅ 🦙🦙 🇫🇷",
    "''''''```````\"\"\"\"......!!!!!!?????? -- -----===== /home/user_name/a-b.c",
    " leading, two  spaces, three   spaces, trailing ",
    "\u{a0}no-break \u{3000}wide $100 €5 <tag attr='v'>~|^` @user #tag 100% a_b",
];

impl Tokenizer {
    /// Returns the metadata of a GGUF file from which [`Tokenizer::from_gguf`] makes this
    /// tokenizer. Errors name `path`.
    ///
    /// # Errors
    /// When GGUF has no words for it: it is no BPE, or its steps are none of the known ones.
    pub fn to_gguf(&self, config: &Config, path: &Path) -> Result<BTreeMap<String, Value>> {
        let format = |problem: &str| Error::Format { path: path.into(), problem: problem.into() };
        let text = guarded(|| self.inner.to_string(false)).map_err(Error::Tokenize)?;
        let file: Json = serde_json::from_str(&text).map_err(|e| Error::Tokenize(e.to_string()))?;
        let model = &file["model"];
        if model["type"] != "BPE" {
            return Err(format("expected a tokenizer of type BPE, which GGUF files can hold"));
        }
        let merges = merges(&model["merges"]);
        let fallback = model["byte_fallback"] == true;
        let mut all = self.vocabulary(model, config);
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        for (name, id) in
            [("bos_token_id", Some(&config.bos)), ("eos_token_id", config.eos.first())]
        {
            all.extend(id.map(|&id| (key(name), Value::U64(id.into()))));
        }
        // More than two further ends have no name.
        for (name, &id) in ["eot_token_id", "eom_token_id"].iter().zip(config.eos.iter().skip(1)) {
            all.insert(key(name), Value::U64(id.into()));
        }
        let starts = !self.start().is_empty();
        all.insert(key("add_bos_token"), Value::Bool(starts));
        let listed = || merges.iter().map(|(left, right)| [left, " ", right].concat());
        let strings = |texts: Vec<String>| {
            Value::Strings(texts.iter().map(String::as_str).collect::<Strings>())
        };
        let mut candidates = Vec::new();
        if fallback {
            all.insert(key("model"), Value::String("llama".into()));
            let scores = self.scores(&merges, config.vocab);
            all.insert(llama::SCORES.into(), Value::Numbers(scores));
            // With and without the list, which only our own reader looks at: most vocabularies
            // do not need it.
            for spaced in [true, false] {
                let mut one = all.clone();
                one.insert(key("add_space_prefix"), Value::Bool(spaced));
                candidates.push(one.clone());
                one.insert(key("merges"), strings(listed().collect()));
                candidates.push(one);
            }
        } else {
            all.insert(key("model"), Value::String("gpt2".into()));
            all.insert(key("merges"), strings(listed().collect()));
            candidates.extend(gpt2::names().map(|name| {
                let mut one = all.clone();
                one.insert(key("pre"), Value::String(name.into()));
                one
            }));
        }
        for one in candidates {
            let metadata = Metadata::new(path, one);
            if Self::from_gguf(&metadata, config).is_ok_and(|made| self.is_like(&made, &merges)) {
                return Ok(metadata.into_values());
            }
        }
        Err(format("expected a tokenizer whose steps a GGUF file can name"))
    }

    /// Returns the tokens, with unused ones for ids without one, and what each is.
    fn vocabulary(&self, model: &Json, config: &Config) -> BTreeMap<String, Value> {
        let unknown = model["unk_token"].as_str();
        let fallback = model["byte_fallback"] == true;
        let (mut tokens, mut kinds) = (Strings::default(), Vec::with_capacity(config.vocab));
        for id in 0..config.vocab as u32 {
            let spelled = self.inner.id_to_token(id);
            let kind = match &spelled {
                None => Kind::Unused,
                Some(token) if Some(token.as_str()) == unknown => Kind::Unknown,
                Some(token) if self.special.contains(token) => Kind::Control,
                Some(_) if self.added.contains(&id) => Kind::User,
                Some(token) if fallback && fallback_byte(token).is_some() => Kind::Byte,
                Some(_) => Kind::Normal,
            };
            tokens.push(&spelled.unwrap_or_else(|| format!("[PAD{id}]")));
            let number = KIND_NUMBERS.iter().find(|(_, one)| *one == kind);
            kinds.push(number.map_or(1, |&(number, _)| number));
        }
        BTreeMap::from([
            (TOKENS.into(), Value::Strings(tokens)),
            (TYPES.into(), Value::Integers(kinds)),
        ])
    }

    /// Returns scores by which SentencePiece merges in the order of the list: the earlier a token
    /// is made, the higher. Tokens whose merges alternate (runs of spaces) have equal scores, and
    /// those that no merge makes come behind all others.
    fn scores(&self, merges: &[(String, String)], vocab: usize) -> Vec<f32> {
        let mut scores = vec![-(merges.len() as f32); vocab];
        let made = |(left, right): &(String, String)| [left.as_str(), right].concat();
        let last: HashMap<String, usize> = merges.iter().map(made).zip(0..).collect();
        let (mut class, mut end) = (0, 0);
        for (rank, merge) in merges.iter().enumerate() {
            let token = made(merge);
            if rank > end {
                (class, end) = (class + 1, rank);
            }
            end = end.max(last[&token]);
            let id = self.inner.token_to_id(&token).map(|id| id as usize);
            if let Some(score) = id.and_then(|id| scores.get_mut(id)) {
                *score = -(class as f32);
            }
        }
        scores
    }

    /// Returns whether `other` has the same merges and gives the same ids to all probes.
    fn is_like(&self, other: &Self, wanted: &[(String, String)]) -> bool {
        let Ok(text) = guarded(|| other.inner.to_string(false)) else { return false };
        let same = serde_json::from_str(&text)
            .is_ok_and(|file: Json| merges(&file["model"]["merges"]) == wanted);
        let ids = |one: &Self, text: &str| {
            let (whole, turn) = (one.encode(text).ok()?, one.encode_turn(text).ok()?);
            let back = one.decode(&whole).ok()?;
            Some((whole, turn, back))
        };
        let special: Vec<String> = self.special.iter().map(|token| format!("a{token} b")).collect();
        let texts = PROBES.into_iter().chain(special.iter().map(String::as_str));
        same && texts.into_iter().all(|text| ids(self, text) == ids(other, text))
    }
}

/// Returns the pairs of a list of merges, in either of its forms.
fn merges(list: &Json) -> Vec<(String, String)> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        pair => Some((pair[0].as_str()?.into(), pair[1].as_str()?.into())),
    };
    list.as_array().into_iter().flatten().filter_map(pair).collect()
}
