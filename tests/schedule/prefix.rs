//! Kept beginnings of prompts: computed once, reused, and evicted when somebody needs the pages.

use super::{demo, demo_with, embed, end, greedy, ids, outcome, start};
use crate::support::Reference;
use gritlm::model::ops::{Mask, PAGE};
use gritlm::schedule::Work;
use gritlm::{Piece, Prompt, Sampling};

#[test]
fn common_beginnings_are_computed_once() {
    for (model, window) in [("demo", None), ("mistral-tiny", Some(12)), ("mixtral-tiny", None)] {
        let engine = match model {
            "demo" => demo(),
            name => Reference::open(name).engine,
        };
        assert_eq!(engine.generation_mask(), Mask::Causal { window });
        let prompt = |seed: u32, shared: usize, tokens: usize| {
            let mut prompt = ids(1, shared);
            prompt.extend(ids(seed, tokens - shared));
            prompt
        };
        let how = greedy(140).repetition_penalty(1.1).ignore_eos(true);
        let how = how.verbatim(true);
        let cases = [
            (prompt(1, 300, 300), 0),
            (prompt(1, 300, 300), 2 * PAGE),
            (prompt(3, 200, 300), PAGE),
            (prompt(4, 100, 300), 0),
            // The last token is always run, and the page with it.
            (prompt(1, 2 * PAGE, 2 * PAGE), PAGE),
            (prompt(1, 2 * PAGE, 2 * PAGE + 1), 2 * PAGE),
        ];
        let expected = cases.each_ref().map(|(prompt, _)| {
            let answer = engine.generate(&Prompt::Tokens(prompt.clone()), &how).unwrap();
            answer.map(Result::unwrap).collect::<Vec<Piece>>()
        });
        let scheduler = start(engine, 64);
        let run = |prompt: &Vec<u32>, how: &Sampling| {
            let work = Work::Generate { prompt: prompt.clone(), sampling: how.clone(), past: None };
            let (pieces, _, summary) = outcome(scheduler.submit(work.into()).unwrap()).done();
            assert_eq!(summary.prompt_tokens, prompt.len());
            (pieces, summary.cached_tokens)
        };
        let mut hits = 0;
        for (i, ((prompt, cached), expected)) in cases.iter().zip(&expected).enumerate() {
            let found = run(prompt, &how);
            assert_eq!(found.1, *cached, "{model}: prompt {i}");
            assert_eq!(found.0, *expected, "{model}: prompt {i}");
            hits += cached;
        }
        // The next turn of a conversation begins with the answer, too.
        let mut turn = cases[0].0.clone();
        turn.extend(expected[0].iter().map(|p| p.token.token));
        turn.extend(ids(9, 5));
        assert_eq!(run(&turn, &how).1, 3 * PAGE, "{model}");
        // Another mask makes other keys; a bidirectional one, keys that depend on what follows.
        let mask = |mask| greedy(3).mask(Some(mask));
        assert_eq!(run(&cases[0].0, &mask(Mask::Causal { window: Some(200) })).1, 0);
        for _ in 0..2 {
            assert_eq!(run(&cases[0].0, &mask(Mask::Bidirectional { window: None })).1, 0);
        }
        let stats = scheduler.stats();
        assert_eq!(stats.prefix_tokens, (hits + 3 * PAGE) as u64);
        assert!(stats.pages_prefix >= 5 && stats.pages_free + stats.pages_prefix == stats.pages);
        end(&scheduler);
    }
}

/// Kept pages go as soon as somebody needs them, the longest unused first, and never those in use.
#[test]
fn kept_beginnings_make_room() {
    let engine = demo_with(6);
    let expected = engine.generate(&Prompt::Tokens(ids(1, 260)), &greedy(3)).unwrap();
    let expected: Vec<Piece> = expected.map(Result::unwrap).collect();
    let scheduler = start(engine, 64);
    let run = |seed, tokens| {
        let request = Work::Generate { prompt: ids(seed, tokens), sampling: greedy(3), past: None };
        let (pieces, _, summary) = outcome(scheduler.submit(request.into()).unwrap()).done();
        (pieces, summary.cached_tokens)
    };
    assert_eq!(run(1, 260), (expected.clone(), 0));
    run(2, 260);
    assert_eq!(scheduler.stats().pages_prefix, 4);
    assert_eq!(run(1, 260), (expected.clone(), 2 * PAGE));
    // Needs three of the pages: the second's go first, the last one before the first.
    outcome(scheduler.submit(embed([ids(3, 3 * PAGE)])).unwrap()).done();
    assert_eq!(scheduler.stats().pages_prefix, 3);
    assert_eq!(run(2, 130).1, PAGE);
    assert_eq!(run(1, 260), (expected.clone(), 2 * PAGE));
    outcome(scheduler.submit(embed([ids(3, 6 * PAGE)])).unwrap()).done();
    assert_eq!((scheduler.stats().pages_prefix, scheduler.stats().pages_free), (0, 6));
    assert_eq!(run(1, 260), (expected, 0));
    end(&scheduler);
}
