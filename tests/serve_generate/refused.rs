//! Requests that are refused, and options that ask for nothing.

use super::{CHAT, QUESTION, TEXT, engine, read, user, with};
use crate::serve::Server;
use gritlm::Prompt;
use serde_json::{Value, json};

#[test]
fn nothing_may_be_asked_for() {
    let server = Server::start(&[]);
    let body = json!({"messages": user(QUESTION), "max_tokens": 0});
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let (choices, _) = read(server.stream(CHAT, &with(&body, &json!({"stream": true}))));
    assert_eq!(choices[&0], (String::new(), "length".into()));
}

#[test]
fn what_asks_for_nothing_is_taken() {
    let server = Server::start(&[]);
    let neutral = json!({"user": "me", "store": true, "metadata": {"a": [1]}, "tools": [],
        "tool_choice": "none", "functions": null, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {}, "best_of": 1, "echo": false, "suffix": "", "modalities": ["text"],
        "response_format": {"type": "text"}, "model": "demo", "priority": 3, "timeout": 60,
        "stop": null, "stream": null, "n": null, "seed": null, "logprobs": null});
    let body = json!({"max_tokens": 2, "temperature": 0});
    server.post(CHAT, &with(&with(&body, &json!({"messages": user("x")})), &neutral)).ok();
    server.post(TEXT, &with(&with(&body, &json!({"prompt": "x"})), &neutral)).ok();
}

