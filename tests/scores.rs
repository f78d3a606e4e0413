//! Log-probabilities of a given text: as the logits have them on every device, through the library,
//! the scheduler and `echo` of `/v1/completions`.

use crate::serve::Server;
use crate::support::{Reference, close, devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::schedule::{Event, Limits, Scheduler, Work};
use gritlm::{Device, Engine, Options, Prompt, Sampling};
use gritlm_model::ops::SampledToken;
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";

fn demo() -> Engine {
    let options = Options::default().device(Device::Cpu);
    Engine::open("demo", &options).unwrap()
}

fn scoring(logprobs: u32, max_tokens: usize) -> Sampling {
    Sampling::greedy().max_tokens(max_tokens).prompt_logprobs(Some(logprobs)).logprobs(logprobs)
}

/// Log-probabilities `(tokens, vocab)` in f64 from the logits of one pass.
fn by_logits(engine: &Engine, ids: &[u32]) -> Vec<Vec<f64>> {
    let (mut cache, mask) = (engine.cache(), engine.generation_mask());
    let sequence = Sequence { tokens: ids, cache: &mut cache, mask, want: Want::AllLogits };
    let Output::Logits(logits) = engine.run(&mut [sequence]).unwrap().remove(0) else { panic!() };
    let row = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&l| f64::from(l - max).exp()).sum();
        row.iter().map(|&l| f64::from(l - max) - sum.ln()).collect()
    };
    logits.chunks(engine.config().vocab).map(row).collect()
}

/// The scores are those of `ids` from the second on, with the likeliest beside them.
#[track_caller]
fn check(
    name: &str,
    scores: &[SampledToken],
    ids: &[u32],
    all: &[Vec<f64>],
    top: usize,
    bound: f64,
) {
    assert_eq!(scores.iter().map(|s| s.token).collect::<Vec<_>>(), ids[1..], "{name}");
    let (found, expected): (Vec<f32>, Vec<f32>) =
        scores.iter().zip(all).map(|(s, row)| (s.logprob, row[s.token as usize] as f32)).unzip();
    if ids.len() > 1 {
        close(name, &found, &expected, bound);
    }
    for (score, row) in scores.iter().zip(all) {
        assert_eq!(score.top.len(), top, "{name}");
        let mut sorted: Vec<f64> = row.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for (&(id, logprob), expected) in score.top.iter().zip(sorted) {
            assert!((f64::from(logprob) - expected).abs() < 1e-3, "{name}: {score:?}");
            // To the bit, where it is the token itself.
            assert!(id != score.token || logprob == score.logprob, "{name}: {score:?}");
        }
    }
}

#[test]
fn a_prompts_scores_are_those_of_its_logits_on_every_device() {
    for (device, bound) in devices() {
        for (name, tokens) in [("mistral-tiny", 140), ("mixtral-tiny", 2), ("mistral-odd", 131)] {
            // Parts of 50 tokens: scores reach over the ends of passes.
            let options = Options::default().device(device.clone()).batch_tokens(50);
            let reference = Reference::open_with(name, options);
            let engine = &reference.engine;
            let vocab = engine.config().vocab as u32;
            let ids: Vec<u32> = (0..tokens).map(|i| (i * i * 7 + 3 * i + 1) % vocab).collect();
            let all = by_logits(engine, &ids);
            let name = format!("{name} on {device:?}");
            for (top, max_tokens) in [(0, 0), (3, 2)] {
                let prompt = Prompt::Tokens(ids.clone());
                let how = scoring(top, max_tokens);
                let mut answer = engine.generate(&prompt, &how).unwrap();
                assert!(answer.prompt_logprobs().is_empty());
                let pieces: Vec<_> = answer.by_ref().map(Result::unwrap).collect();
                assert!(pieces.len() <= max_tokens && pieces.is_empty() == (max_tokens == 0));
                check(&name, answer.prompt_logprobs(), &ids, &all, top as usize, bound);
                let how = how.prompt_logprobs(None);
                let alone: Vec<_> = engine.generate(&prompt, &how).unwrap().collect();
                assert_eq!(alone.into_iter().map(Result::unwrap).collect::<Vec<_>>(), pieces);
            }
        }
    }
}

