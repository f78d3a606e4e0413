//! Checkpoints saved from the bare model, without the causal model's `model.` or `lm_head`: they
//! embed, and generation says why it cannot. And Git LFS pointers in place of files.

use crate::bad_input::Broken;
use crate::cli::run;
use crate::serve::Server;
use crate::support::data;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
const MODELS: [&str; 3] = ["mistral-odd", "mistral-tiny", "mixtral-tiny"];

/// A name in the bare model's checkpoint.
fn bare(name: &str) -> Option<String> {
    (name != HEAD).then(|| name.strip_prefix("model.").unwrap().into())
}

/// A name where only the head is missing.
fn headless(name: &str) -> Option<String> {
    (name != HEAD).then(|| name.into())
}

/// A name where only the prefix is missing.
fn unprefixed(name: &str) -> Option<String> {
    Some(name.strip_prefix("model.").unwrap_or(name).into())
}

type Rename = fn(&str) -> Option<String>;

/// A copy of a checkpoint with other names, in one file or several.
fn renamed(model: &str, rename: Rename, shards: usize) -> Broken {
    let folder = Broken::new(model);
    let bytes = folder.read(WEIGHTS);
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let tensors: Vec<(String, TensorView<'_>)> =
        tensors.into_iter().filter_map(|(name, view)| Some((rename(&name)?, view))).collect();
    if shards == 1 {
        safetensors::serialize_to_file(tensors, None, &folder.path(WEIGHTS)).unwrap();
        return folder;
    }
    fs::remove_file(folder.path(WEIGHTS)).unwrap();
    let mut map = BTreeMap::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-0000{}-of-0000{shards}.safetensors", i + 1);
        let views = part.iter().map(|(name, view)| (name, view));
        safetensors::serialize_to_file(views, None, &folder.path(&file)).unwrap();
        map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    folder.write(INDEX, index.to_string());
    folder
}

fn path(model: &Broken) -> &str {
    model.folder.path().to_str().unwrap()
}

fn open(path: &str) -> Engine {
    Engine::open(path, &Options::default().device(Device::Cpu)).unwrap()
}

fn say(engine: &Engine) -> String {
    let how = Sampling::greedy().max_tokens(8);
    let answer = engine.generate(&Prompt::user("Who?"), &how).unwrap();
    answer.map(|piece| piece.unwrap().text).collect()
}

#[test]
fn embeddings_are_the_whole_models() {
    let texts = ["who wrote it?", "a text", "日本"];
    let how = Embed::with_instruction("Find it.");
    for model in MODELS {
        let whole = open(data(model).to_str().unwrap());
        let expected = whole.embed(&texts, &how).unwrap();
        for rename in [bare as Rename, headless, unprefixed] {
            for shards in [1, 2, 3] {
                let folder = renamed(model, rename, shards);
                let engine = open(path(&folder));
                assert_eq!(engine.embed(&texts, &how).unwrap(), expected, "{model}, {shards}");
                if rename("lm_head.weight").is_some() {
                    assert_eq!(say(&engine), say(&whole));
                }
            }
        }
        // A tied head is the embedding table, which is there.
        let tied = renamed(model, bare, 1);
        tied.config("tie_word_embeddings", Some(json!(true)));
        let named = renamed(model, headless, 1);
        named.config("tie_word_embeddings", Some(json!(true)));
        assert_eq!(say(&open(path(&tied))), say(&open(path(&named))));
    }
}

#[test]
fn generation_says_why_not() {
    for (model, shards) in [("mistral-odd", 1), ("mistral-tiny", 2), ("mixtral-tiny", 1)] {
        let folder = renamed(model, bare, shards);
        // The two words that ranking needs are not what is missing.
        let tokenizer = String::from_utf8(folder.read("tokenizer.json")).unwrap();
        let tokenizer = tokenizer.replace("<unused100>", "▁yes").replace("<unused101>", "▁no");
        folder.write("tokenizer.json", tokenizer);
        let why = ["lm_head.weight", "only embed"];
        let engine = open(path(&folder));
        let error = engine.generate(&Prompt::user("Who?"), &Sampling::greedy()).err().unwrap();
        let error = error.to_string();
        assert!(why.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        assert!(engine.chat().say("Who?", &Sampling::greedy()).is_err());
        assert_eq!(engine.rerank("who?", &["he"]).unwrap_err().to_string(), error);
        for want in [Want::Logits, Want::AllLogits] {
            let mut cache = engine.cache();
            let mask = engine.generation_mask();
            let sequence = Sequence { tokens: &[1, 5, 6], cache: &mut cache, mask, want };
            assert_eq!(engine.run(&mut [sequence]).unwrap_err().to_string(), error);
            // Nothing has changed.
            assert_eq!(cache.tokens(), 0);
            let want = Want::Hidden;
            let sequence = Sequence { tokens: &[1, 5, 6], cache: &mut cache, mask, want };
            assert!(matches!(engine.run(&mut [sequence]).unwrap()[..], [Output::Hidden(_)]));
        }
        let model = ["--model", path(&folder), "--device", "cpu"];
        let program = |args: &[&str]| run(&[args, &model].concat(), "Who?\n");
        program(&["generate", "--prompt", "Who?"]).fails(1, &why);
        program(&["generate", "--raw", "--prompt", "Who?", "--logprobs", "2"]).fails(1, &why);
        program(&["chat"]).fails(1, &why);
        program(&["rerank", "who?", "he", "she"]).fails(1, &why);
        program(&["embed", "--format", "json", "Who?"]).ok();
        program(&["similarity", "who?", "he"]).ok();
        assert!(program(&["inspect"]).ok().contains("only embed"));
    }
}

#[test]
fn a_server_embeds_and_refuses_the_rest() {
    let folder = renamed("mistral-odd", bare, 1);
    let tokenizer = String::from_utf8(folder.read("tokenizer.json")).unwrap();
    let tokenizer = tokenizer.replace("<unused100>", "▁yes").replace("<unused101>", "▁no");
    folder.write("tokenizer.json", tokenizer);
    let server = Server::start(&["--model", path(&folder)]);
    let input = json!({"input": ["who wrote it?", "a text"]});
    let found = server.post("/v1/embeddings", &input).ok();
    let whole = open(data("mistral-odd").to_str().unwrap());
    let expected = whole.embed(&["who wrote it?", "a text"], &Embed::default()).unwrap();
    for (object, expected) in found["data"].as_array().unwrap().iter().zip(&expected) {
        let vector: Vec<f32> = serde_json::from_value(object["embedding"].clone()).unwrap();
        assert_eq!(vector, expected.vector);
    }
    let messages = json!([{"role": "user", "content": "Who?"}]);
    let chat = |more: Value| {
        let mut body = json!({"messages": messages, "max_tokens": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (path, body) in [
        ("/v1/chat/completions", chat(json!({}))),
        ("/v1/chat/completions", chat(json!({"stream": true, "n": 2}))),
        ("/v1/chat/completions", chat(json!({"response_format": {"type": "json_object"}}))),
        ("/v1/completions", json!({"prompt": "Who?"})),
        ("/v1/completions", json!({"prompt": [[1, 5], [1, 6]], "logprobs": 1, "stream": true})),
        ("/rerank", json!({"query": "who?", "texts": ["he", "she"]})),
        ("/v2/rerank", json!({"query": "who?", "documents": ["he", "she"]})),
    ] {
        server.post(path, &body).fails(400, &["lm_head.weight", "only embed"]);
    }
    // It goes on as before.
    assert_eq!(server.post("/v1/embeddings", &input).ok(), found);
}

#[test]
fn what_is_wrong_is_named_as_in_the_file() {
    let norm = "layers.1.input_layernorm.weight";
    let short: Rename = |name| bare(name).filter(|name| name != "layers.1.input_layernorm.weight");
    for shards in [1, 2] {
        let folder = renamed("mistral-odd", short, shards);
        folder.fails(&[norm, "found nothing"]);
        let error = Engine::open(path(&folder), &Options::default()).err().unwrap().to_string();
        assert!(!error.contains("model.layers"), "{error}");
    }
    let surplus: Rename = |name| Some(if name == HEAD { "score".into() } else { bare(name)? });
    renamed("mistral-odd", surplus, 1).fails(&["tensor score", "surplus"]);
    let folder = renamed("mistral-odd", bare, 1);
    folder.config("vocab_size", Some(json!(390)));
    folder.fails(&["tensor embed_tokens.weight", "[390, 160]", "[389, 160]"]);
    // Neither a bare model nor a whole one.
    let mixed: Rename = |name| {
        let bare = bare(name)?;
        Some(if bare.starts_with("layers.1") { name.into() } else { bare })
    };
    renamed("mistral-odd", mixed, 1).fails(&["tensor layers.1", "found nothing"]);
}

#[test]
fn git_lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff\
                   69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 14483464192\n";
    let what = ["Git LFS pointer", "git lfs pull"];
    for file in ["config.json", "tokenizer.json", WEIGHTS, "generation_config.json"] {
        let folder = Broken::odd();
        folder.write(file, pointer).fails(&[&[file], &what[..]].concat());
    }
    for file in [INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let folder = renamed("mistral-odd", headless, 2);
        folder.write(file, pointer).fails(&[&[file], &what[..]].concat());
    }
}