#[test]
fn wrong_requests_are_refused() {
    let server = Server::start(&[]);
    let wrong = |path: &str, base: Value, status: u16, field: &str, fields: Value, part: &str| {
        let answer = server.post(path, &with(&base, &fields));
        answer.fails(status, &[part]);
        assert_eq!(answer.json()["error"]["param"], field, "{}", answer.text);
    };
    let (image, long) =
        (json!([{"type": "image_url", "image_url": {"url": "x"}}]), "x".repeat(1025));
    let shared = [
        (404, "model", json!({"model": "other"}), "\"demo\""),
        (400, "n", json!({"n": 0}), "1 to 128"),
        (400, "n", json!({"n": 129}), "1 to 128"),
        (400, "temperature", json!({"temperature": -1}), "0 or more"),
        (400, "temperature", json!({"temperature": "hot"}), "hot"),
        (400, "temperature", json!({"temperature": 1e300}), "0 or more"),
        (400, "top_p", json!({"top_p": 0}), "above 0"),
        (400, "top_p", json!({"top_p": 1.1}), "at most 1"),
        (400, "min_p", json!({"min_p": 2}), "from 0 to 1"),
        (400, "top_k", json!({"top_k": -1}), "-1"),
        (400, "repetition_penalty", json!({"repetition_penalty": 0}), "above 0"),
        (400, "max_tokens", json!({"max_tokens": -1}), "-1"),
        (400, "seed", json!({"seed": 0.5}), "0.5"),
        (400, "stop", json!({"stop": ""}), "an empty one"),
        (400, "stop[1]", json!({"stop": ["a", 1]}), "expected a string"),
        (400, "stop", json!({"stop": vec!["a"; 17]}), "at most 16"),
        (400, "stop", json!({"stop": long}), "1024 bytes"),
        (400, "timeout", json!({"timeout": -1}), "0 or more"),
        (400, "stream_options", json!({"stream_options": {}}), "\"stream\""),
        (400, "response_format.type", json!({"response_format": {"type": "xml"}}), "xml"),
        (
            400,
            "response_format.json_schema",
            json!({"response_format": {"type": "json_schema"}}),
            "a schema",
        ),
        (400, "tools", json!({"tools": [{"type": "function"}]}), "not supported"),
        (400, "tool_choice", json!({"tool_choice": "required"}), "not supported"),
        (400, "frequency_penalty", json!({"frequency_penalty": 0.1}), "not supported"),
        (400, "presence_penalty", json!({"presence_penalty": -1}), "not supported"),
        (400, "logit_bias", json!({"logit_bias": {"5": 1}}), "not supported"),
        (400, "best_of", json!({"best_of": 2}), "not supported"),
        (400, "suffix", json!({"suffix": "x"}), "not supported"),
        (400, "modalities", json!({"modalities": ["text", "audio"]}), "not supported"),
    ];
    for (status, field, fields, part) in shared {
        wrong(CHAT, json!({"messages": user("x")}), status, field, fields.clone(), part);
        wrong(TEXT, json!({"prompt": "x"}), status, field, fields, part);
    }
    let say = |role: &str| json!({"role": role, "content": "x"});
    let echo = json!({"echo": true});
    wrong(CHAT, json!({"messages": user("x")}), 400, "echo", echo, "not supported");
    let chat = [
        ("messages", json!({"messages": []}), "at least one"),
        ("messages", json!({"messages": "x"}), "sequence"),
        ("messages[0].role", json!({"messages": [say("tool")]}), "tool"),
        (
            "messages[1].content[0].type",
            json!({"messages": [say("user"), {"role": "user", "content": image}]}),
            "image_url",
        ),
        (
            "messages[0].content",
            json!({"messages": [{"role": "user", "content": null}]}),
            "a string or an array",
        ),
        ("logprobs", json!({"logprobs": 1}), "boolean"),
        ("top_logprobs", json!({"top_logprobs": 1}), "\"logprobs\""),
        ("top_logprobs", json!({"logprobs": true, "top_logprobs": 21}), "0 to 20"),
    ];
    for (field, fields, part) in chat {
        wrong(CHAT, json!({"messages": user("x")}), 400, field, fields, part);
    }
    let text = [
        ("prompt", json!({"prompt": []}), "at least one"),
        ("prompt", json!({"prompt": ""}), "at least one"),
        ("prompt[1]", json!({"prompt": ["x", 1]}), "string"),
        ("prompt", json!({"prompt": {"x": 1}}), "a string, an array"),
        ("prompt[0]", json!({"prompt": [-1]}), "token id"),
        ("prompt[0]", json!({"prompt": [[]]}), "at least one"),
        ("prompt[1]", json!({"prompt": [1, 4096]}), "below 4096"),
        ("logprobs", json!({"logprobs": 6}), "0 to 5"),
    ];
    for (field, fields, part) in text {
        wrong(TEXT, json!({"prompt": "x"}), 400, field, fields, part);
    }
    server.post(TEXT, &json!({})).fails(400, &["prompt"]);
    server.post(CHAT, &json!({})).fails(400, &["messages"]);

    let long = "word ".repeat(3000);
    let tokens = engine().tokenize_prompt(&Prompt::user(&long), false).unwrap().len().to_string();
    for stream in [false, true] {
        let fields = json!({"messages": user(&long), "stream": stream});
        wrong(CHAT, json!({}), 400, "messages", fields, &tokens);
    }
    wrong(TEXT, json!({}), 400, "prompt", json!({"prompt": ["x", long]}), "is 2048 tokens");
    // A deadline that is over has its status also in front of a stream.
    let late = json!({"messages": user("x"), "timeout": 0, "stream": true});
    server.post(CHAT, &late).fails(408, &["deadline"]);
}

#[test]
fn too_much_is_refused() {
    let server = Server::start(&["--max-inputs", "2", "--max-queue", "3", "--kv-tokens", "512"]);
    let prompts = |n: usize| json!({"prompt": vec!["x"; n], "max_tokens": 1});
    server.post(TEXT, &prompts(2)).ok();
    server.post(TEXT, &prompts(3)).fails(413, &["prompt", "at most 2", "found 3"]);
    server.post(TEXT, &with(&prompts(2), &json!({"n": 2}))).fails(413, &["n:", "at most 3"]);
    let body = json!({"messages": user("x"), "max_tokens": 600});
    server.post(CHAT, &body).fails(400, &["512"]);
}