#[test]
fn scores_come_through_the_scheduler_whatever_else_is_in_the_batch() {
    let engine = demo();
    let vocab = engine.config().vocab as u32;
    let ids = |n: u32, seed: u32| (0..n).map(|i| (i * i * seed + i) % vocab).collect::<Vec<_>>();
    // The second begins as the first does: its scores are there although its keys are shared.
    let long = ids(400, 11);
    let prompts = [long.clone(), [&long[..300], &ids(9, 5)].concat(), ids(2, 3), ids(1, 7)];
    let expected: Vec<_> = prompts.iter().map(|prompt| by_logits(&engine, prompt)).collect();
    let limits = Limits::default().batch_tokens(64);
    let scheduler = Scheduler::start(engine, limits).unwrap();
    for _ in 0..2 {
        let work = |prompt: &Vec<u32>| Work::Generate {
            prompt: prompt.clone(),
            sampling: scoring(2, 3).ignore_eos(true),
            past: None,
        };
        let plain =
            Work::Generate { prompt: long.clone(), sampling: Sampling::greedy(), past: None };
        let _beside = scheduler.submit(plain.into()).unwrap();
        let all = prompts.each_ref().map(|p| scheduler.submit(work(p).into()).unwrap());
        for ((events, ids), expected) in all.into_iter().zip(&prompts).zip(&expected) {
            let events: Vec<Event> = events.collect();
            let Event::Prompt(scores) = &events[0] else { panic!("{events:?}") };
            let prompts = events.iter().filter(|event| matches!(event, Event::Prompt(_))).count();
            assert_eq!(prompts, 1);
            check("scheduler", scores, ids, expected, 2, 1e-5);
            let Some(Event::Finished(summary)) = events.last() else { panic!("{events:?}") };
            assert_eq!((summary.output_tokens, summary.cached_tokens), (3, 0));
        }
    }
}

