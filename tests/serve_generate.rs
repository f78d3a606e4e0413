//! `/v1/chat/completions` and `/v1/completions`: the library's answers, whole or streamed, alone or
//! beside others; what is counted, what is refused.

use crate::serve::Server;
use gritlm::schedule::Limits;
use gritlm::{Device, Engine, Finish, Grammar, Options, Piece, Prompt, Sampling};
use gritlm_serve::Settings;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const QUESTION: &str = "Describe the package pdfgrep.";
const TURNS: [&str; 3] = ["What is jaxe?", "In which section would it be?", "And now?"];

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        Engine::open("demo", &Options { device: Device::Cpu, ..Options::default() }).unwrap()
    })
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
    let how = Sampling { max_tokens: 24, ..Sampling::greedy() };
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
    let how = Sampling { max_tokens: 16, ..Sampling::greedy() };
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
    let base = Sampling { max_tokens: 12, temperature: 1.0, seed: 7, ..Sampling::default() };
    let cases = [
        (json!({}), base.clone()),
        (json!({"seed": 8}), Sampling { seed: 8, ..base.clone() }),
        (json!({"seed": -1}), Sampling { seed: u64::MAX, ..base.clone() }),
        (json!({"temperature": 3}), Sampling { temperature: 3.0, ..base.clone() }),
        (json!({"top_p": 0.2}), Sampling { top_p: 0.2, ..base.clone() }),
        (json!({"top_k": 2, "seed": 1}), Sampling { top_k: 2, seed: 1, ..base.clone() }),
        (json!({"min_p": 0.3}), Sampling { min_p: 0.3, ..base.clone() }),
        (
            json!({"repetition_penalty": 3, "temperature": 0}),
            Sampling { repetition_penalty: 3.0, temperature: 0.0, ..base.clone() },
        ),
        (json!({"ignore_eos": true, "max_tokens": 60}), {
            Sampling { ignore_eos: true, max_tokens: 60, ..base.clone() }
        }),
        (json!({"max_completion_tokens": 5}), Sampling { max_tokens: 5, ..base.clone() }),
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

/// A conversation over HTTP, which has it all in each request, against one on a cache: equal where
/// the answers' texts give their tokens back.
#[test]
fn later_turns_are_the_librarys() {
    let server = Server::start(&[]);
    let (mut chat, mut messages, mut past) = (engine().chat(), Vec::new(), Vec::new());
    for turn in TURNS {
        let prompt = |past: &[(String, String)], text: &str| {
            let prompt = Prompt::Chat { past: past.to_vec(), text: text.into() };
            engine().tokenize_prompt(&prompt, false).unwrap()
        };
        let before = prompt(&past, turn);
        let how = |seed| Sampling { max_tokens: 8, temperature: 3.0, seed, ..Sampling::default() };
        let canonical = |seed: &u64| {
            let asked = Prompt::Chat { past: past.to_vec(), text: turn.into() };
            let answer = pieces(&asked, &how(*seed));
            let mut ids = before.clone();
            ids.extend(answer.iter().map(|piece| piece.token.token));
            let past = [&past[..], &[(turn.into(), text(&answer))]].concat();
            finish(&answer) == "length" && prompt(&past, "x").starts_with(&ids)
        };
        let seed = (0..1000).find(canonical).unwrap();
        let answer = chat.say(turn, &how(seed)).unwrap();
        assert_eq!(answer.prompt_tokens(), before.len());
        let expected: Vec<Piece> = answer.map(Result::unwrap).collect();
        messages.push(json!({"role": "user", "content": turn}));
        let body = json!({"messages": messages, "max_tokens": 8, "temperature": 3, "seed": seed});
        let answer = server.post(CHAT, &body).ok();
        assert_eq!(answer["usage"]["prompt_tokens"], before.len());
        assert_chat(&answer, &expected);
        messages.push(answer["choices"][0]["message"].clone());
        past.push((turn.into(), text(&expected)));
    }
}

/// The same ids as in a chat on a cache; and no text of a turn is a special token.
#[test]
fn turns_become_the_right_ids() {
    let engine = engine();
    let (bos, eos) = (engine.config().bos, engine.config().eos[0]);
    let tokenizer = engine.tokenizer();
    let past = vec![("Hi".into(), "Hello.".into()), ("Why?".into(), "Because.".into())];
    let ids = engine.tokenize_prompt(&Prompt::Chat { past, text: "Bye".into() }, false).unwrap();
    // As a whole, as from a chat template.
    let whole = "<|user|>\nHi\n<|assistant|>\nHello.</s>\n<|user|>\nWhy?\n<|assistant|>\nBecause.\
                 </s>\n<|user|>\nBye\n<|assistant|>\n";
    assert_eq!(ids, tokenizer.encode(whole).unwrap());

    let text = "a</s>b<s>c<unk>";
    let ids = engine.tokenize_prompt(&Prompt::user(text), false).unwrap();
    assert_eq!((ids[0], ids[1..].iter().filter(|&&id| id <= eos).count()), (bos, 0));
    let shown = tokenizer.decode(&ids).unwrap();
    assert_eq!(shown, format!("<|user|>\n{text}\n<|assistant|>\n"));
    let past = vec![(text.into(), text.into())];
    let ids = engine.tokenize_prompt(&Prompt::Chat { past, text: text.into() }, false).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == eos).count(), 1);
    // In verbatim text they are what they are.
    let ids = engine.tokenize_prompt(&Prompt::raw("a</s>"), false).unwrap();
    assert_eq!(ids.last(), Some(&eos));
}

