//! Removes tokens of a `tokenizer.json` that the model has no row for, such as a `<pad>` that was
//! added without resizing the embedding table.

use super::fallback_byte;
use serde_json::{Map, Value};

/// Returns the tokenizer of the file `text`, parsed before as `whole`, without its tokens from id
/// `vocab` on. Returns `None` where a text could produce one of them, or where the ids of others
/// would change.
///
/// An added token is split from a text before the text is tokenized; without it, its spelling is
/// plain text. A token of the vocabulary itself can be removed only if nothing but a merge could
/// produce it, and there is no such merge.
pub(super) fn without(
    text: &[u8],
    whole: &tokenizers::Tokenizer,
    vocab: usize,
) -> Option<tokenizers::Tokenizer> {
    let mut known = whole.get_vocab(true);
    known.retain(|_, id| (*id as usize) < vocab);
    let mut json: Map<String, Value> = serde_json::from_slice(text).ok()?;
    if let Some(Value::Array(added)) = json.get_mut("added_tokens") {
        added.retain(|token| token["content"].as_str().is_some_and(|t| known.contains_key(t)));
    }
    let model = json.get_mut("model")?.as_object_mut()?;
    let merged = model.contains_key("merges") && model.get("ignore_merges") != Some(&true.into());
    let own = model.get_mut("vocab")?.as_object_mut()?;
    let surplus = |token: &String| !known.contains_key(token);
    let by_merges = |token: &String| token.chars().count() > 1 && fallback_byte(token).is_none();
    if !own.keys().filter(|token| surplus(token)).all(|token| merged && by_merges(token)) {
        return None;
    }
    own.retain(|token, _| known.contains_key(token));
    // The crate refuses a merge whose token is gone.
    let inner = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&json).ok()?).ok()?;
    (inner.get_vocab(true) == known).then_some(inner)
}