/// Numbers of a list that has a null in front.
#[track_caller]
fn after_null(list: &Value) -> Vec<f32> {
    let (first, rest) = list.as_array().unwrap().split_first().unwrap();
    assert!(first.is_null(), "{list}");
    rest.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn echo_tells_the_prompt_and_how_likely_it_is() {
    let (server, engine) = (Server::start(&[]), demo());
    let tokenizer = engine.tokenizer();
    let texts = ["Package: pdfgrep", " größer als π\n\n    x = 1", "a"];
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        let all = by_logits(&engine, &ids);
        let body = json!({"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true});
        let forms = [json!(text), json!([text]), json!(ids), json!([ids])];
        for (form, prompt) in forms.into_iter().enumerate() {
            let mut body = body.clone();
            body["prompt"] = prompt;
            let answer = server.post(TEXT, &body).ok();
            let choice = &answer["choices"][0];
            let (told, logprobs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
            if form < 2 {
                assert!(told.starts_with(text), "{told:?}");
            }
            // Exactly one token more, which is the answer.
            let scores = after_null(&logprobs["token_logprobs"]);
            assert_eq!(scores.len(), ids.len(), "{answer}");
            let expected: Vec<f32> =
                ids[1..].iter().zip(&all).map(|(&id, row)| row[id as usize] as f32).collect();
            close(text, &scores[..ids.len() - 1], &expected, 1e-5);
            let lists = ["tokens", "text_offset", "top_logprobs", "token_logprobs"];
            for list in lists {
                assert_eq!(logprobs[list].as_array().unwrap().len(), ids.len() + 1, "{list}");
            }
            assert_eq!(logprobs["tokens"][0], "<s>");
            // Floats that are the same are the same in every digit.
            let tops = logprobs["top_logprobs"].as_array().unwrap();
            assert!(tops[0].is_null(), "{answer}");
            for (top, (token, score)) in tops[1..].iter().zip(
                (logprobs["tokens"].as_array().unwrap()[1..].iter())
                    .zip(&logprobs["token_logprobs"].as_array().unwrap()[1..]),
            ) {
                assert_eq!(top[token.as_str().unwrap()].to_string(), score.to_string(), "{top}");
            }
            let usage = &answer["usage"];
            assert_eq!([&usage["prompt_tokens"], &usage["completion_tokens"]], [ids.len(), 1]);

            body["stream"] = json!(true);
            let (mut streamed, mut tokens, mut offsets) = (String::new(), Vec::new(), Vec::new());
            for event in server.stream(TEXT, &body).take_while(|event| event != "[DONE]") {
                let choice = &serde_json::from_str::<Value>(&event).unwrap()["choices"][0];
                streamed += choice["text"].as_str().unwrap();
                let list = |name: &str| choice["logprobs"][name].as_array().cloned();
                tokens.extend(list("token_logprobs").unwrap_or_default());
                offsets.extend(list("text_offset").unwrap_or_default());
            }
            assert_eq!(
                (streamed.as_str(), json!(tokens)),
                (told, logprobs["token_logprobs"].clone())
            );
            assert_eq!(json!(offsets), logprobs["text_offset"]);
        }
    }
}

#[test]
fn echo_without_an_answer_or_without_scores() {
    let server = Server::start(&[]);
    let texts = ["Package: gnuplot", "one two", "x"];
    // A given text is scored, and nothing is added.
    for text in texts {
        let body = json!({"prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0});
        let choice = &server.post(TEXT, &body).ok()["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
        let logprobs = &choice["logprobs"];
        assert!(!after_null(&logprobs["token_logprobs"]).is_empty(), "{choice}");
        assert!(logprobs["top_logprobs"].is_null(), "{choice}");
        let body = json!({"prompt": text, "max_tokens": 0, "echo": true});
        let choice = &server.post(TEXT, &body).ok()["choices"][0];
        assert_eq!((&choice["text"], &choice["logprobs"]), (&json!(text), &json!(null)));
    }
    // Each choice of each prompt begins with its own prompt, streamed or not.
    let body = json!({"prompt": texts, "n": 2, "max_tokens": 4, "echo": true, "seed": 1});
    let answer = server.post(TEXT, &body).ok();
    let plain =
        server.post(TEXT, &json!({"prompt": texts, "n": 2, "max_tokens": 4, "seed": 1})).ok();
    let mut streams = vec![String::new(); 6];
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    for event in server.stream(TEXT, &streaming).take_while(|event| event != "[DONE]") {
        let choice = &serde_json::from_str::<Value>(&event).unwrap()["choices"][0];
        streams[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    for i in 0..6 {
        let text = |answer: &Value| answer["choices"][i]["text"].as_str().unwrap().to_string();
        assert_eq!(text(&answer), format!("{}{}", texts[i / 2], text(&plain)));
        assert_eq!(text(&answer), streams[i]);
    }
    // Without `<s>`, when told so.
    let body = json!({"prompt": "one two", "max_tokens": 1, "echo": true, "logprobs": 1,
        "add_special_tokens": false});
    let answer = server.post(TEXT, &body).ok();
    assert_ne!(answer["choices"][0]["logprobs"]["tokens"][0], "<s>");
    // A conversation has no beginning to tell.
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "echo": true});
    server.post("/v1/chat/completions", &body).fails(400, &["echo", "not supported"]);
}

#[test]
fn the_token_that_ends_the_text_is_told() {
    let (server, engine) = (Server::start(&[]), demo());
    for question in
        ["Describe the package pdfgrep.", "Describe the package jaxe.", "What is gnuplot?"]
    {
        let prompt = Prompt::user(question);
        let mut ids = engine.tokenize_prompt(&prompt, false).unwrap();
        let how = Sampling::greedy().max_tokens(400);
        let pieces = engine.generate(&prompt, &how).unwrap().map(Result::unwrap);
        ids.extend(pieces.map(|piece| piece.token.token));
        // The answer ends by itself; its last token is what comes after all the others.
        let end = ids.pop().unwrap();
        assert!(engine.tokenizer().is_eos(end), "{question}");
        let body = json!({"prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "echo": true, "seed": 1234});
        let choice = &server.post(TEXT, &body).ok()["choices"][0];
        let logprobs = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), ids.len() + 1, "{list}");
        }
        assert_eq!(logprobs["tokens"][ids.len()], "</s>");
        let (top, score) =
            (&logprobs["top_logprobs"][ids.len()]["</s>"], &logprobs["token_logprobs"][ids.len()]);
        assert_eq!(top.to_string(), score.to_string());
        assert_eq!(choice["finish_reason"], "stop");
    }
}
