//! Bounds how much a `tokenizer.json` can expand a text, before any text is tokenized.
//!
//! A tokenizer's steps are data: forty steps that double each letter turn one byte into 2⁴⁰. A
//! trial text would not reveal what a malicious file hides, so this module derives each step's
//! worst case from its definition and multiplies them. Published tokenizers need little: Llama's
//! and Mistral's make up to 12 bytes of one (a space in front, `▁` for spaces), SmolLM2's 2,
//! Qwen's 6, BERT's 7.5, and T5's, whose table expands ligatures, 66.

use super::{charsmap, guarded};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// Maximum bytes that one byte may become.
const MOST: f64 = 100.0;
/// Maximum steps of a part; each step reads the whole text.
const STEPS: usize = 64;
/// Maximum characters of a word in WordPiece, which tries all its substrings at cubic cost.
const WORD: u64 = 200;
/// Maximum bytes of an affix, which a model adds to each character or word that it looks up.
const AFFIX: usize = 64;
/// Largest growth of a character by decomposition, in UTF-8: canonical (U+0390 or U+1D160) and
/// compatibility (U+FDFA).
const CANONICAL: f64 = 3.0;
const COMPATIBLE: f64 = 11.0;
/// Largest growth by lower case: `Ⱥ` has two bytes and becomes three.
const LOWERCASE: f64 = 1.5;
/// Growth of a Chinese character, which gets a space on either side.
const SPACED: f64 = 5.0 / 3.0;

/// The parts of the file that transform text.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Option<Model>,
}

/// Fields of the model that bound the cost of a word, whatever the vocabulary.
#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    max_input_chars_per_word: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
}

impl Model {
    fn check(&self) -> Result<(), String> {
        let characters = self.max_input_chars_per_word.as_u64();
        if let Some(found) = characters.filter(|&found| found > WORD) {
            return Err(format!(
                "model: max_input_chars_per_word: expected at most {WORD}, found {found}"
            ));
        }
        for (field, affix) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            let bytes = affix.as_str().map_or(0, str::len);
            if bytes > AFFIX {
                return Err(format!(
                    "model: {field}: expected at most {AFFIX} bytes, found {bytes}"
                ));
            }
        }
        Ok(())
    }
}

/// Refuses a `tokenizer.json` whose steps could expand a text too much.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(text).map_err(|e| format!("not a tokenizer: {e}"))?;
    parts.model.as_ref().map_or(Ok(()), Model::check)?;
    // All steps of a normalizer see the same piece of text, one after the other. Each step of a
    // pre-tokenizer may see pieces of one byte, and put something in front of each.
    let normalizer = Steps::of::<NormalizerWrapper>("normalizer", &parts.normalizer)?;
    let mut growth = normalizer.follow(Growth::NONE, normal)?;
    growth = Growth { times: growth.worst(), plus: 0.0 };
    let pre_tokenizer = Steps::of::<PreTokenizerWrapper>("pre_tokenizer", &parts.pre_tokenizer)?;
    let apart =
        |step: &Value| pre_token(step).map(|growth| Growth { times: growth.worst(), plus: 0.0 });
    growth = pre_tokenizer.follow(growth, apart)?;
    let processor = Steps::of::<PostProcessorWrapper>("post_processor", &parts.post_processor)?;
    processor.follow(growth, process)?;
    let decoder = Steps::of::<DecoderWrapper>("decoder", &parts.decoder)?;
    decoder.follow(Growth::NONE, decode)?;
    Ok(())
}

/// Bound on growth: n bytes become at most `times` · n + `plus`.
#[derive(Clone, Copy, Debug)]
struct Growth {
    times: f64,
    plus: f64,
}

impl Growth {
    const NONE: Self = Self::times(1.0);

    const fn times(times: f64) -> Self {
        Self { times, plus: 0.0 }
    }

    fn then(self, next: Self) -> Self {
        Self { times: self.times * next.times, plus: self.plus * next.times + next.plus }
    }

    /// Returns the growth of a text of one byte, which grows most.
    fn worst(self) -> f64 {
        self.times + self.plus
    }
}

/// The steps of a part, with nested sequences flattened.
struct Steps {
    part: &'static str,
    steps: Vec<Value>,
}

