//! `/v1/chat/completions` and `/v1/completions`: the library's answers, at once or streamed, and
//! their options.

mod crowd; // other requests, clients that leave, failures
mod logprobs; // log-probabilities
mod refused; // wrong requests
mod turns; // conversations

use crate::serve::Server;
use gritlm::{Device, Engine, Finish, Grammar, Options, Piece, Prompt, Sampling};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const QUESTION: &str = "Describe the package pdfgrep.";
const TURNS: [&str; 3] = ["What is jaxe?", "In which section would it be?", "And now?"];

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap())
}

fn pieces(prompt: &Prompt, how: &Sampling) -> Vec<Piece> {
    engine().generate(prompt, how).unwrap().map(Result::unwrap).collect()
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn finish(pieces: &[Piece]) -> &'static str {
    match pieces.last().unwrap().finish.unwrap() {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// `base` with other fields.
fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    all.into()
}

fn assert_chat(answer: &Value, expected: &[Piece]) {
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": text(expected)}));
    assert_eq!(choice["finish_reason"], finish(expected));
    assert_eq!(answer["usage"]["completion_tokens"], expected.len());
}

/// What a stream's chunks say, by choice: text and reason; and the usage.
fn read(events: impl Iterator<Item = String>) -> (BTreeMap<u64, (String, String)>, Option<Value>) {
    let mut events: Vec<String> = events.collect();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let (mut choices, mut usage) = (BTreeMap::<u64, (String, String)>::new(), None);
    for chunk in &chunks {
        assert_eq!([&chunk["id"], &chunk["model"]], [&chunks[0]["id"], &json!("demo")]);
        if chunk["usage"].is_object() {
            assert!(usage.is_none() && chunk["choices"] == json!([]), "{chunk}");
            usage = Some(chunk["usage"].clone());
            continue;
        }
        let [choice] = &chunk["choices"].as_array().unwrap()[..] else { panic!("{chunk}") };
        let index = choice["index"].as_u64().unwrap();
        let first = !choices.contains_key(&index);
        let (text, reason) = choices.entry(index).or_default();
        assert_eq!(*reason, "", "a chunk behind the last one: {chunk}");
        let more = match choice.get("delta") {
            Some(delta) => {
                assert_eq!(chunk["object"], "chat.completion.chunk");
                assert_eq!(delta.get("role") == Some(&json!("assistant")), first, "{chunk}");
                delta.get("content")
            }
            None => choice.get("text"),
        };
        *text += more.map_or("", |more| more.as_str().unwrap());
        *reason = choice["finish_reason"].as_str().unwrap_or_default().into();
    }
    assert!(choices.values().all(|(_, reason)| !reason.is_empty()), "{choices:?}");
    (choices, usage)
}

#[test]
fn a_chat_is_the_librarys() {
    let (server, prompt) = (Server::start(&[]), Prompt::user(QUESTION));
    let how = Sampling::greedy().max_tokens(24);
    let body = json!({"messages": user(QUESTION), "max_tokens": 24, "temperature": 0});
    let answer = server.post(CHAT, &body);
    let timing = answer.header("server-timing");
    assert!(["tokenize;dur=", "decode;dur="].iter().all(|s| timing.contains(s)), "{timing:?}");
    let answer = answer.ok();
    let expected = pieces(&prompt, &how);
    assert_chat(&answer, &expected);
    assert_eq!([&answer["object"], &answer["model"]], ["chat.completion", "demo"]);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(answer["choices"][0]["logprobs"].is_null());
    let tokens = engine().tokenize_prompt(&prompt, false).unwrap().len();
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], tokens);
    assert_eq!(usage["total_tokens"], tokens + expected.len());

    let events = server.stream(CHAT, &with(&body, &json!({"stream": true})));
    assert!(events.headers["server-timing"].to_str().unwrap().contains("first;dur="));
    let (choices, usage) = read(events);
    assert_eq!(choices[&0], (text(&expected), finish(&expected).into()));
    assert_eq!(usage, None);
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (_, usage) = read(server.stream(CHAT, &with(&body, &usage)));
    assert_eq!(usage.unwrap()["total_tokens"], tokens + expected.len());
}

