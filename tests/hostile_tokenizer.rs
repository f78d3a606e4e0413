//! A `tokenizer.json` made by somebody else: none that could multiply a text is taken, whichever of
//! its parts does it; those that are published are.

use crate::cli::run;
use crate::support::{data, mistral_tokenizer};
use base64::{Engine, prelude::BASE64_STANDARD};
use gritlm::model::config::Config;
use gritlm::model::tokenizer::Tokenizer;
use gritlm::model::{Result, demo};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A small tokenizer in which some parts are other ones.
fn with(parts: Value) -> Value {
    let text = fs::read(data("mistral-tiny/tokenizer.json")).unwrap();
    let mut all: Value = serde_json::from_slice(&text).unwrap();
    let Value::Object(parts) = parts else { panic!("{parts}") };
    all.as_object_mut().unwrap().extend(parts);
    all
}

fn open(tokenizer: &Value) -> Result<Tokenizer> {
    let config = Config::open(&data("mistral-tiny/config.json")).unwrap();
    Tokenizer::parse(tokenizer.to_string().as_bytes(), Path::new("tokenizer.json"), &config)
}

#[track_caller]
fn is_refused(parts: Value, about: &[&str]) {
    let shown: String = parts.to_string().chars().take(200).collect();
    let Err(error) = open(&with(parts)) else { panic!("taken: {shown}") };
    let error = error.to_string();
    assert!(error.starts_with("tokenizer.json: ") && !error.contains('\n'), "{error}");
    for about in about {
        assert!(error.contains(about), "expected {about:?} in: {error}");
    }
}