#[test]
fn messages_become_turns() {
    let server = Server::start(&[]);
    let text = |messages: Value| {
        let body = json!({"messages": messages, "max_tokens": 6, "temperature": 0});
        let answer = server.post(CHAT, &body).ok();
        (answer["usage"]["prompt_tokens"].clone(), answer["choices"][0]["message"].clone())
    };
    let parts = |parts: [&str; 2]| -> Value {
        let part = |text: &&str| json!({"type": "text", "text": text});
        parts.iter().map(part).collect::<Vec<_>>().into()
    };
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let one = text(user("Be brief.\n\nWhat is jaxe?"));
    for messages in [
        json!([message("system", "Be brief."), message("user", "What is jaxe?")]),
        json!([message("developer", "Be brief."), message("user", "What is jaxe?")]),
        json!([message("user", "Be brief."), message("user", "What is jaxe?")]),
        json!([{"role": "user", "content": parts(["Be brief.\n", "\nWhat is jaxe?"])}]),
    ] {
        assert_eq!(text(messages.clone()), one, "{messages}");
    }
    let past = |answers: &[&str]| {
        let mut all = vec![message("user", "Hi")];
        all.extend(answers.iter().map(|text| message("assistant", text)));
        all.extend([message("system", "Be brief."), message("user", "And?")]);
        text(all.into())
    };
    assert_eq!(past(&["Hello.\n\nWell?"]), past(&["Hello.", "Well?"]));
    let how = Sampling { max_tokens: 6, ..Sampling::greedy() };
    let prompt = Prompt::Chat {
        past: vec![("Hi".into(), "Hello.".into())],
        text: "Be brief.\n\nAnd?".into(),
    };
    assert_eq!(past(&["Hello."]).1["content"], self::text(&pieces(&prompt, &how)));
}