impl Steps {
    /// Parses the steps with the crate, which accepts older forms of most, and keeps today's
    /// form.
    fn of<T: DeserializeOwned + Serialize>(
        part: &'static str,
        value: &Value,
    ) -> Result<Self, String> {
        let wrong = |problem: String| format!("{part}: {problem}");
        // Check before the crate parses them: it would reserve the memory that a table claims,
        // and compile patterns.
        count(value).map_err(wrong)?;
        charsmap::check(value).map_err(wrong)?;
        let read = guarded(|| Ok(Option::<T>::deserialize(value)?))
            .map_err(|e| format!("not a tokenizer: {part}: {e}"))?;
        let today = serde_json::to_value(read).map_err(|e| wrong(e.to_string()))?;
        let mut steps = Vec::new();
        flatten(today, &mut steps);
        Ok(Self { part, steps })
    }

    /// Returns the growth after all steps, or an error that names the first step beyond the
    /// limit.
    fn follow(
        &self,
        mut growth: Growth,
        of: impl Fn(&Value) -> Result<Growth, String>,
    ) -> Result<Growth, String> {
        for (number, step) in (1..).zip(&self.steps) {
            let (part, kind, steps) = (self.part, text(step, "type"), self.steps.len());
            let named = |problem| format!("{part}: step {number} of {steps}, {kind}: {problem}");
            growth = growth.then(of(step).map_err(named)?);
            let worst = growth.worst();
            if worst > MOST {
                let found = format!("{worst:.0} with this one");
                return Err(named(format!(
                    "expected steps that make at most {MOST} bytes of one, found {found}"
                )));
            }
        }
        Ok(growth)
    }
}

/// Refuses a part with too many steps.
fn count(value: &Value) -> Result<(), String> {
    let mut steps = 0;
    let mut waiting: Vec<&Value> = inner(value).collect();
    while let Some(step) = waiting.pop() {
        steps += 1;
        if steps > STEPS {
            return Err(format!("expected at most {STEPS} steps, found more"));
        }
        waiting.extend(inner(step));
    }
    Ok(())
}

/// Returns the steps within a sequence.
fn inner(sequence: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["normalizers", "pretokenizers", "decoders", "processors"];
    lists.into_iter().filter_map(|name| sequence.get(name)?.as_array()).flatten()
}

fn flatten(step: Value, steps: &mut Vec<Value>) {
    if step.is_null() {
        return;
    }
    match text(&step, "type") {
        "Sequence" => inner(&step).for_each(|step| flatten(step.clone(), steps)),
        _ => steps.push(step),
    }
}

fn normal(step: &Value) -> Result<Growth, String> {
    let is = |field: &str| step[field] == Value::Bool(true);
    Ok(match text(step, "type") {
        "BertNormalizer" => {
            let accents =
                is("strip_accents") || (step["strip_accents"].is_null() && is("lowercase"));
            let factors = [
                (is("handle_chinese_chars"), SPACED),
                (accents, CANONICAL),
                (is("lowercase"), LOWERCASE),
            ];
            let factors = factors.into_iter().filter(|(done, _)| *done);
            Growth::times(factors.map(|(_, factor)| factor).product())
        }
        "Strip" | "StripAccents" | "Nmt" => Growth::NONE,
        "NFC" | "NFD" => Growth::times(CANONICAL),
        "NFKC" | "NFKD" => Growth::times(COMPATIBLE),
        "Lowercase" => Growth::times(LOWERCASE),
        "Precompiled" => Growth::times(charsmap::growth(text(step, "precompiled_charsmap"))?),
        "Replace" => replace(step)?,
        "Prepend" => Growth { times: 1.0, plus: text(step, "prepend").len() as f64 },
        "ByteLevel" => Growth::times(2.0),
        _ => return Err(unknown()),
    })
}

fn pre_token(step: &Value) -> Result<Growth, String> {
    Ok(match text(step, "type") {
        // A letter of its alphabet has one or two bytes.
        "ByteLevel" if step["add_prefix_space"] == Value::Bool(true) => {
            Growth { times: 2.0, plus: 2.0 }
        }
        "ByteLevel" => Growth::times(2.0),
        "Metaspace" => {
            let times = text(step, "replacement").len().max(1) as f64;
            // The replacement is prepended only to a character that is not a space and so does
            // not grow.
            let plus = if text(step, "prepend_scheme") == "never" { 0.0 } else { 1.0 };
            Growth { times, plus }
        }
        "FixedLength" if step["length"] == 0 => {
            return Err("length: expected at least 1, found 0".into());
        }
        "BertPreTokenizer" | "CharDelimiterSplit" | "Digits" | "FixedLength" | "Punctuation"
        | "Split" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => Growth::NONE,
        _ => return Err(unknown()),
    })
}