#[track_caller]
fn is_taken(parts: Value) {
    let tokenizer = open(&with(parts)).unwrap_or_else(|e| panic!("{e}"));
    let ids = tokenizer.encode("a b é ﷺ 漢字").unwrap();
    tokenizer.decode(&ids).unwrap();
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

fn matching(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
}

fn in_a_row(part: &str, steps: Vec<Value>) -> Value {
    let list = match part {
        "normalizer" => "normalizers",
        "pre_tokenizer" => "pretokenizers",
        "post_processor" => "processors",
        _ => "decoders",
    };
    json!({"type": "Sequence", list: steps})
}

fn row(part: &str, steps: Vec<Value>) -> Value {
    json!({part: in_a_row(part, steps)})
}

/// Sequences in sequences.
fn nested(part: &str, depth: usize, step: &Value) -> Value {
    let inner = (0..depth).fold(step.clone(), |inner, _| in_a_row(part, vec![inner, step.clone()]));
    json!({part: inner})
}

#[test]
fn normalizers_that_multiply_are_refused() {
    let doubling = replace("a", "aa");
    let steps = |step: &Value, count| row("normalizer", vec![step.clone(); count]);
    is_refused(steps(&doubling, 40), &["normalizer: step 7 of 40, Replace: ", "100 bytes of one"]);
    is_refused(nested("normalizer", 7, &doubling), &["step 7 of 8, Replace", "found 128"]);
    let long = "b".repeat(101);
    // With how many letters each is taken; an empty match is at both ends of one.
    for (step, fits) in [
        (replace("a", &long), 100),
        (replace("", &long), 49),
        (matching("a*", &long), 49),
        (matching("(?=a)", &long), 49),
        (matching("a{2}|b", &long), 100),
        (json!({"type": "Prepend", "prepend": &long}), 99),
    ] {
        let kind = step["type"].as_str().unwrap();
        let field = if step["content"].is_null() { "prepend" } else { "content" };
        for (letters, taken) in [(fits, true), (fits + 1, false), (10_000, false)] {
            let mut step = step.clone();
            step[field] = "b".repeat(letters).into();
            match taken {
                true => is_taken(json!({"normalizer": step})),
                false => {
                    is_refused(json!({"normalizer": &step}), &["normalizer: step 1 of 1, ", kind]);
                }
            }
        }
    }
    is_refused(steps(&json!({"type": "Prepend", "prepend": "bbbb"}), 30), &["Prepend"]);
    is_refused(steps(&json!({"type": "NFKD"}), 2), &["step 2 of 2, NFKD", "found 121"]);
    is_refused(steps(&json!({"type": "Lowercase"}), 13), &["Lowercase"]);
    is_refused(
        steps(&json!({"type": "Strip", "strip_left": true, "strip_right": true}), 65),
        &["at most 64 steps"],
    );
}

#[test]
fn other_parts_that_multiply_are_refused() {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
    let all = in_a_row("pre_tokenizer", vec![bytes.clone(); 4]);
    let parts = json!({"normalizer": null, "pre_tokenizer": all});
    is_refused(parts, &["pre_tokenizer: step 4 of 4, ByteLevel", "found 256"]);
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    is_refused(nested("pre_tokenizer", 5, &metaspace), &["pre_tokenizer: ", "Metaspace"]);
    // Neither alone.
    let both = json!({"normalizer": replace("a", &"b".repeat(30)), "pre_tokenizer": bytes});
    is_refused(both, &["pre_tokenizer: step 1 of 1, ByteLevel", "found 120"]);

    is_refused(row("decoder", vec![replace("a", "aa"); 40]), &["decoder: step 7 of 40, Replace"]);
    let spaces = json!({"type": "BPEDecoder", "suffix": ""});
    is_refused(row("decoder", vec![spaces; 7]), &["BPEDecoder"]);
    is_refused(nested("decoder", 8, &matching("x?", "y")), &["decoder: ", "Replace"]);

    let template = |count, id| {
        let text = json!({"Sequence": {"id": id, "type_id": 0}});
        json!({"type": "TemplateProcessing", "single": vec![text; count], "pair": [],
            "special_tokens": {}})
    };
    is_refused(json!({"post_processor": template(101, "A")}), &["post_processor: ", "Template"]);
    let twice = in_a_row("post_processor", vec![template(11, "A"); 2]);
    is_refused(json!({"normalizer": null, "post_processor": twice}), &["found 121"]);
    is_refused(json!({"post_processor": template(1, "B")}), &["single: expected the text A"]);
    is_taken(json!({"post_processor": template(1, "A")}));
}

/// Added tokens are normalized as the file is read: these four letters would be four million.
#[test]
fn an_added_token_is_not_multiplied() {
    let token = json!({"id": 383, "content": "aaaa", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": true, "special": false});
    let mut parts = row("normalizer", vec![replace("a", "aa"); 20]);
    parts["added_tokens"] = json!([token]);
    is_refused(parts, &["normalizer: step 7 of 20, Replace"]);
}

/// As fuzzing found them: the crate panics on these.
#[test]
fn steps_that_have_no_meaning_are_refused() {
    let strip = |stop| json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
    for stop in [1, 2, 1000] {
        is_refused(json!({"decoder": strip(stop)}), &["decoder: step 1 of 1, Strip", "stop"]);
        is_refused(row("decoder", vec![json!({"type": "Fuse"}), strip(stop)]), &["step 2 of 2"]);
    }
    is_taken(json!({"decoder": strip(0)}));
    let pieces = |length: u32| json!({"type": "FixedLength", "length": length});
    let refused = row("pre_tokenizer", vec![pieces(3), pieces(0)]);
    is_refused(refused, &["pre_tokenizer: step 2 of 2, FixedLength: length: expected at least 1"]);
    is_taken(json!({"pre_tokenizer": pieces(1)}));
}

/// A table that replaces `a` by one of the texts, which begins at this byte.
fn table(texts: &str, at: u32) -> Vec<u8> {
    let mut trie = [0_u32; 512];
    trie[0] = 1 << 10;
    trie[1 ^ 97] = 97 | 1 << 8 | (1 ^ 97 ^ 256) << 10;
    trie[256] = 1 << 31 | at;
    let trie: Vec<u8> = trie.into_iter().flat_map(u32::to_le_bytes).collect();
    [&2048_u32.to_le_bytes(), &trie[..], texts.as_bytes()].concat()
}

#[test]
fn tables_of_characters_are_looked_through() {
    let precompiled = |table: &[u8]| {
        let table = BASE64_STANDARD.encode(table);
        json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}})
    };
    is_taken(precompiled(&table("bc\0", 0)));
    is_taken(precompiled(&table("é\0bc", 3)));
    let long = "b".repeat(101);
    is_refused(precompiled(&table(&long, 0)), &["Precompiled", "found 101"]);
    is_refused(precompiled(&table("bc\0", 4)), &["precompiled_charsmap", "found byte 4"]);
    is_refused(precompiled(&table("é\0", 1)), &["found byte 1"]);
    let mut claims = table("bc\0", 0);
    claims[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    is_refused(precompiled(&claims), &["a trie of 4294967295 bytes"]);
    is_refused(precompiled(&[0; 4]), &["past the trie's end"]);
    is_refused(precompiled(b"ab"), &["it has no size"]);
    is_refused(json!({"normalizer": {"type": "Precompiled"}}), &["a table, found none"]);
    let mut beyond = table("bc\0", 0);
    beyond[4..8].copy_from_slice(&(5_u32 << 20).to_le_bytes());
    is_refused(precompiled(&beyond), &["past the trie's end"]);
}

#[test]
fn words_that_cost_too_much_are_refused() {
    let piece = |characters: u64, prefix: &str| {
        let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3});
        json!({"model": {"type": "WordPiece", "unk_token": "<unk>", "vocab": vocab,
            "continuing_subword_prefix": prefix, "max_input_chars_per_word": characters}})
    };
    is_taken(piece(200, "##"));
    for characters in [201, 1_000_000_000, u64::MAX] {
        is_refused(piece(characters, "##"), &["max_input_chars_per_word: expected at most 200"]);
    }
    is_refused(piece(100, &"#".repeat(65)), &["continuing_subword_prefix: ", "found 65"]);
    let pairs = |suffix: &str, token: &str| {
        let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, token: 3});
        json!({"model": {"type": "BPE", "vocab": vocab, "merges": [],
            "unk_token": "<unk>", "end_of_word_suffix": suffix}})
    };
    is_taken(pairs("</w>", "a"));
    is_refused(pairs(&"w".repeat(1_000_000), "a"), &["end_of_word_suffix: ", "found 1000000"]);
    is_taken(pairs("", &"a".repeat(1024)));
    for bytes in [1025, 100_000] {
        is_refused(pairs("", &"a".repeat(bytes)), &["tokens of at most 1024 bytes, found one of"]);
    }
}