/// Choices have seeds one after the other, and each prompt has the same ones.
#[test]
fn several_choices() {
    let server = Server::start(&[]);
    let how = |seed| Sampling { max_tokens: 9, temperature: 2.0, seed, ..Sampling::default() };
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
    let greedy = Sampling { max_tokens: 24, ..Sampling::greedy() };
    let whole = text(&pieces(&Prompt::user(QUESTION), &greedy));
    let stop: String = whole.chars().skip(9).take(4).collect();
    let how = Sampling { stop: vec![stop.clone()], ..greedy };
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
        let how = |seed| Sampling {
            max_tokens: 60,
            temperature: 1.0,
            seed,
            grammar: Some(grammar.clone()),
            ..Sampling::default()
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

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

#[test]
fn logprobs_are_the_librarys() {
    let server = Server::start(&[]);
    let how =
        Sampling { max_tokens: 12, temperature: 1.0, seed: 3, logprobs: 4, ..Sampling::default() };
    let spelled = |id: u32| engine().tokenizer().token(id).unwrap();
    let body = json!({"max_tokens": 12, "seed": 3});
    let chat = with(&body, &json!({"messages": user(QUESTION), "logprobs": true}));
    let expected = pieces(&Prompt::user(QUESTION), &how);

    let same = |found: &Value, id: u32, logprob: f32| {
        let (token, bytes) = spelled(id);
        assert_eq!(found["token"], token);
        assert_eq!(found["bytes"], json!(bytes));
        assert_eq!(number(&found["logprob"]), logprob);
    };
    let check = |found: &[Value], top: usize| {
        assert_eq!(found.len(), expected.len());
        for (found, Piece { token, .. }) in found.iter().zip(&expected) {
            same(found, token.token, token.logprob);
            let likely = found["top_logprobs"].as_array().unwrap();
            assert_eq!(likely.len(), top);
            for (found, &(id, logprob)) in likely.iter().zip(&token.top) {
                same(found, id, logprob);
            }
        }
    };
    for top in [0, 4] {
        let body = with(&chat, &json!({"top_logprobs": top}));
        let whole = server.post(CHAT, &body).ok();
        check(whole["choices"][0]["logprobs"]["content"].as_array().unwrap(), top);
        let mut streamed = Vec::new();
        for data in server.stream(CHAT, &with(&body, &json!({"stream": true}))) {
            if data != "[DONE]" {
                let chunk: Value = serde_json::from_str(&data).unwrap();
                let logprobs = &chunk["choices"][0]["logprobs"];
                streamed.extend(logprobs["content"].as_array().into_iter().flatten().cloned());
            }
        }
        check(&streamed, top);
    }

    // Some characters are several tokens, whose text comes with the last.
    let raw = "pdfgrep is";
    let how = |seed| Sampling { temperature: 99.0, max_tokens: 40, seed, ..how.clone() };
    let held = |seed: &u64| {
        let all = pieces(&Prompt::raw(raw), &how(*seed));
        all.iter().filter(|piece| piece.text.is_empty()).count() > 2
    };
    let seed = (0..100).find(held).unwrap();
    let expected = pieces(&Prompt::raw(raw), &how(seed));
    let body = json!({"prompt": raw, "max_tokens": 40, "seed": seed, "temperature": 99});
    let body = with(&body, &json!({"logprobs": 4}));
    let whole = server.post(TEXT, &body).ok();
    let found = &whole["choices"][0]["logprobs"];
    let mut before = String::new();
    for (i, Piece { token, text, .. }) in expected.iter().enumerate() {
        let (drawn, _) = spelled(token.token);
        assert_eq!(found["tokens"][i], drawn);
        assert_eq!(number(&found["token_logprobs"][i]), token.logprob);
        assert_eq!(found["text_offset"][i], before.chars().count());
        let top = found["top_logprobs"][i].as_object().unwrap();
        let &(likeliest, logprob) = &token.top[0];
        assert_eq!(number(&top[&spelled(likeliest).0]), logprob);
        assert!(top.contains_key(&drawn));
        before += text;
    }
    assert_eq!(found["tokens"].as_array().unwrap().len(), expected.len());
    let mut streamed: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for data in server.stream(TEXT, &with(&body, &json!({"stream": true}))) {
        if data != "[DONE]" {
            let chunk: Value = serde_json::from_str(&data).unwrap();
            for (name, values) in chunk["choices"][0]["logprobs"].as_object().into_iter().flatten()
            {
                streamed
                    .entry(name.clone())
                    .or_default()
                    .extend(values.as_array().unwrap().clone());
            }
        }
    }
    assert_eq!(&json!(streamed), found);
    let body = with(&body, &json!({"logprobs": 0}));
    assert!(server.post(TEXT, &body).ok()["choices"][0]["logprobs"]["top_logprobs"].is_null());
}

/// Tokens on their own, and what their bytes make together.
#[test]
fn tokens_have_bytes() {
    let tokenizer = engine().tokenizer();
    let text = "naïve ✓ \u{1F600} x";
    let ids = tokenizer.encode_continued(text).unwrap();
    let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|(_, bytes)| bytes.clone().unwrap()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
    assert!(tokens.contains(&("\u{FFFD}".into(), Some(vec![0xF0]))), "{tokens:?}");
    let eos = tokenizer.token(engine().config().eos[0]).unwrap();
    assert_eq!(eos, ("</s>".into(), Some(b"</s>".to_vec())));
}

/// Ends those who go on until it is done, also when the test fails.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// While eight others generate, answers are what they are alone.
#[test]
fn others_change_nothing() {
    let server = Server::start(&[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&done);
        for i in 0..8 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let body = json!({"prompt": "a ".repeat(20 * i + 1), "max_tokens": 64,
                    "ignore_eos": true, "stream": true});
                while !done.load(Ordering::Relaxed) {
                    read(server.stream(TEXT, &body));
                }
            });
        }
        for (i, turn) in TURNS.iter().enumerate() {
            for temperature in [0.0, 1.5] {
                let how =
                    Sampling { max_tokens: 20, temperature, seed: i as u64, ..Sampling::default() };
                let expected = pieces(&Prompt::user(*turn), &how);
                let body = json!({"messages": user(turn), "max_tokens": 20, "seed": i,
                    "temperature": temperature});
                assert_chat(&server.post(CHAT, &body).ok(), &expected);
                let (choices, _) =
                    read(server.stream(CHAT, &with(&body, &json!({"stream": true}))));
                assert_eq!(choices[&0], (text(&expected), finish(&expected).into()));
            }
        }
    });
}

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

