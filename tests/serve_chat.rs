//! `/v1/chat/completions`: conversations of every form that clients send; each becomes the prompt
//! that GritLM's format has for it.

use crate::serve::Server;
use gritlm::{Device, Engine, Options, Piece, Prompt, Sampling};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn demo() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

fn say(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// The answer to a prompt that is spelled out, and how many tokens the prompt has.
fn raw(engine: &Engine, prompt: &str, seed: u64) -> (String, usize) {
    let how = Sampling::default().max_tokens(8).temperature(1.5).seed(seed);
    let answer = engine.generate(&Prompt::raw(prompt), &how).unwrap();
    let tokens = answer.prompt_tokens();
    let pieces: Vec<Piece> = answer.map(Result::unwrap).collect();
    (pieces.iter().map(|piece| piece.text.as_str()).collect(), tokens)
}

/// The server's answers to messages with the same seeds, at once and streamed.
fn check(server: &Server, engine: &Engine, messages: &Value, prompt: &str, continued: bool) {
    for seed in 0..4 {
        let (text, tokens) = raw(engine, prompt, seed);
        let text = match continued {
            true => &text,
            false => text.strip_prefix(' ').unwrap_or(&text),
        };
        let mut body =
            json!({"messages": messages, "max_tokens": 8, "temperature": 1.5, "seed": seed});
        let answer = server.post(CHAT, &body).ok();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{messages}");
        assert_eq!(answer["choices"][0]["message"], say("assistant", text), "{messages}");
        body["stream"] = json!(true);
        let events = server.stream(CHAT, &body).take_while(|data| data != "[DONE]");
        let chunks = events.map(|data| serde_json::from_str::<Value>(&data).unwrap());
        let streamed: String = chunks
            .map(|c| c["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_string())
            .collect();
        assert_eq!(streamed, *text, "{messages}");
    }
}

#[test]
fn whoever_begins() {
    let (server, engine) = (Server::start(&[]), demo());
    for (messages, prompt) in [
        (json!([say("system", "Be brief.")]), "<|user|>\nBe brief.\n<|assistant|>\n"),
        (
            json!([say("system", "Be brief."), say("developer", "Hurry.")]),
            "<|user|>\nBe brief.\n\nHurry.\n<|assistant|>\n",
        ),
        (json!([say("developer", "Be brief.")]), "<|user|>\nBe brief.\n<|assistant|>\n"),
        (
            json!([say("assistant", "Hello!"), say("user", "Hi")]),
            "<|user|>\n\n<|assistant|>\nHello!</s>\n<|user|>\nHi\n<|assistant|>\n",
        ),
        (
            json!([say("system", "Be brief."), say("assistant", "Hello!"), say("user", "Hi")]),
            "<|user|>\nBe brief.\n<|assistant|>\nHello!</s>\n<|user|>\nHi\n<|assistant|>\n",
        ),
        (
            json!([say("assistant", "Hello!"), say("assistant", "You?"), say("user", "Hi")]),
            "<|user|>\n\n<|assistant|>\nHello!\n\nYou?</s>\n<|user|>\nHi\n<|assistant|>\n",
        ),
        (
            json!([say("user", "Hi"), say("system", "Be brief.")]),
            "<|user|>\nHi\n\nBe brief.\n<|assistant|>\n",
        ),
        (
            json!([say("user", "Hi"), say("assistant", "Hello!"), say("system", "Say bye.")]),
            "<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\nSay bye.\n<|assistant|>\n",
        ),
    ] {
        check(&server, &engine, &messages, prompt, false);
    }
}

/// The answer is what follows the assistant's words.
#[test]
fn the_assistant_may_have_begun() {
    let (server, engine) = (Server::start(&[]), demo());
    let question = say("user", "Describe the package pdfgrep.");
    let asked = "<|user|>\nDescribe the package pdfgrep.\n<|assistant|>\n";
    for (begun, prompt) in [
        (json!([say("assistant", "pdfgrep is")]), format!("{asked}pdfgrep is")),
        (json!([say("assistant", "A tool\n\n  ")]), format!("{asked}A tool\n\n  ")),
        (json!([say("assistant", "One"), say("assistant", "Two")]), format!("{asked}One\n\nTwo")),
        (json!([{"role": "assistant", "content": [{"type": "text", "text": "It"}]}]), {
            format!("{asked}It")
        }),
    ] {
        let messages = [std::slice::from_ref(&question), begun.as_array().unwrap()].concat();
        check(&server, &engine, &json!(messages), &prompt, true);
    }
    // Alone, and after turns.
    let alone = json!([say("assistant", "Package:")]);
    check(&server, &engine, &alone, "<|user|>\n\n<|assistant|>\nPackage:", true);
    let turns = [
        say("user", "Hi"),
        say("assistant", "Hello!"),
        say("user", "Bye"),
        say("assistant", "See you"),
    ];
    let prompt = "<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\nBye\n<|assistant|>\nSee you";
    check(&server, &engine, &json!(turns), prompt, true);
}

/// What the assistant said may be nothing, as in a message that LangChain or a tool's user keeps.
#[test]
fn the_assistant_may_have_said_nothing() {
    let (server, engine) = (Server::start(&[]), demo());
    let (hi, bye) = (say("user", "Hi"), say("user", "Bye"));
    for nothing in [
        json!({"role": "assistant", "content": null}),
        json!({"role": "assistant", "content": ""}),
        json!({"role": "assistant", "content": []}),
        json!({"role": "assistant"}),
        json!({"role": "assistant", "content": null, "tool_calls": [], "function_call": null}),
    ] {
        let middle = "<|user|>\nHi\n<|assistant|>\n</s>\n<|user|>\nBye\n<|assistant|>\n";
        check(&server, &engine, &json!([hi, nothing, bye]), middle, false);
        // Nothing to go on from: as without it.
        check(&server, &engine, &json!([hi, nothing]), "<|user|>\nHi\n<|assistant|>\n", false);
    }
}

/// Answers that go on one from the other are the answer at once.
#[test]
fn a_cut_answer_goes_on() {
    let (server, engine) = (Server::start(&[]), demo());
    let mut checked = 0;
    for question in ["Describe the package pdfgrep.", "What is jaxe?", "And now?", "Hi"] {
        let ask = |begun: &str, max_tokens: usize| {
            let messages = json!([say("user", question), say("assistant", begun)]);
            let body = json!({"messages": messages, "max_tokens": max_tokens, "temperature": 0});
            let answer = server.post(CHAT, &body).ok();
            answer["choices"][0]["message"]["content"].as_str().unwrap().to_string()
        };
        let asked =
            |begun: &str| Prompt::raw(format!("<|user|>\n{question}\n<|assistant|>\n{begun}"));
        let ids = |begun: &str| engine.tokenize_prompt(&asked(begun), false).unwrap();
        let start = "This package";
        let whole = ask(start, 20);
        let how = Sampling::greedy().max_tokens(12);
        let drawn = engine.generate(&asked(start), &how).unwrap();
        let drawn: Vec<u32> = drawn.map(|piece| piece.unwrap().token.token).collect();
        for tokens in 1..drawn.len() {
            let more = ask(start, tokens);
            let begun = format!("{start}{more}");
            // Where its text gives its tokens back.
            if ids(&begun) == [&ids(start)[..], &drawn[..tokens]].concat() {
                assert_eq!(more + &ask(&begun, 20 - tokens), whole, "{begun:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 2, "{checked}");
}

/// vLLM's two options say what is done anyway, or are refused.
#[test]
fn who_speaks_next_may_be_said() {
    let server = Server::start(&[]);
    let asked = json!([say("user", "Hi")]);
    let begun = json!([say("user", "Hi"), say("assistant", "Well,")]);
    let post = |messages: &Value, fields: Value| {
        let mut body = json!({"messages": messages, "max_tokens": 2});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post(CHAT, &body)
    };
    post(&asked, json!({"add_generation_prompt": true, "continue_final_message": false})).ok();
    post(&asked, json!({"add_generation_prompt": null, "continue_final_message": null})).ok();
    post(&begun, json!({"add_generation_prompt": false, "continue_final_message": true})).ok();
    post(&begun, json!({"continue_final_message": true})).ok();
    for (messages, field, value) in [
        (&asked, "add_generation_prompt", false),
        (&asked, "continue_final_message", true),
        (&begun, "add_generation_prompt", true),
        (&begun, "continue_final_message", false),
    ] {
        let answer = post(messages, json!({field: value}));
        answer.fails(400, &[field]);
        assert_eq!(answer.json()["error"]["param"], field);
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let server = Server::start(&[]);
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]);
    for (message, field) in [
        (json!({"role": "user", "content": null}), "messages[1].content"),
        (json!({"role": "user"}), "messages[1].content"),
        (json!({"role": "user", "content": []}), "messages[1].content"),
        (json!({"role": "system", "content": []}), "messages[1].content"),
        (json!({"role": "system", "content": null}), "messages[1].content"),
        (
            json!({"role": "assistant", "content": null, "tool_calls": call}),
            "messages[1].tool_calls",
        ),
        (
            json!({"role": "assistant", "content": "x", "function_call": {"name": "f"}}),
            "messages[1].function_call",
        ),
        (json!({"role": "assistant", "audio": {"id": "x"}}), "messages[1].audio"),
        (json!({"role": "tool", "content": "5", "tool_call_id": "1"}), "messages[1].role"),
    ] {
        let body = json!({"messages": [say("user", "Hi"), message, say("user", "x")]});
        let answer = server.post(CHAT, &body);
        answer.fails(400, &[field]);
        assert_eq!(answer.json()["error"]["param"], field, "{}", answer.text);
    }
    server.post(CHAT, &json!({"messages": []})).fails(400, &["at least one"]);
}