/// The steps of tokenizers that are published.
#[test]
fn published_tokenizers_are_taken() {
    let config = Config::parse(demo::CONFIG, Path::new("config.json")).unwrap();
    Tokenizer::parse(demo::TOKENIZER, Path::new("tokenizer.json"), &config).unwrap();
    for name in ["mistral-tiny", "mixtral-tiny", "mistral-odd"] {
        let config = Config::open(&data(name).join("config.json")).unwrap();
        Tokenizer::open(&data(name).join("tokenizer.json"), &config).unwrap();
    }
    let config = Config { vocab: 32000, ..config };
    Tokenizer::parse(&mistral_tokenizer(), Path::new("tokenizer.json"), &config).unwrap();
    let llama = vec![json!({"type": "Prepend", "prepend": "▁"}), replace(" ", "▁")];
    is_taken(row("normalizer", llama));
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let smollm = vec![digits, bytes.clone()];
    is_taken(json!({"pre_tokenizer": in_a_row("pre_tokenizer", smollm), "decoder": bytes}));
    let split = json!({"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+(?!\S)|\s+"},
        "behavior": "Isolated", "invert": false});
    let qwen = in_a_row("pre_tokenizer", vec![split, bytes]);
    is_taken(json!({"normalizer": {"type": "NFC"}, "pre_tokenizer": qwen}));
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "strip_accents": null,
        "handle_chinese_chars": true, "lowercase": true});
    let words = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let before = json!({"type": "BertPreTokenizer"});
    is_taken(json!({"normalizer": bert, "pre_tokenizer": before, "decoder": words}));
    // Eleven bytes of one, as in the table of T5.
    let table = BASE64_STANDARD.encode(table("bbbbbbbbbbb", 0));
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": table});
    let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
    let t5 = vec![precompiled, strip, matching(" {2,}", "▁")];
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    is_taken(json!({"normalizer": in_a_row("normalizer", t5), "pre_tokenizer": metaspace}));
}

#[test]
fn the_program_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(data("mistral-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let parts = row("normalizer", vec![replace("e", "ee"); 40]);
    fs::write(folder.path().join("tokenizer.json"), with(parts).to_string()).unwrap();
    let model = folder.path().to_str().unwrap();
    for command in [
        &["generate", "--prompt", "here"][..],
        &["embed", "here"],
        &["similarity", "here", "there"],
    ] {
        let ran = run(&[command, &["--model", model, "--device", "cpu"]].concat(), "");
        ran.fails(1, &["tokenizer.json: normalizer: step 7 of 40, Replace: expected"]);
    }
}