/// Returns the growth of a post-processor's step, from tokens to tokens.
fn process(step: &Value) -> Result<Growth, String> {
    match text(step, "type") {
        "BertProcessing" | "ByteLevel" | "RobertaProcessing" => Ok(Growth::NONE),
        "TemplateProcessing" => {
            let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
            let texts = pieces.iter().filter_map(|piece| piece.get("Sequence"));
            let ids: Vec<&str> = texts.map(|sequence| text(sequence, "id")).collect();
            match ids.iter().find(|id| **id != "A") {
                Some(id) => Err(format!("single: expected the text A only, found {id}")),
                None => Ok(Growth::times(ids.len().max(1) as f64)),
            }
        }
        _ => Err(unknown()),
    }
}

/// Returns the growth of a decoder's step, from a token to its part of a text.
fn decode(step: &Value) -> Result<Growth, String> {
    Ok(match text(step, "type") {
        // An empty suffix or delimiter matches in front of every letter.
        "BPEDecoder" if text(step, "suffix").is_empty() => Growth { times: 2.0, plus: 1.0 },
        "CTC" if text(step, "word_delimiter_token").is_empty() => Growth { times: 2.0, plus: 1.0 },
        "BPEDecoder" | "ByteFallback" | "CTC" | "Fuse" | "Metaspace" => Growth::NONE,
        // With `stop`, the crate would count past a token's beginning.
        "Strip" if step["stop"] != 0 => {
            return Err(format!("stop: expected 0, found {}", step["stop"]));
        }
        "Strip" => Growth::NONE,
        // A letter of two bytes decodes to one byte, which may become U+FFFD, of three bytes.
        "ByteLevel" => Growth::times(1.5),
        "Replace" => replace(step)?,
        "WordPiece" => Growth { times: 1.0, plus: 1.0 },
        _ => return Err(unknown()),
    })
}

fn replace(step: &Value) -> Result<Growth, String> {
    let content = text(step, "content").len() as f64;
    let pattern = &step["pattern"];
    let shortest = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(text), _) => text.len(),
        // A pattern that does not parse here (look-around, back-references) may match the empty
        // string.
        (_, Some(pattern)) => regex_syntax::parse(pattern)
            .map_or(0, |hir| hir.properties().minimum_len().unwrap_or(usize::MAX)),
        _ => return Err("pattern: expected String or Regex".into()),
    };
    Ok(match shortest {
        // The empty string matches between any two bytes and at both ends.
        0 => Growth { times: 1.0 + content, plus: content },
        shortest => Growth::times((content / shortest as f64).max(1.0)),
    })
}

/// Returns a field's text; empty where it is not a string.
fn text<'a>(step: &'a Value, field: &str) -> &'a str {
    step[field].as_str().unwrap_or_default()
}

fn unknown() -> String {
    "expected a kind whose growth is known".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{NormalizedString, Normalizer};

    /// Checks that no character grows by more than the constants say.
    #[test]
    fn characters_grow_as_the_table_says() {
        let bert = r#"{"type": "BertNormalizer", "clean_text": true, "strip_accents": null,
            "handle_chinese_chars": true, "lowercase": true}"#;
        let kinds = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel"];
        let kinds = kinds.map(|kind| format!(r#"{{"type": "{kind}"}}"#));
        for kind in kinds.iter().map(String::as_str).chain([bert]) {
            let step: Value = serde_json::from_str(kind).unwrap();
            let normalizer: NormalizerWrapper = serde_json::from_str(kind).unwrap();
            let most = normal(&step).unwrap().worst();
            let mut found = 0.0_f64;
            for c in '\0'..=char::MAX {
                let mut text = NormalizedString::from(c.to_string());
                normalizer.normalize(&mut text).unwrap();
                found = found.max(text.get().len() as f64 / c.len_utf8() as f64);
            }
            assert!(
                found <= most && (found > 0.6 * most || kind == bert),
                "{kind}: {found} {most}"
            );
        }
    }
}
