//! A full KV pool: answers give their pages to texts that need them, go on after them, and are the
//! same as alone.

use crate::schedule::{demo_with, embed, end, greedy, ids, outcome, start, until, with_priority};
use gritlm::schedule::{Event, Request, Work};
use gritlm::{Engine, Grammar, Piece, Prompt, Sampling};

/// Steps that a text waits at most: what an answer may draw before it yields, and what computing a
/// prompt of all pages takes at 256 tokens a step.
const SOON: u64 = 80;

/// Goes on to its last token.
fn endless(max_tokens: usize) -> Sampling {
    greedy(max_tokens).ignore_eos(true)
}

fn answer(prompt: Vec<u32>, how: Sampling) -> Request {
    Work::Generate { prompt, sampling: how, past: None }.into()
}

/// What an engine answers alone.
fn alone(engine: &Engine, prompt: &[u32], how: &Sampling) -> Vec<Piece> {
    let prompt = Prompt::Tokens(prompt.to_vec());
    engine.generate(&prompt, how).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_text_does_not_wait_for_the_answers_that_hold_all_pages() {
    // One answer that needs every page; two; nine, of pages for eight.
    for (pages, answers, tokens) in [(16, 1, 2000), (16, 2, 1000), (32, 9, 400)] {
        let scheduler = start(demo_with(pages), 256);
        let prompts: Vec<Vec<u32>> = (0..answers).map(|i| ids(i, 20)).collect();
        let how = endless(tokens);
        let submit = |prompt: &Vec<u32>| scheduler.submit(answer(prompt.clone(), how.clone()));
        let events: Vec<_> = prompts.iter().map(|prompt| submit(prompt).unwrap()).collect();
        until(&scheduler, |stats| stats.pages_free < 4 && stats.steps > 40);
        for length in [1000, 200, 700] {
            let text = scheduler.submit(embed([ids(77, length)])).unwrap();
            let (_, vectors, summary) = outcome(text).done();
            assert_eq!(vectors.len(), 1);
            assert!(summary.queued_steps <= SOON, "{pages} pages, {length}: {summary:?}");
        }
        for (events, prompt) in events.into_iter().zip(&prompts) {
            let (pieces, _, summary) = outcome(events).done();
            assert_eq!(summary.output_tokens, tokens);
            assert_eq!((summary.prompt_tokens, summary.cached_tokens), (20, 0));
            assert_eq!(pieces, alone(&demo_with(128), prompt, &how));
        }
        assert!(end(&scheduler).preemptions > 0);
    }
}

#[test]
fn answers_come_forward_whatever_stream_of_texts_there_is() {
    let scheduler = start(demo_with(8), 256);
    let schema = serde_json::json!({"type": "array", "items": {"type": "integer"}, "minItems": 90});
    let grammar = Grammar::json_schema(scheduler.engine(), &schema).unwrap();
    let ways = [
        endless(300),
        endless(300).temperature(0.9).seed(7).top_p(0.95),
        endless(200).repetition_penalty(1.3).logprobs(2),
        greedy(250).grammar(Some(grammar)),
        endless(150).prompt_logprobs(Some(1)),
    ];
    // On the same engine, whose grammar it is, as long as nothing holds pages.
    let prompts = (0..5).map(|i| ids(i, 600));
    let all = prompts.zip(ways).map(|(prompt, how)| {
        let expected = alone(scheduler.engine(), &prompt, &how);
        (prompt, how, expected)
    });
    for (prompt, how, expected) in all.collect::<Vec<_>>() {
        let events = scheduler.submit(answer(prompt.clone(), how.clone())).unwrap();
        let before = scheduler.stats().preemptions;
        // Always two wait, each of which needs what the answer holds.
        let mut waiting = Vec::new();
        let mut vectors = 0;
        while scheduler.stats().running + scheduler.stats().waiting_generate > 0 {
            waiting.push(scheduler.submit(embed([ids(60, 900)])).unwrap());
            if waiting.len() > 2 {
                vectors += outcome(waiting.remove(0)).done().1.len();
            }
        }
        let mut scores = 0;
        let mut pieces = Vec::new();
        for event in events {
            match event {
                Event::Prompt(all) => scores += all.len(),
                Event::Piece(piece) => pieces.push(piece),
                _ => {}
            }
        }
        assert_eq!(pieces, expected, "{how:?}");
        assert_eq!(scores, if how.prompt_logprobs.is_some() { prompt.len() - 1 } else { 0 });
        assert!(vectors > 2 && scheduler.stats().preemptions > before, "{vectors}");
    }
    end(&scheduler);
}

#[test]
fn a_text_of_lower_priority_waits() {
    let scheduler = start(demo_with(8), 256);
    let how = endless(400);
    let first = with_priority(answer(ids(1, 500), how.clone()), 1);
    let events = scheduler.submit(first).unwrap();
    until(&scheduler, |stats| stats.running == 1);
    let text = scheduler.submit(embed([ids(3, 900)])).unwrap();
    let (pieces, _, _) = outcome(events).done();
    assert_eq!(pieces.len(), 400);
    assert_eq!(scheduler.stats().preemptions, 0);
    assert!(outcome(text).done().2.queued_steps > 300);
    // One of the same priority does not.
    let events = scheduler.submit(with_priority(answer(ids(1, 500), how), 1)).unwrap();
    until(&scheduler, |stats| stats.running == 1);
    let text = scheduler.submit(with_priority(embed([ids(3, 900)]), 1)).unwrap();
    assert!(outcome(text).done().2.queued_steps <= SOON);
    assert_eq!(outcome(events).done().0, pieces);
    assert!(end(&scheduler).preemptions > 0);
}
