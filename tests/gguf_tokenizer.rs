//! Tokenizers built from the metadata of GGUF files: the ids that llama.cpp gives, for every name
//! of a pre-tokenizer that has cases, and those of Mistral's own `tokenizer.json` from scores.

use crate::support::{data, mistral_tokenizer, smollm2};
use gritlm::model::config::{Config, Family};
use gritlm::model::gguf::{self, Metadata, Strings, Value};
use gritlm::model::tokenizer::Tokenizer;
use std::collections::BTreeMap;
use std::path::Path;

/// `tests/data/smollm2/cases.json`: texts, and ids by name.
fn cases() -> serde_json::Value {
    let text = std::fs::read(data("smollm2/cases.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn texts(cases: &serde_json::Value) -> Vec<&str> {
    cases["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn config(family: Family, vocab: usize) -> Config {
    let config = Config::open(&data("mistral-odd/config.json")).unwrap();
    Config { family, vocab, bos: 1, eos: vec![2], ..config }
}

/// Metadata of a tokenizer; keys are without their prefix.
fn metadata<'a>(values: impl IntoIterator<Item = (&'a str, Value)>) -> Metadata {
    let named = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    Metadata::new(Path::new("model.gguf"), values.into_iter().map(named).collect())
}

/// The tokenizer's values in the GGUF file of SmolLM2-135M, or `None` where the file is not here.
fn values_of_smollm2(test: &str) -> Option<BTreeMap<String, Value>> {
    let path = smollm2(&format!("gguf_tokenizer::{test}"))?;
    let bytes = std::fs::read(&path).unwrap();
    let contents = gguf::parse(&bytes, Path::new(&path)).unwrap();
    let own = |(key, value): (&str, &Value)| {
        Some((key.strip_prefix("tokenizer.ggml.")?.to_string(), value.clone()))
    };
    Some(contents.metadata.iter().filter_map(own).collect())
}

#[test]
fn smollm2_has_the_ids_of_llama_cpp() {
    let Some(own) = values_of_smollm2("smollm2_has_the_ids_of_llama_cpp") else { return };
    let (cases, config) = (cases(), config(Family::Llama, 49152));
    let mut names = 0;
    for (pre, expected) in cases.as_object().unwrap() {
        if ["texts", "mistral"].contains(&pre.as_str()) {
            continue;
        }
        names += 1;
        let mut values = own.clone();
        values.insert("pre".into(), Value::String(pre.clone()));
        let values = values.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let tokenizer = Tokenizer::from_gguf(&metadata(values), &config).unwrap();
        assert!(tokenizer.start().is_empty());
        for (index, text) in texts(&cases).into_iter().enumerate() {
            // Listed where they differ from the file's own.
            let ids = Some(&expected[index]).filter(|ids| !ids.is_null());
            let ids = ids.unwrap_or(&cases["smollm"][index]).clone();
            let ids: Vec<u32> = serde_json::from_value(ids).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{pre}: {text:?}");
        }
    }
    assert_eq!(names, 9);

    let values = own.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let tokenizer = Tokenizer::from_gguf(&metadata(values), &config).unwrap();
    assert_eq!((tokenizer.vocab(), tokenizer.id("<|im_end|>")), (49152, Some(2)));
    for text in ["Hello, world!", "  tabs\t\n\n", "日本語 🦀 é", "def f(x):\n    return 1\n"]
    {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let mut stream = tokenizer.stream();
        let said: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(said + &stream.finish().unwrap(), text);
    }
    assert_eq!(tokenizer.decode(&[1, 19556, 2]).unwrap(), "Hello");
    let spelled = tokenizer.encode_turn("<|im_end|>").unwrap();
    assert!(spelled.len() > 1 && !spelled.contains(&2));
}

/// Mistral's vocabulary as a GGUF file has it. Its scores fall with the ids, but runs of spaces
/// have the lowest.
fn mistral() -> BTreeMap<&'static str, Value> {
    let json: serde_json::Value = serde_json::from_slice(&mistral_tokenizer()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.as_str())).collect();
    tokens.sort_unstable();
    let kind = |&(id, _): &(u64, &str)| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    };
    let score = |&(id, token): &(u64, &str)| match token.strip_prefix('▁') {
        Some(more) if !more.is_empty() && more.chars().all(|c| c == '▁') => -1e9,
        _ => 259.0 - id.max(259) as f32,
    };
    BTreeMap::from([
        ("model", Value::String("llama".into())),
        ("tokens", Value::Strings(tokens.iter().map(|token| token.1).collect())),
        ("token_type", Value::Integers(tokens.iter().map(kind).collect())),
        ("scores", Value::Numbers(tokens.iter().map(score).collect())),
        ("bos_token_id", Value::U64(1)),
    ])
}

