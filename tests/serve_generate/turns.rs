//! Conversations: their turns become the token ids of a chat on a cache, and their answers are the
//! library's.

use super::{CHAT, TURNS, assert_chat, engine, finish, pieces, text, user};
use crate::serve::Server;
use gritlm::{Piece, Prompt, Sampling};
use serde_json::{Value, json};

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
        let how = |seed| Sampling::default().max_tokens(8).temperature(3.0).seed(seed);
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
    let how = Sampling::greedy().max_tokens(6);
    let prompt = Prompt::Chat {
        past: vec![("Hi".into(), "Hello.".into())],
        text: "Be brief.\n\nAnd?".into(),
    };
    assert_eq!(past(&["Hello."]).1["content"], self::text(&pieces(&prompt, &how)));
}
