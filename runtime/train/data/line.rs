//! Takes a line of training data apart and says what is wrong with it.

use super::{Generative, Kind, Pair, Passage, Place, Spoken};
use serde_json::{Map, Value};

/// What a sample must have, by the options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Maximum number of characters of an instruction or a text to embed.
    pub(super) chars: usize,
    /// Passages of a query, its positive one included.
    pub(super) group: usize,
}

/// A sample as a line holds it.
#[derive(Debug)]
pub(super) enum Sample {
    Pair(Pair),
    Generative(Generative),
}

/// Parses a line that is not blank. Returns the problem of an invalid one.
pub(super) fn parse(line: &[u8], rules: Rules, place: Place) -> Result<(Kind, Sample), String> {
    let line = super::unmarked(line);
    let text = std::str::from_utf8(line).map_err(|e| {
        let found = match e.error_len() {
            Some(_) => format!("{:#04x}", line[e.valid_up_to()]),
            None => "an unfinished character".into(),
        };
        format!("expected UTF-8, found {found} at byte {} (counted from 0)", e.valid_up_to())
    })?;
    let value = serde_json::from_str(text).map_err(|e| {
        // A sample is one line, so the error's line says nothing.
        let whole = e.to_string();
        let found = whole.split(" at line ").next().unwrap_or_default();
        format!("expected a JSON object, found none: {found}, column {}", e.column())
    })?;
    let Value::Object(mut keys) = value else {
        return Err(format!("expected a JSON object, found {}", found(&value)));
    };
    let has = |key| keys.contains_key(key);
    let kind = match (has("query"), has("document"), has("text")) {
        (true, false, false) => Kind::Pairs,
        (false, false, true) => Kind::Texts,
        (false, true, true) => Kind::Documents,
        (true, ..) => {
            return Err("expected \"query\" alone, found \"document\" or \"text\" too".into());
        }
        (_, true, _) => {
            return Err("expected a key \"text\" beside \"document\", found none".into());
        }
        _ => return Err("expected a key \"query\" or \"text\", found neither".into()),
    };
    let sample = match kind {
        Kind::Pairs => Sample::Pair(pair(&mut keys, rules, place)?),
        Kind::Texts => {
            Sample::Generative(Generative { document: None, spoken: spoken(&mut keys)?, place })
        }
        Kind::Documents => {
            let document = passage(keys.remove("document"), "\"document\"", rules.chars)?;
            let spoken = spoken(&mut keys)?;
            if let Spoken::Text(_) = spoken {
                let problem =
                    "\"text\": expected a list of texts beside \"document\", found a text";
                return Err(problem.into());
            }
            Sample::Generative(Generative { document: Some(document), spoken, place })
        }
    };
    Ok((kind, sample))
}

fn pair(keys: &mut Map<String, Value>, rules: Rules, place: Place) -> Result<Pair, String> {
    let query = passage(keys.remove("query"), "\"query\"", rules.chars)?;
    let positives = passages(keys, "pos", rules.chars)?;
    if positives.is_empty() {
        return Err("\"pos\": expected at least one text, found an empty list".into());
    }
    // A group of one is a positive passage alone.
    let negatives = match rules.group {
        0 | 1 if !keys.contains_key("neg") => Vec::new(),
        _ => passages(keys, "neg", rules.chars)?,
    };
    if negatives.is_empty() && rules.group > 1 {
        let group = rules.group;
        return Err(format!(
            "\"neg\": expected at least one text for a group of {group} passages, found an \
             empty list"
        ));
    }
    Ok(Pair { query, positives, negatives, place })
}

fn passages(
    keys: &mut Map<String, Value>,
    key: &str,
    chars: usize,
) -> Result<Vec<Passage>, String> {
    let values = match keys.remove(key) {
        Some(Value::Array(values)) => values,
        other => {
            return Err(format!(
                "\"{key}\": expected a list of texts, found {}",
                maybe(other.as_ref())
            ));
        }
    };
    let one = |(i, value)| passage(Some(value), &format!("\"{key}\"[{i}]"), chars);
    values.into_iter().enumerate().map(one).collect()
}

fn passage(value: Option<Value>, at: &str, chars: usize) -> Result<Passage, String> {
    let expected =
        |found: &str| format!("{at}: expected a text or [instruction, text], found {found}");
    let (instruction, text) = match value {
        Some(Value::String(text)) => (String::new(), text),
        Some(Value::Array(parts)) => {
            let count = parts.len();
            match <[Value; 2]>::try_from(parts) {
                Ok([Value::String(instruction), Value::String(text)]) => (instruction, text),
                Ok([Value::String(_), other] | [other, _]) => {
                    return Err(expected(&format!("{} in the list", found(&other))));
                }
                Err(_) => return Err(expected(&format!("a list of {count}"))),
            }
        }
        other => return Err(expected(&maybe(other.as_ref()))),
    };
    let instruction = cut(instruction.trim_matches(['\t', '\n', ' ', ':']), chars).into();
    Ok(Passage { instruction, text: cut(&text, chars).into() })
}

fn spoken(keys: &mut Map<String, Value>) -> Result<Spoken, String> {
    let values = match keys.remove("text") {
        Some(Value::String(text)) => return Ok(Spoken::Text(text)),
        Some(Value::Array(values)) => values,
        other => {
            let found = maybe(other.as_ref());
            return Err(format!("\"text\": expected a text or a list of texts, found {found}"));
        }
    };
    let text = |(i, value)| match value {
        Value::String(text) => Ok(text),
        other => Err(format!("\"text\"[{i}]: expected a text, found {}", found(&other))),
    };
    let turns: Vec<String> = values.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let pairs = "expected the user's texts, each with the assistant's answer";
    match turns.len() {
        0 => Err(format!("\"text\": {pairs}, found an empty list")),
        count if count % 2 == 1 => {
            Err(format!("\"text\": {pairs}, found {count} texts: the last has no answer"))
        }
        _ => {
            let mut turns = turns.into_iter();
            let pairs = std::iter::from_fn(|| turns.next().zip(turns.next()));
            Ok(Spoken::Turns(pairs.collect()))
        }
    }
}

/// Returns the first `chars` characters.
fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}

/// Returns what a value is, with its article.
fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn maybe(value: Option<&Value>) -> String {
    value.map_or("no such key", found).into()
}