#[test]
fn scores_are_merges() {
    let (cases, config) = (cases(), config(Family::Llama, 32000));
    let json = mistral_tokenizer();
    let own = Tokenizer::parse(&json, Path::new("tokenizer.json"), &config).unwrap();
    let scored = Tokenizer::from_gguf(&metadata(mistral()), &config).unwrap();
    for (index, text) in texts(&cases).into_iter().enumerate() {
        let ids: Vec<u32> = serde_json::from_value(cases["mistral"][index].clone()).unwrap();
        assert_eq!(scored.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(own.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(scored.encode_turn(text).unwrap(), own.encode_turn(text).unwrap(), "{text:?}");
        assert_eq!(scored.decode(&ids).unwrap(), own.decode(&ids).unwrap(), "{text:?}");
        assert_eq!(scored.ends(text).unwrap(), own.ends(text).unwrap(), "{text:?}");
    }
    assert_eq!(scored.token_bytes().unwrap(), own.token_bytes().unwrap());

    // The same from a list of merges, which some files have.
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let pair = |pair: &serde_json::Value| {
        format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
    };
    let merges: Vec<String> =
        json["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    let mut values = mistral();
    values.remove("scores");
    values.insert("merges", Value::Strings(merges.iter().map(String::as_str).collect()));
    let merged = Tokenizer::from_gguf(&metadata(values), &config).unwrap();
    for text in texts(&cases) {
        assert_eq!(merged.encode(text).unwrap(), own.encode(text).unwrap(), "{text:?}");
    }
}

/// A byte-level vocabulary of a few tokens.
fn tiny() -> BTreeMap<&'static str, Value> {
    let tokens = ["<pad>", "<s>", "</s>", "a", "b", "Ġ", "ab", "Ġab", "<tool>"];
    BTreeMap::from([
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("gpt-2".into())),
        ("tokens", Value::Strings(tokens.into_iter().collect())),
        ("token_type", Value::Integers(vec![5, 3, 3, 1, 1, 1, 1, 1, 4])),
        ("merges", Value::Strings(["a b", "Ġ ab"].into_iter().collect())),
    ])
}

#[test]
fn what_goes_in_front() {
    let yes = |values: BTreeMap<&'static str, Value>, flag: bool| {
        let mut values = values;
        values.insert("add_bos_token", Value::Bool(flag));
        values
    };
    let pre = |name: &str| {
        let mut values = tiny();
        values.insert("pre", Value::String(name.into()));
        values
    };
    let small = config(Family::Llama, 9);
    for (values, config, expected) in [
        (tiny(), &small, &[][..]),
        (yes(tiny(), true), &small, &[1]),
        (yes(tiny(), false), &small, &[]),
        // Llama 3 and Nemo have it where their file does not say so.
        (pre("llama-bpe"), &small, &[1]),
        (pre("tekken"), &small, &[1]),
        (yes(pre("llama-bpe"), false), &small, &[]),
        (mistral(), &config(Family::Llama, 32000), &[1]),
        (yes(mistral(), false), &config(Family::Llama, 32000), &[]),
    ] {
        let tokenizer = Tokenizer::from_gguf(&metadata(values), config).unwrap();
        assert_eq!(tokenizer.start(), expected);
        let ids = [expected, &tokenizer.encode_continued("ab").unwrap()].concat();
        assert_eq!(tokenizer.encode("ab").unwrap(), ids);
    }

    // A Llama's tokenizer.json says it; a Mistral's does not matter.
    let json: serde_json::Value = serde_json::from_slice(&mistral_tokenizer()).unwrap();
    let bytes = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    for (post_processor, expected) in
        [(json["post_processor"].clone(), &[1][..]), (serde_json::Value::Null, &[]), (bytes, &[])]
    {
        let mut json = json.clone();
        json["post_processor"] = post_processor;
        let (text, path) = (json.to_string(), Path::new("tokenizer.json"));
        let parse = |family| Tokenizer::parse(text.as_bytes(), path, &config(family, 32000));
        assert_eq!(parse(Family::Llama).unwrap().start(), expected);
        assert_eq!(parse(Family::Mistral).unwrap().start(), [1]);
        assert_eq!(parse(Family::Mixtral).unwrap().start(), [1]);
    }
}

