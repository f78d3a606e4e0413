//! Log-probabilities of answers, and the bytes of their tokens.

use super::{CHAT, QUESTION, TEXT, engine, pieces, user, with};
use crate::serve::Server;
use gritlm::{Piece, Prompt, Sampling};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

#[test]
fn logprobs_are_the_librarys() {
    let server = Server::start(&[]);
    let how = Sampling::default().max_tokens(12).temperature(1.0).seed(3).logprobs(4);
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
    let how = |seed| how.clone().temperature(99.0).max_tokens(40).seed(seed);
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
