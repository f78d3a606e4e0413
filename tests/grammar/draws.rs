//! Which token is drawn under a grammar: what it does not forbid is drawn as ever.

use super::{byte_level, changed, demo, drawn, engines, following, schemas};
use gritlm::model::{cpu, ops::SampleParams};
use gritlm::{Engine, Prompt, Sampling};
use serde_json::json;

/// The logits from which a piece was drawn.
fn logits(engine: &Engine, before: &[u32]) -> Vec<f32> {
    use gritlm::batch::{Output, Sequence, Want};
    let (mask, want) = (engine.generation_mask(), Want::Logits);
    let cache = &mut engine.cache();
    match engine.run(&mut [Sequence { tokens: before, cache, mask, want }]).unwrap().remove(0) {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

/// The mask is exactly what the grammar allows: the first token of a greedy answer is the likeliest
/// of those that some answer begins with, a space in front that the text does not show included.
#[test]
fn the_likeliest_allowed_token_is_drawn() {
    for engine in engines().into_iter().chain([changed("tokenizer.json", &byte_level())]) {
        let mut spaces = vec![String::new(), " ".into()];
        spaces.extend((0..=20).map(|n| format!("\n{}", " ".repeat(n))));
        let answers: Vec<String> = spaces
            .iter()
            .flat_map(|space| ["true", "false"].map(|answer| format!("{space}{answer}")))
            .collect();
        let how = following(&engine, &json!({ "type": "boolean" }), Sampling::greedy());
        let bytes = engine.tokenizer().token_bytes().unwrap();
        for words in ["Describe the package pdfgrep.", "Is it?", "x"] {
            let prompt = engine.tokenize_prompt(&Prompt::user(words), false).unwrap();
            let logits = logits(&engine, &prompt);
            let allowed = |id: &usize| {
                let bytes = bytes.get(*id).cloned().flatten().unwrap_or_default();
                // Tabs go where spaces do, but for the first.
                let indented = bytes.strip_prefix(b"\n").unwrap_or_default();
                let spaces = indented.iter().take_while(|b| b" \t".contains(b)).count();
                let mut plain = bytes.clone();
                plain.iter_mut().skip(1).take(spaces).for_each(|b| *b = b' ');
                !bytes.is_empty() && answers.iter().any(|a| a.as_bytes().starts_with(&plain))
            };
            let better = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a));
            let likeliest = (0..logits.len()).filter(allowed).max_by(better).unwrap();
            let prompt = Prompt::Tokens(prompt);
            let first = engine.generate(&prompt, &how).unwrap().next().unwrap().unwrap();
            assert_eq!(first.token.token as usize, likeliest, "{}", engine.name());
        }
    }
}

/// Log-probabilities are the model's own, of all tokens: before anything is taken out.
#[test]
fn log_probabilities_are_the_models_own() {
    let engine = demo();
    let how = following(&engine, &schemas()[0].0, drawn(4).logprobs(3));
    let mut before = engine.tokenize_prompt(&Prompt::user("Describe it."), false).unwrap();
    let answer = engine.generate(&Prompt::Tokens(before.clone()), &how).unwrap();
    let mut forbidden = 0;
    for piece in answer.map(Result::unwrap).take(40) {
        let logits = logits(&engine, &before);
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |id: u32| f64::from(logits[id as usize]) - sum.ln();
        let of = |(id, logprob): (u32, f32)| {
            assert!((f64::from(logprob) - expected(id)).abs() < 1e-4);
        };
        of((piece.token.token, piece.token.logprob));
        piece.token.top.iter().copied().for_each(of);
        let mut likeliest: Vec<u32> = (0..logits.len() as u32).collect();
        likeliest
            .sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        let top: Vec<u32> = piece.token.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(top, likeliest[..3]);
        forbidden += usize::from(likeliest[0] != piece.token.token);
        before.push(piece.token.token);
    }
    assert!(forbidden > 0, "the model wrote JSON by itself");
}

/// Where all is allowed, the host draws what the device does.
#[test]
fn the_host_draws_as_the_device() {
    use gritlm::batch::{Output, Sequence, Want};
    let engine = demo();
    let prompt = engine.tokenize_prompt(&Prompt::user("Describe it."), false).unwrap();
    let logits = logits(&engine, &prompt);
    let base = SampleParams {
        seen: vec![5, 300, 301],
        penalty: 1.0,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.0,
        logprobs: 4,
        given: None,
    };
    for i in 0..60 {
        let mut draw = SampleParams { uniform: i as f32 / 60.0, ..base.clone() };
        match i % 5 {
            1 => draw.top_k = 7,
            2 => draw.top_p = 0.6,
            3 => draw = SampleParams { min_p: 0.1, penalty: 1.7, ..draw },
            4 => draw.temperature = 0.0,
            _ => {}
        }
        let (mask, want) = (engine.generation_mask(), Want::Token(draw.clone()));
        let cache = &mut engine.cache();
        let sequence = Sequence { tokens: &prompt, cache, mask, want };
        let found = engine.run(&mut [sequence]).unwrap().remove(0);
        assert_eq!(found, Output::Token(cpu::draw(&draw, &logits, |_| true)));
        // And else what is left is drawn from: never anything else, whatever the filters.
        let only = |id: u32| id % 50 == 3;
        let among = cpu::draw(&draw, &logits, only);
        assert!(only(among.token), "{draw:?}");
        let likeliest =
            (3..logits.len()).step_by(50).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        assert!(draw.temperature > 0.0 || Some(among.token as usize) == likeliest);
    }
}
