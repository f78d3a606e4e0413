//! Texts as token ids: what `/tokenize` makes of a text embeds to that text's vector, with a
//! vocabulary whose tokenizer puts a space in front of each text, as Mistral's does.

use crate::serve::Server;
use crate::support::mistral_tokenizer;
use gritlm::model::config::Config;
use gritlm::{Device, Embed, Engine, Options, synth};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A small random model with Mistral's tokenizer.
fn mistral() -> TempDir {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let small = Config {
        dim: 64,
        hidden: 64,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        vocab: 32000,
        ..synth::shape("tiny").unwrap()
    };
    synth::write_config(&small, 3, &folder, u64::MAX, &mut |_, _| Ok(())).unwrap();
    std::fs::write(folder.join("tokenizer.json"), mistral_tokenizer()).unwrap();
    parent
}

fn path(model: &TempDir) -> String {
    model.path().join("model").to_str().unwrap().into()
}

fn open(model: &TempDir) -> Engine {
    Engine::open(&path(model), &Options::default().device(Device::Cpu)).unwrap()
}

const TEXTS: [&str; 16] = [
    "hello",
    "hello world, who wrote it?",
    " a space in front",
    "  two spaces in front, and behind  ",
    "\nnew\n\nlines\n",
    "\tdef f(x):\n        return x",
    " ",
    "a",
    "Böse Überraschung",
    "日本語 🎉 ﷽",
    "▁marked▁",
    "</s>ends first",
    "it ends </s> and goes on",
    "<s> begins <unk>",
    "the tags <|user|>\nwho?\n<|embed|>\n",
    "e\u{301}",
];
const INSTRUCTIONS: [&str; 3] = ["", "Given a question, retrieve passages", "日本 "];

#[test]
fn ids_embed_as_their_text() {
    let folder = mistral();
    let engine = open(&folder);
    let tokenizer = engine.tokenizer();
    for instruction in INSTRUCTIONS {
        let how = Embed::with_instruction(instruction);
        let encoded = engine.encode_texts(&TEXTS, &how).unwrap();
        let ids = TEXTS.map(|text| tokenizer.encode_continued(text).unwrap());
        let found = engine.encode_tokens(&ids, &how).unwrap();
        for ((text, found), expected) in TEXTS.iter().zip(&found).zip(&encoded) {
            assert_eq!(found, expected, "{text:?} after {instruction:?}");
        }
        // Ids that go on behind the tags already. (Where they begin with a space, they are those of
        // the text without it.)
        for (text, expected) in TEXTS.iter().zip(&encoded) {
            if !text.starts_with([' ', '▁']) {
                let found = engine.encode_tokens(&[&expected.tokens[expected.skip..]], &how);
                assert_eq!(
                    found.unwrap(),
                    std::slice::from_ref(expected),
                    "{text:?} after {instruction:?}"
                );
            }
        }
    }
}

#[test]
fn ids_that_are_no_text_stay_as_they_are() {
    let folder = mistral();
    let engine = open(&folder);
    let tokenizer = engine.tokenizer();
    let id = |token: &str| tokenizer.id(token).unwrap();
    let how = Embed::with_instruction("Find it.");
    let prefix = tokenizer.encode("<|user|>\nFind it.\n<|embed|>\n").unwrap();
    let world = id("▁world");
    for ids in [
        // A part of a character; another's end; a spelling that the tokenizer would not choose.
        vec![id("<0xE6>"), id("<0x97>")],
        vec![id("<0xA5>"), world],
        vec![id("h"), id("e"), id("l"), id("lo")],
        vec![id("<s>"), world],
        vec![id("</s>")],
        vec![id("<unk>"), id("<unk>")],
    ] {
        let found = engine.encode_tokens(&[&ids], &how).unwrap().remove(0);
        assert_eq!(found.tokens, [&prefix[..], &ids].concat());
        assert_eq!((found.skip, found.truncated), (prefix.len(), 0));
    }
    // Cut within a character: its beginning is a text's all the same.
    let japanese = tokenizer.encode_continued("hello 🫠").unwrap();
    let text = engine.encode_texts(&["hello 🫠"], &how).unwrap().remove(0);
    for cut in 1..4 {
        let ids = &japanese[..japanese.len() - cut];
        let found = engine.encode_tokens(&[ids], &how).unwrap().remove(0);
        assert_eq!(found.tokens, text.tokens[..text.tokens.len() - cut], "{cut}");
    }
    for wrong in [32000, u32::MAX] {
        let error = engine.encode_tokens(&[[5, wrong]], &how).unwrap_err().to_string();
        assert!(error.contains("below 32000") && error.contains(&wrong.to_string()), "{error}");
    }
    assert!(engine.encode_tokens(&[[0u32; 0]], &how).is_err());
}

#[test]
fn long_ids_are_cut_as_their_text() {
    let folder = mistral();
    let engine = open(&folder);
    for unit in ["word after word ", "日本語🫠", "    \n", "it ends </s> and "] {
        let text = unit.repeat(400);
        let ids = engine.tokenizer().encode_continued(&text).unwrap();
        for max_length in [8, 20, 21, 22, 23, 300, 5000] {
            let how = Embed::default().max_length(max_length);
            let expected = engine.encode_texts(&[&text], &how).unwrap().remove(0);
            let found = engine.encode_tokens(&[&ids], &how).unwrap().remove(0);
            let place = format!("{unit:?}, {max_length}");
            if text.len() <= engine.tokenizer().most_bytes(max_length) {
                assert_eq!(found, expected, "{place}");
                continue;
            }
            // Of a text far longer than what counts, what was cut off is counted in part.
            assert!((1..=found.truncated).contains(&expected.truncated), "{place}");
            assert_eq!((found.tokens, found.skip), (expected.tokens, expected.skip), "{place}");
        }
    }
}

#[test]
fn the_documented_way_gives_the_texts_vector() {
    let folder = mistral();
    let server = Server::start(&["--model", &path(&folder)]);
    let tokenize = |text: &str| {
        let body = json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true});
        server.post("/tokenize", &body).ok()
    };
    let ids: Vec<Value> = TEXTS.iter().map(|text| tokenize(text)["tokens"].clone()).collect();
    for instruction in INSTRUCTIONS {
        let ask = |input: Value| {
            let body = json!({"input": input, "instruction": instruction});
            server.post("/v1/embeddings", &body).ok()
        };
        let (texts, tokens) = (ask(json!(TEXTS)), ask(json!(ids)));
        assert_eq!(texts["usage"], tokens["usage"]);
        for (i, text) in TEXTS.iter().enumerate() {
            assert_eq!(texts["data"][i], tokens["data"][i], "{text:?} after {instruction:?}");
        }
        assert_eq!(ask(ids[1].clone())["data"][0]["embedding"], texts["data"][1]["embedding"]);
        let embed = |inputs: Value| {
            server.post("/embed", &json!({"inputs": inputs, "instruction": instruction})).ok()
        };
        assert_eq!(embed(json!(ids)), embed(json!(TEXTS)));
    }
    // Programs that evaluate continue these ids as Hugging Face's tokenizer makes them.
    assert_eq!(tokenize("hello")["token_strs"], json!(["▁hell", "o"]));
    let prompt = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0});
        server.post("/v1/completions", &body).ok()
    };
    let with_bos = server.post("/tokenize", &json!({"prompt": "hello"})).ok()["tokens"].clone();
    assert_eq!(prompt(with_bos)["choices"], prompt(json!("hello"))["choices"]);
    assert_eq!(prompt(ids[0].clone())["usage"]["prompt_tokens"], 2);
}