#[test]
fn kinds_of_tokens() {
    let tokenizer = Tokenizer::from_gguf(&metadata(tiny()), &config(Family::Llama, 9)).unwrap();
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(ids("ab ab"), [6, 7]);
    assert_eq!(ids("<s>ab<tool>ab</s>"), [1, 6, 8, 6, 2]);
    // What is special is not shown, what is the user's is.
    assert_eq!(tokenizer.decode(&[1, 6, 8, 7, 2]).unwrap(), "ab<tool> ab");
    // In a turn only the user's are tokens.
    assert_eq!(tokenizer.encode_turn("<s>ab<tool>").unwrap(), [6, 8]);
    // Tokens without a row of the model are left out, but for those that a text could ask for.
    let fewer = Tokenizer::from_gguf(&metadata(tiny()), &config(Family::Llama, 8)).unwrap();
    assert_eq!(fewer.encode("<tool>ab").unwrap(), [6]);
    let error = Tokenizer::from_gguf(&metadata(tiny()), &config(Family::Llama, 7));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("below vocab_size 7"), "{error}");
}

#[test]
fn bad_metadata_is_named() {
    let strings = |texts: &[&str]| Value::Strings(texts.iter().copied().collect());
    let text = |text: &str| Some(Value::String(text.into()));
    let (long, many) = ("x".repeat(1025), |n| Some(Value::Integers(vec![1; n])));
    let twice = strings(&["<pad>", "<s>", "</s>", "a", "b", "Ġ", "ab", "Ġab", "a"]);
    let too_long = strings(&["<pad>", "<s>", "</s>", "a", "b", "Ġ", "ab", "Ġab", &long]);
    let llama: &[(&str, Option<Value>)] = &[("model", text("llama")), ("merges", None)];
    let scores = |scores: Vec<f32>| [llama, &[("scores", Some(Value::Numbers(scores)))]].concat();
    for (changes, parts) in [
        (vec![("model", None)], &["model", "a string", "found nothing"][..]),
        (vec![("model", text("t5"))], &["model", "\"gpt2\" or \"llama\"", "found \"t5\""]),
        (vec![("model", Some(Value::U64(1)))], &["model", "a string", "found 1"]),
        (vec![("pre", text("nobody"))], &["pre", "one of default, gpt-2", "found \"nobody\""]),
        (vec![("tokens", None)], &["tokens", "an array of strings", "found nothing"]),
        (vec![("tokens", Some(Value::Strings(Strings::default())))], &["tokens", "at least one"]),
        (vec![("tokens", Some(twice))], &["tokens", "each token once", "\"a\" as 3 and as 8"]),
        (vec![("tokens", Some(too_long))], &["tokens", "at most 1024 bytes", "found one of 1025"]),
        (vec![("token_type", None)], &["token_type", "an array", "found nothing"]),
        (vec![("token_type", many(8))], &["token_type", "each of 9 tokens", "found 8"]),
        (vec![("token_type", Some(Value::Integers(vec![7; 9])))], &["from 1 to 6", "found 7"]),
        (vec![("merges", None)], &["merges", "an array of strings", "found nothing"]),
        (vec![("merges", Some(strings(&["a  b"])))], &["merges", "pairs of tokens", "\"a  b\""]),
        (vec![("merges", Some(strings(&["ab"])))], &["merges", "pairs of tokens", "\"ab\""]),
        (vec![("merges", Some(strings(&["b a"])))], &["merges", "that make a token", "\"b a\""]),
        (vec![("add_bos_token", text("yes"))], &["add_bos_token", "true or false"]),
        (llama.to_vec(), &["scores", "an array", "found nothing"]),
        (scores(vec![0.0; 3]), &["scores", "each of 9 tokens", "found 3"]),
        (scores(vec![f32::NAN; 9]), &["scores", "finite", "NaN"]),
        (scores(vec![0.0; 9]), &["tokens", "type 2", "<0x00>"]),
    ] {
        let mut values = tiny();
        for (key, value) in changes {
            match value {
                Some(value) => _ = values.insert(key, value),
                None => _ = values.remove(key),
            }
        }
        let error = Tokenizer::from_gguf(&metadata(values), &config(Family::Llama, 9));
        let error = error.err().unwrap_or_else(|| panic!("{parts:?}")).to_string();
        assert!(error.starts_with("model.gguf: ") && !error.contains('\n'), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    }
}
