//! Texts to embed as evaluation programs and other servers' clients send them: conversations, whole
//! prompts, Cohere's shape, cut where they say; and what such programs ask of the tokenizer.

use crate::serve::Server;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use gritlm::{Device, Embed, Engine, Options};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";
const TEXTS: [&str; 3] = ["chess interface for the desktop", "größer als π 🎉", " a\n\n    b"];

fn demo() -> Engine {
    let options = Options::default().device(Device::Cpu);
    Engine::open("demo", &options).unwrap()
}

type Vectors = Vec<Vec<f32>>;

/// The library's vectors.
fn expected(engine: &Engine, texts: &[&str], instruction: &str, max_length: usize) -> Vectors {
    let how = Embed::default().instruction(instruction).max_length(max_length);
    engine.embed(texts, &how).unwrap().into_iter().map(|e| e.vector).collect()
}

#[track_caller]
fn vectors(server: &Server, body: &Value) -> Vectors {
    let answer = server.post(EMBEDDINGS, body).ok();
    answer["data"].as_array().unwrap().iter().map(|d| numbers(&d["embedding"])).collect()
}

#[track_caller]
fn numbers(list: &Value) -> Vec<f32> {
    let numbers = list.as_array().unwrap_or_else(|| panic!("{list}"));
    numbers.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn all_numbers(lists: &Value) -> Vectors {
    lists.as_array().unwrap().iter().map(numbers).collect()
}

fn message(role: &str, content: &Value) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn conversations_are_embedded() {
    let (server, engine) = (Server::start(&[]), demo());
    let part = |text: &str| json!([{"type": "text", "text": text}]);
    let plain = expected(&engine, &TEXTS, "", 2048);
    // As mteb sends them: each text a conversation of one message of one part.
    let all: Vec<Value> = TEXTS.iter().map(|t| json!([message("user", &part(t))])).collect();
    assert_eq!(vectors(&server, &json!({"messages": all})), plain);
    for (i, text) in TEXTS.into_iter().enumerate() {
        // One conversation, not an array of one.
        let one = json!({"messages": [message("user", &json!(text))]});
        assert_eq!(vectors(&server, &one)[0], plain[i]);
    }
    // The system says what the vector is for; what a user says in two messages is one text.
    for instruction in ["Find the package.", "Given a question,\nretrieve passages", "π"] {
        let talk = |text: &str| {
            json!([message("system", &json!(instruction)), message("user", &part(text))])
        };
        let all: Vec<Value> = TEXTS.into_iter().map(talk).collect();
        let expected = expected(&engine, &TEXTS, instruction, 2048);
        assert_eq!(vectors(&server, &json!({"messages": all})), expected);
        assert_ne!(expected, plain);
    }
    let two = json!([message("user", &json!("one")), message("user", &json!("two"))]);
    assert_eq!(
        vectors(&server, &json!({"messages": two})),
        expected(&engine, &["one\n\ntwo"], "", 2048)
    );

    let refused = |body: Value, parts: &[&str], param: &str| {
        let answer = server.post(EMBEDDINGS, &body);
        answer.fails(400, parts);
        assert_eq!(answer.json()["error"]["param"], param, "{body}");
    };
    let user = message("user", &json!("Hi"));
    let wrong = json!({"messages": [user, message("assistant", &json!("Hello."))]});
    refused(wrong, &["expected the user's messages"], "messages[1].role");
    let wrong = json!({"messages": [[user], [user, message("system", &json!("x"))]]});
    refused(wrong, &["expected the user's messages"], "messages[1][1].role");
    refused(json!({"messages": []}), &["at least one"], "messages");
    refused(json!({"messages": [[user], [message("user", &json!([]))]]}), &[], "messages[1]");
    refused(json!({"messages": [user], "input": "x"}), &["found both"], "messages");
    refused(json!({"dimensions": 3}), &["expected a string"], "input");
    refused(json!({"messages": [[user], user]}), &["messages[1]"], "messages[1]");
}

#[test]
fn a_whole_prompt_is_not_wrapped_again() {
    let (server, engine) = (Server::start(&[]), demo());
    for instruction in ["Find the package.", "Given a question,\nretrieve passages", "π"] {
        let expected = expected(&engine, &TEXTS, instruction, 2048);
        let prompt = |start: &str| {
            let prompt = |text| format!("{start}<|user|>\n{instruction}\n<|embed|>\n{text}");
            TEXTS.map(prompt)
        };
        for start in ["", "<s>"] {
            assert_eq!(vectors(&server, &json!({"input": prompt(start)})), expected);
        }
        // The same instruction beside it says nothing else; another one does.
        let body = json!({"input": prompt(""), "instruction": instruction});
        assert_eq!(vectors(&server, &body), expected);
        let body = json!({"input": ["bare", prompt("")[0]], "instruction": "Another."});
        let answer = server.post(EMBEDDINGS, &body);
        answer.fails(400, &["input[1]", "whole prompt"]);
        let found = server.post("/embed", &json!({"inputs": prompt("")})).ok();
        assert_eq!(all_numbers(&found), expected);
    }
    let bare = expected(&engine, &TEXTS, "", 2048);
    let prompts = TEXTS.map(|text| format!("<|embed|>\n{text}"));
    assert_eq!(vectors(&server, &json!({"input": prompts})), bare);
    // Each has its own; other texts go with the request's, or none.
    let mixed = ["<|user|>\nFind it.\n<|embed|>\none", "two", "<|embed|>\nthree"];
    let own =
        |text: &str, instruction: &str| expected(&engine, &[text], instruction, 2048).remove(0);
    let each = [own("one", "Find it."), own("two", ""), own("three", "")];
    assert_eq!(vectors(&server, &json!({"input": mixed})), each);
    // What only looks like one is text.
    let texts = ["a <|embed|>\nb", "<|user|>\nHi", "<|user|>\nHi\n<|assistant|>\nHello"];
    assert_eq!(vectors(&server, &json!({"input": texts})), expected(&engine, &texts, "", 2048));
    let empty = server.post(EMBEDDINGS, &json!({"input": ["a", "<|embed|>\n"]}));
    empty.fails(400, &["input[1]", "no tokens"]);
}

#[test]
fn texts_are_cut_where_the_client_says() {
    let (server, engine) = (Server::start(&[]), demo());
    let long = "a text that goes on ".repeat(900);
    for (tokens, max_length) in [(8, 8), (100, 100), (2048, 2048), (40_000, 2048), (-1, 2048)] {
        let body = json!({"input": [long, "short"], "truncate_prompt_tokens": tokens});
        let expected = expected(&engine, &[&long, "short"], "", max_length);
        assert_eq!(vectors(&server, &body), expected, "{tokens}");
    }
    for tokens in [0, -2, i64::MIN] {
        let body = json!({"input": "a", "truncate_prompt_tokens": tokens});
        let answer = server.post(EMBEDDINGS, &body);
        answer.fails(400, &["truncate_prompt_tokens", &tokens.to_string()]);
    }
    let body = json!({"input": "a", "truncate_prompt_tokens": 9, "max_length": 9});
    server.post(EMBEDDINGS, &body).fails(400, &["found both"]);
}

#[test]
fn cohere_embeds() {
    let (server, engine) = (Server::start(&[]), demo());
    let query = "Given a web search query, retrieve relevant passages that answer the query";
    let cases = [
        (json!({}), "", 2048),
        (json!({"input_type": "search_document", "model": "demo"}), "", 2048),
        (json!({"input_type": "search_query"}), query, 2048),
        (json!({"input_type": "classification", "truncate": "NONE"}), "", 2048),
        (json!({"input_type": "search_query", "instruction": "Find it."}), "Find it.", 2048),
        (json!({"max_tokens": 9}), "", 9),
    ];
    for (fields, instruction, max_length) in cases {
        let mut body = fields.clone();
        body["texts"] = json!(TEXTS);
        let answer = server.post("/v2/embed", &body).ok();
        let expected = expected(&engine, &TEXTS, instruction, max_length);
        assert_eq!(answer["embeddings"].as_object().unwrap().len(), 1, "{fields}");
        assert_eq!(all_numbers(&answer["embeddings"]["float"]), expected, "{fields}");
        assert_eq!(
            (&answer["texts"], &answer["meta"]["api_version"]["version"]),
            (&json!(TEXTS), &json!("2"))
        );
        assert!(answer["meta"]["billed_units"]["input_tokens"].as_u64().unwrap() > 0);
    }
    let types = ["float", "base64", "binary", "ubinary"];
    let body = json!({"texts": TEXTS, "embedding_types": types, "output_dimension": 20});
    let embeddings = server.post("/v2/embed", &body).ok()["embeddings"].clone();
    for i in 0..TEXTS.len() {
        let floats = numbers(&embeddings["float"][i]);
        assert_eq!(floats.len(), 20);
        let bytes = BASE64_STANDARD.decode(embeddings["base64"][i].as_str().unwrap()).unwrap();
        let same: Vec<u8> = floats.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes, same);
        // As numpy packs bits: 20 of them are three bytes.
        let packed: Vec<i64> = (0..3)
            .map(|byte| {
                let bit = |i: usize| floats.get(8 * byte + i).is_some_and(|&v| v > 0.0);
                (0..8).map(|i| i64::from(bit(i)) << (7 - i)).sum()
            })
            .collect();
        assert_eq!(json!(packed), embeddings["ubinary"][i]);
        let signed: Vec<i64> = packed.iter().map(|v| v - 128).collect();
        assert_eq!(json!(signed), embeddings["binary"][i]);
    }
    let long = "a text that goes on ".repeat(900);
    for (fields, status, part) in [
        (json!({"texts": []}), 400, "texts"),
        (json!({"texts": [""]}), 400, "texts[0]"),
        (json!({"texts": ["a"], "images": ["x"]}), 400, "images"),
        (json!({"texts": ["a"], "input_type": "image"}), 400, "input_type"),
        (json!({"texts": ["a"], "embedding_types": ["int8"]}), 400, "embedding_types"),
        (json!({"texts": ["a"], "truncate": "START"}), 400, "truncate"),
        (json!({"texts": ["a"], "output_dimension": 0}), 400, "dimension"),
        (json!({"texts": ["a"], "max_tokens": 0}), 400, "max_tokens"),
        (json!({"texts": ["a"], "model": "x"}), 404, "model"),
        (json!({"texts": [long], "truncate": "NONE"}), 400, "2048"),
    ] {
        server.post("/v2/embed", &fields).fails(status, &[part]);
    }
}

#[test]
fn what_makes_prompts_elsewhere_is_told() {
    let (server, engine) = (Server::start(&[]), demo());
    let info = server.get("/tokenizer_info").ok();
    assert_eq!([&info["bos_token"], &info["eos_token"]], ["<s>", "</s>"]);
    assert!(info["pad_token"].is_null() && info["add_bos_token"] == true, "{info}");
    assert_eq!(info["model_max_length"], engine.config().max_positions);
    assert!(info["chat_template"].as_str().unwrap().contains("add_generation_prompt"));
    // As lm-eval looks for the special tokens' ids.
    for token in ["<s>", "</s>", "<s>a"] {
        let body = json!({"prompt": token, "add_special_tokens": false});
        let ids = server.post("/tokenize", &body).ok()["tokens"].clone();
        let expected = engine.tokenizer().id(&token[..token.find('>').unwrap() + 1]).unwrap();
        assert_eq!(ids[0], expected);
        let body = json!({"tokens": ids});
        assert!(server.post("/detokenize", &body).ok()["prompt"].is_string());
    }
    assert_eq!(server.get("/v1/models").ok()["data"][0]["max_model_len"], 2048);
}