#[test]
fn a_completion_is_the_librarys() {
    let server = Server::start(&[]);
    let raw = "pdfgrep is a tool to search";
    let how = Sampling::greedy().max_tokens(16);
    let expected = pieces(&Prompt::raw(raw), &how);
    let ids = engine().tokenizer().encode(raw).unwrap();
    for prompt in [json!(raw), json!([raw]), json!(ids), json!([ids])] {
        // 16 tokens when nothing is said.
        let body = json!({"prompt": prompt, "temperature": 0});
        let answer = server.post(TEXT, &body).ok();
        assert_eq!(answer["object"], "text_completion");
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
        let choice = &answer["choices"][0];
        assert_eq!([&choice["text"], &choice["finish_reason"]], [&text(&expected), "length"]);
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
        let (choices, _) = read(server.stream(TEXT, &with(&body, &json!({"stream": true}))));
        assert_eq!(choices[&0], (text(&expected), "length".into()));
    }
}

/// Every option that draws differently does so as in the library.
#[test]
fn options_arrive() {
    let server = Server::start(&[]);
    let base = Sampling::default().max_tokens(12).temperature(1.0).seed(7);
    let cases = [
        (json!({}), base.clone()),
        (json!({"seed": 8}), base.clone().seed(8)),
        (json!({"seed": -1}), base.clone().seed(u64::MAX)),
        (json!({"temperature": 3}), base.clone().temperature(3.0)),
        (json!({"top_p": 0.2}), base.clone().top_p(0.2)),
        (json!({"top_k": 2, "seed": 1}), base.clone().top_k(2).seed(1)),
        (json!({"min_p": 0.3}), base.clone().min_p(0.3)),
        (
            json!({"repetition_penalty": 3, "temperature": 0}),
            base.clone().repetition_penalty(3.0).temperature(0.0),
        ),
        (json!({"ignore_eos": true, "max_tokens": 60}), {
            base.clone().ignore_eos(true).max_tokens(60)
        }),
        (json!({"max_completion_tokens": 5}), base.clone().max_tokens(5)),
    ];
    let body = json!({"messages": user(QUESTION), "max_tokens": 12, "seed": 7});
    let mut texts = Vec::new();
    for (fields, how) in cases {
        let expected = pieces(&Prompt::user(QUESTION), &how);
        assert_chat(&server.post(CHAT, &with(&body, &fields)).ok(), &expected);
        texts.push(text(&expected));
    }
    let all = texts.len();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), all, "an option changes nothing here: {texts:#?}");
}

/// Without a seed, answers differ; 256 tokens are the most of a chat.
#[test]
fn left_out_options() {
    let server = Server::start(&[]);
    let body = json!({"messages": user(QUESTION), "temperature": 5, "ignore_eos": true});
    let answers = [(); 2].map(|()| server.post(CHAT, &body).ok());
    assert_ne!(answers[0]["choices"][0]["message"], answers[1]["choices"][0]["message"]);
    assert_ne!(answers[0]["id"], answers[1]["id"]);
    assert_eq!(answers[0]["usage"]["completion_tokens"], 256);
}

/// Choices have seeds one after the other, and each prompt has the same ones.
#[test]
fn several_choices() {
    let server = Server::start(&[]);
    let how = |seed| Sampling::default().max_tokens(9).temperature(2.0).seed(seed);
    let body = json!({"n": 3, "seed": 5, "max_tokens": 9, "temperature": 2});
    let chat = with(&body, &json!({"messages": user(QUESTION)}));
    let expected: Vec<_> = (5..8).map(|seed| pieces(&Prompt::user(QUESTION), &how(seed))).collect();
    let answer = server.post(CHAT, &chat).ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(answer["choices"][i]["index"], i);
        assert_eq!(answer["choices"][i]["message"]["content"], text(expected));
    }
    let tokens = engine().tokenize_prompt(&Prompt::user(QUESTION), false).unwrap().len();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens);
    let drawn: usize = expected.iter().map(Vec::len).sum();
    assert_eq!(answer["usage"]["completion_tokens"], drawn);

    let raw = ["pdfgrep is", "jaxe is"];
    let options = json!({"stream_options": {"include_usage": true}, "stream": true});
    let several = with(&body, &json!({"prompt": raw}));
    let whole = server.post(TEXT, &several).ok();
    let (choices, usage) = read(server.stream(TEXT, &with(&several, &options)));
    assert_eq!(choices.len(), 6);
    for (i, (index, (streamed, reason))) in choices.iter().enumerate() {
        let expected = pieces(&Prompt::raw(raw[i / 3]), &how(5 + i as u64 % 3));
        assert_eq!(*index, i as u64);
        assert_eq!((streamed, &**reason), (&text(&expected), finish(&expected)));
        assert_eq!(whole["choices"][i]["text"], text(&expected));
    }
    let mut usage = usage.unwrap();
    usage["prompt_tokens_details"] = whole["usage"]["prompt_tokens_details"].clone();
    assert_eq!(usage, whole["usage"]);
    let tokens = raw.map(|text| engine().tokenizer().encode(text).unwrap().len());
    assert_eq!(usage["prompt_tokens"], tokens[0] + tokens[1]);
}