/// Waits until the scheduler's counter is so high.
fn wait_for(server: &Server, counter: &str, at_least: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stats = server.get("/stats").ok()["stats"].clone();
        assert!(stats["finished"] == 0 && Instant::now() < deadline, "{stats}");
        if stats[counter].as_u64().unwrap() >= at_least {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client that goes away takes its requests with it.
#[test]
fn who_leaves_is_not_answered() {
    let server = Server::start(&["--kv-tokens", "65536"]);
    let body = json!({"messages": user(QUESTION), "n": 4, "max_tokens": 2000, "ignore_eos": true});
    let mut events = server.stream(CHAT, &with(&body, &json!({"stream": true})));
    assert!(events.next().unwrap().contains("chat.completion.chunk"));
    drop(events);
    wait_for(&server, "cancelled", 4);

    let mut socket = TcpStream::connect(server.address()).unwrap();
    let body = body.to_string();
    let head = "content-type: application/json\r\nhost: localhost";
    let length = body.len();
    write!(socket, "POST {CHAT} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    wait_for(&server, "running", 4);
    drop(socket);
    wait_for(&server, "cancelled", 8);
}

/// What fails on the way is the stream's last event; what fails before has its status.
#[test]
fn a_failure_ends_the_stream() {
    // Every pass with the next token of an answer fails, and none with a prompt.
    let fault: fn(&[u32]) -> bool = |tokens| tokens.len() == 1;
    let limits = Limits { fault: Some(fault), ..Limits::default() };
    let settings = Settings { name: "demo".into(), limits, ..Settings::default() };
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    std::thread::spawn(move || {
        let options = Options { device: Device::Cpu, ..Options::default() };
        server.run(move || Engine::open("demo", &options), std::future::pending())
    });
    while ureq::get(format!("{url}/ready")).call().is_err() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let post = |fields: &Value| {
        let body = with(
            &json!({"messages": user(QUESTION), "temperature": 0, "ignore_eos": true}),
            fields,
        );
        let request = ureq::post(format!("{url}{CHAT}")).config().http_status_as_error(false);
        let request = request.build().header("content-type", "application/json");
        let mut answer = request.send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (status, text) = post(&json!({}));
    assert!(status == 500 && text.contains("as it was to"), "{text}");
    let (status, text) = post(&json!({"stream": true}));
    let [first, error, ""] = text.split("\n\n").collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(status == 200 && first.contains("\"content\":"), "{first}");
    let error: Value = serde_json::from_str(error.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(error["error"]["message"].as_str().unwrap().contains("as it was to"));
    assert_eq!(post(&json!({"max_tokens": 1})).0, 200);
}
