//! SentencePiece's BPE. It merges the neighbours whose token has the highest score, so a file
//! need not have a list of merges: the scores say it.

use super::{Kind, Merges, Steps, Vocabulary};
use crate::{Error, Result};
use serde_json::{Value, json};

/// Key of the tokens' scores.
pub(super) const SCORES: &str = "tokenizer.ggml.scores";

/// Returns the steps, the merges, and whether `<s>` goes in front by default, which it does.
pub(super) fn steps<'a>(vocabulary: &Vocabulary<'a>) -> Result<(Steps<'a>, Merges<'a>, bool)> {
    let metadata = vocabulary.metadata;
    let merges = match vocabulary.merges()? {
        Some(merges) => merges,
        None => derived(vocabulary)?,
    };
    let unknown = vocabulary.iter().find(|token| token.2 == Kind::Unknown).map(|token| token.1);
    let missing = (0..=255).map(byte).find(|byte| !vocabulary.ids.contains_key(&**byte));
    if let (None, Some(missing)) = (unknown, missing) {
        let expected = format!("a token for text without one (type 2), or {missing}");
        return metadata.fail(super::TOKENS, &expected, None);
    }
    let key = "tokenizer.ggml.add_space_prefix";
    let spaced = if metadata.has(key) { metadata.flag(key)? } else { true };
    let mark = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = vec![mark];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if spaced {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let steps = Steps {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        unknown,
        byte_fallback: true,
        ignores_merges: false,
    };
    Ok((steps, merges, true))
}

/// Returns the spelling of a byte's token.
fn byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// Returns the merges that the scores say: every way to make a token of two, by falling scores.
/// Only normal tokens take part, as in SentencePiece. Of pairs with equal scores SentencePiece
/// merges the leftmost. Runs of spaces have equal scores in Llama's and Mistral's vocabularies;
/// the longest left part first is the same for them, and the order of published `tokenizer.json`s.
fn derived<'a>(vocabulary: &Vocabulary<'a>) -> Result<Merges<'a>> {
    let scores = vocabulary.metadata.numbers(SCORES)?;
    vocabulary.check_length(SCORES, scores.len())?;
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(Error::Metadata {
            path: vocabulary.metadata.path().into(),
            key: SCORES.into(),
            expected: "finite numbers".into(),
            found: score.to_string(),
        });
    }
    let id = |token: &str| {
        let id = vocabulary.ids.get(token).copied();
        id.filter(|&id| vocabulary.kinds[id as usize] == Kind::Normal)
    };
    let mut merges = Vec::with_capacity(2 * scores.len());
    for (whole, token, kind) in vocabulary.iter() {
        if kind != Kind::Normal {
            continue;
        }
        let length = token.chars().count();
        for (chars, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(first), Some(second)) = (id(left), id(right)) {
                let score = scores[whole as usize];
                merges.push((score, chars, length - chars, whole, first, second, (left, right)));
            }
        }
    }
    merges.sort_unstable_by(|a, b| {
        let longest = (b.1, b.2).cmp(&(a.1, a.2));
        b.0.total_cmp(&a.0).then(longest).then((a.3, a.4, a.5).cmp(&(b.3, b.4, b.5)))
    });
    Ok(merges.into_iter().map(|merge| merge.6).collect())
}