#[test]
fn stop_texts_end_it() {
    let server = Server::start(&[]);
    let greedy = Sampling::greedy().max_tokens(24);
    let whole = text(&pieces(&Prompt::user(QUESTION), &greedy));
    let stop: String = whole.chars().skip(9).take(4).collect();
    let how = greedy.stop(vec![stop.clone()]);
    let expected = pieces(&Prompt::user(QUESTION), &how);
    assert!(whole.starts_with(&text(&expected)) && finish(&expected) == "stop");
    let body = json!({"messages": user(QUESTION), "max_tokens": 24, "temperature": 0});
    for stop in [json!(stop), json!(["\u{1}", stop])] {
        let body = with(&body, &json!({"stop": stop}));
        assert_chat(&server.post(CHAT, &body).ok(), &expected);
        let (choices, _) = read(server.stream(CHAT, &with(&body, &json!({"stream": true}))));
        assert_eq!(choices[&0], (text(&expected), "stop".into()));
    }
}

/// Answers that are JSON, as the library's.
#[test]
fn formats_are_followed() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"name": {"enum": ["pdfgrep", "jaxe"]},
        "size": {"type": "integer"}}, "required": ["name", "size"], "additionalProperties": false});
    let format = |fields: Value| json!({"response_format": fields});
    let strict = json!({"name": "package", "strict": true, "schema": schema});
    let cases = [
        (
            format(json!({"type": "json_schema", "json_schema": strict})),
            Grammar::json_schema(engine(), &schema).unwrap(),
        ),
        (format(json!({"type": "json_object"})), Grammar::json_object(engine()).unwrap()),
    ];
    let body = json!({"max_tokens": 60, "seed": 4, "n": 2});
    for (fields, grammar) in cases {
        let fields = with(&body, &fields);
        let how = |seed| {
            Sampling::default()
                .max_tokens(60)
                .temperature(1.0)
                .seed(seed)
                .grammar(Some(grammar.clone()))
        };
        let chat = server.post(CHAT, &with(&fields, &json!({"messages": user(QUESTION)}))).ok();
        let stream = with(&fields, &json!({"prompt": "pdfgrep", "stream": true}));
        let (streamed, _) = read(server.stream(TEXT, &stream));
        for i in 0..2 {
            let expected = pieces(&Prompt::user(QUESTION), &how(4 + i));
            let choice = &chat["choices"][i as usize];
            assert_eq!(choice["message"]["content"], text(&expected));
            assert_eq!(choice["finish_reason"], finish(&expected));
            let expected = pieces(&Prompt::raw("pdfgrep"), &how(4 + i));
            assert_eq!(streamed[&i], (text(&expected), finish(&expected).into()));
            if finish(&expected) == "stop" {
                let answer: Value = serde_json::from_str(&text(&expected)).unwrap();
                assert!(answer.is_object(), "{answer}");
            }
        }
    }
    let wrong = json!({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}});
    let answer = server.post(CHAT, &with(&json!({"messages": user("x")}), &format(wrong)));
    answer.fails(400, &["nothing"]);
    assert_eq!(answer.json()["error"]["param"], "response_format.json_schema.schema");
}

/// A beginning that was computed before is found.
#[test]
fn cached_tokens_are_told() {
    let server = Server::start(&[]);
    let long = format!("Which of these fits? {}", "chess interface for the desktop; ".repeat(30));
    let body = json!({"messages": user(&long), "max_tokens": 3, "temperature": 0});
    let cached = |body: &Value| {
        let usage = server.post(CHAT, body).ok()["usage"].clone();
        let tokens = usage["prompt_tokens"].as_u64().unwrap();
        (tokens, usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    let (tokens, none) = cached(&body);
    assert!(none == 0 && tokens > 128);
    let pages = (tokens - 1) / 128 * 128;
    assert_eq!(cached(&body), (tokens, pages));
    // Of a prompt, not of its choices.
    assert_eq!(cached(&with(&body, &json!({"n": 3}))), (tokens, pages));
}
