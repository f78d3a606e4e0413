//! Spaces of completions: a prompt and its continuation are one text, as the tokenizer decodes it
//! as a whole; only a chat's answers lose the space in front of them.

use crate::serve::Server;
use crate::support::data;
use gritlm::{Device, Engine, Options, Piece, Prompt, Sampling};
use serde_json::{Value, json};
use std::process::Command;

const TEXT: &str = "/v1/completions";

/// Tokens that the model of [`with_words`] can draw, and what they add to a text.
const WORDS: [(&str, &str); 4] =
    [("▁first", " first"), ("▁▁▁▁", "    "), ("▁", " "), ("word", "word")];

fn open(model: &str) -> Engine {
    Engine::open(model, &Options::default().device(Device::Cpu)).unwrap()
}

/// A folder with `mistral-odd` whose tokenizer's unused tokens have become [`WORDS`].
fn with_words() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data("mistral-odd").join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = std::fs::read(data("mistral-odd/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for (i, (word, _)) in WORDS.iter().enumerate().filter(|(_, (word, _))| *word != "▁") {
        let id = vocab.remove(&format!("<unused{}>", 100 + i)).unwrap();
        vocab.insert((*word).into(), id);
    }
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

fn pieces(engine: &Engine, prompt: &Prompt, how: &Sampling) -> Vec<Piece> {
    engine.generate(prompt, how).unwrap().map(Result::unwrap).collect()
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// What the tokenizer makes of the prompt, and of the prompt with the answer.
fn decoded(engine: &Engine, prompt: &Prompt, answer: &[Piece]) -> (String, String) {
    let mut ids = engine.tokenize_prompt(prompt, false).unwrap();
    let before = engine.tokenizer().decode(&ids).unwrap();
    ids.extend(answer.iter().map(|piece| piece.token.token));
    (before, engine.tokenizer().decode(&ids).unwrap())
}

/// Draws almost evenly from the whole vocabulary.
fn wild(max_tokens: usize, seed: u64) -> Sampling {
    Sampling::default().max_tokens(max_tokens).temperature(1000.0).seed(seed).ignore_eos(true)
}

/// A seed with which the answer begins with this token.
fn seed(engine: &Engine, prompt: &Prompt, token: &str) -> u64 {
    let id = engine.tokenizer().id(token).unwrap();
    let first = |seed: &u64| pieces(engine, prompt, &wild(1, *seed))[0].token.token == id;
    (0..20_000).find(first).unwrap()
}

/// Whatever the prompt, on every tokenizer: what is shown is what the answer adds.
#[test]
fn prompt_and_text_are_the_whole_text() {
    let folder = with_words();
    let odd = folder.path().to_str().unwrap();
    let models = ["demo", odd, "mistral-tiny", "mixtral-tiny"];
    for model in models {
        let engine = match model {
            name if name.ends_with("tiny") => open(data(name).to_str().unwrap()),
            other => open(other),
        };
        let (mut checked, mut spaces) = (0, 0);
        let bos = engine.config().bos;
        let prompts = ["Alpha", "def f():\n", "two  ", "a</s>", "  x", "größer ✓", "\u{1F600}"];
        let ids = |text: &str| Prompt::Tokens(engine.tokenizer().encode(text).unwrap());
        let prompts = prompts.into_iter().flat_map(|text| [Prompt::raw(text), ids(text)]);
        let bare = [Prompt::Tokens(vec![bos]), ids("x").clone()];
        for prompt in prompts.chain(bare) {
            // Most tokens of the others are bytes that make no text.
            for seed in 0..if model == "demo" { 12 } else { 60 } {
                let answer = pieces(&engine, &prompt, &wild(4, seed));
                let (before, whole) = decoded(&engine, &prompt, &answer);
                // Bytes that are no text have no text of their own.
                if whole.contains('\u{FFFD}') {
                    continue;
                }
                let text = text(&answer);
                assert_eq!(format!("{before}{text}"), whole, "{model}: {prompt:?}, seed {seed}");
                checked += 1;
                spaces += usize::from(text.starts_with(' '));
            }
        }
        assert!(checked > 20, "{model}: {checked}");
        assert!(spaces > 0 || model.ends_with("tiny"), "{model}: no answer begins with a space");
    }
}

/// Bytes of a character that the prompt begins and the answer ends.
#[test]
fn a_character_may_begin_in_the_prompt() {
    let engine = open("demo");
    let tokenizer = engine.tokenizer();
    let byte = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap();
    let smile = "\u{1F600}".as_bytes();
    let mut ids = tokenizer.encode("x").unwrap();
    ids.extend(smile[..3].iter().map(|&b| byte(b)));
    let prompt = Prompt::Tokens(ids);
    let last = byte(smile[3]);
    let how = |seed| wild(1, seed);
    let seed = (0..100_000).find(|&s| pieces(&engine, &prompt, &how(s))[0].token.token == last);
    let answer = pieces(&engine, &prompt, &how(seed.unwrap()));
    assert_eq!(text(&answer), "\u{1F600}");
    assert_eq!(decoded(&engine, &prompt, &answer).1, "x\u{1F600}");
}

#[test]
fn completions_keep_their_spaces() {
    let folder = with_words();
    let model = folder.path().to_str().unwrap();
    let (server, engine) = (Server::start(&["--model", model, "--model-name", "odd"]), open(model));
    for raw in ["Alpha", "def f():\n", "a b  "] {
        let prompt = Prompt::raw(raw);
        let ids = engine.tokenize_prompt(&prompt, false).unwrap();
        for (word, expected) in WORDS {
            let seed = seed(&engine, &prompt, word);
            let rest = pieces(&engine, &prompt, &wild(3, seed));
            let (before, whole) = decoded(&engine, &prompt, &rest);
            for given in [json!(raw), json!(ids)] {
                let mut body = json!({"prompt": given, "max_tokens": 1, "seed": seed, "logprobs": 1,
                    "temperature": 1000, "ignore_eos": true});
                let choice = server.post(TEXT, &body).ok()["choices"][0].clone();
                assert_eq!(choice["text"], expected, "{raw:?}");
                assert_eq!(choice["logprobs"]["tokens"], json!([expected]));
                assert_eq!(choice["logprobs"]["text_offset"], json!([0]));

                // A stop text may begin with the space.
                body["stop"] = json!(expected);
                let choice = server.post(TEXT, &body).ok()["choices"][0].clone();
                assert_eq!([&choice["text"], &choice["finish_reason"]], ["", "stop"], "{raw:?}");
                body.as_object_mut().unwrap().remove("stop");

                // More tokens, at once and streamed, beside another choice.
                body["max_tokens"] = json!(3);
                body["n"] = json!(2);
                let choices = server.post(TEXT, &body).ok()["choices"].clone();
                let found = choices[0]["text"].as_str().unwrap();
                if !whole.contains('\u{FFFD}') {
                    assert_eq!(format!("{before}{found}"), whole);
                }
                assert!(found.starts_with(expected), "{found:?}");
                assert_eq!(choices[0]["logprobs"]["text_offset"][1], expected.chars().count());
                body["stream"] = json!(true);
                let (mut streamed, mut offsets) = (vec![String::new(); 2], Vec::new());
                for data in server.stream(TEXT, &body).take_while(|data| data != "[DONE]") {
                    let choice =
                        serde_json::from_str::<Value>(&data).unwrap()["choices"][0].clone();
                    let index = choice["index"].as_u64().unwrap() as usize;
                    streamed[index] += choice["text"].as_str().unwrap();
                    let more = choice["logprobs"]["text_offset"].as_array();
                    offsets.extend(more.filter(|_| index == 0).into_iter().flatten().cloned());
                }
                for (streamed, choice) in streamed.iter().zip(choices.as_array().unwrap()) {
                    assert_eq!(choice["text"], *streamed);
                }
                assert_eq!(choices[0]["logprobs"]["text_offset"], json!(offsets));
            }
        }
    }
}

#[test]
fn the_program_keeps_them_in_raw_text_only() {
    let folder = with_words();
    let model = folder.path().to_str().unwrap();
    let engine = open(model);
    let generate = |args: &[&str], prompt: &str, seed: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(["generate", "--model", model, "--device", "cpu", "--prompt", prompt]);
        command.args(["--temperature", "1000", "--max-tokens", "1"]).args(args);
        let output = command.args(["--seed", &seed.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (word, expected) in WORDS {
        let raw = seed(&engine, &Prompt::raw("Alpha"), word);
        assert_eq!(generate(&["--raw"], "Alpha", raw), format!("{expected}\n"));
        let json = generate(&["--raw", "--format", "json"], "Alpha", raw);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["text"], expected);
        let user = seed(&engine, &Prompt::user("Alpha"), word);
        let shown = expected.strip_prefix(' ').unwrap_or(expected);
        assert_eq!(generate(&[], "Alpha", user), format!("{shown}\n"));
    }
}

/// A chat's answer has no space in front, and one that goes on from the assistant's words has.
#[test]
fn chats_lose_the_first_space() {
    let folder = with_words();
    let model = folder.path().to_str().unwrap();
    let (server, engine) = (Server::start(&["--model", model, "--model-name", "odd"]), open(model));
    for (word, expected) in WORDS {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
            "temperature": 1000, "ignore_eos": true});
        body["seed"] = json!(seed(&engine, &Prompt::user("Hi"), word));
        let content = |body: &Value| {
            let choice = server.post("/v1/chat/completions", body).ok()["choices"][0].clone();
            choice["message"]["content"].clone()
        };
        assert_eq!(content(&body), expected.strip_prefix(' ').unwrap_or(expected));

        let begun = Prompt::raw("<|user|>\nHi\n<|assistant|>\nWell,");
        body["seed"] = json!(seed(&engine, &begun, word));
        let more = json!({"role": "assistant", "content": "Well,"});
        body["messages"].as_array_mut().unwrap().push(more);
        assert_eq!(content(&body), expected);
    }
}
