//! Answers that go on from keys and values which came with their requests, and embedding passes
//! that keep theirs: both are part of the batch like all other work, with the engine's own results.

use crate::schedule::{demo_with, embed, end, greedy, ids, outcome, start, until, with_priority};
use gritlm::cache::KvSnapshot;
use gritlm::schedule::{Cancel, Event, Past, Refused, Request, Step, Work};
use gritlm::{Device, Embed, Encoded, Engine, Options, Piece, Sampling};

fn encoded(tokens: Vec<u32>) -> Encoded {
    Encoded { tokens, skip: 0, truncated: 0 }
}

/// Keys and values of an embedding pass, as the engine alone computes them.
fn kept(engine: &Engine, tokens: &[u32]) -> KvSnapshot {
    let how = Embed::default().keep_kv(true);
    let texts = [encoded(tokens.to_vec())];
    let mut kept = engine.embed_encoded(&texts, &how, &mut |_| Ok(())).unwrap();
    kept.remove(0).kv.unwrap()
}

fn endless(max_tokens: usize) -> Sampling {
    // The penalty shows whether the tokens of the past count.
    greedy(max_tokens).ignore_eos(true).repetition_penalty(1.3)
}

fn after(past: Past, prompt: Vec<u32>, how: &Sampling) -> Request {
    Work::Generate { prompt, sampling: how.clone(), past: Some(past) }.into()
}

/// What the engine alone answers.
fn alone(engine: &Engine, past: &Past, prompt: &[u32], how: &Sampling) -> Vec<Piece> {
    let cache = engine.import(&past.cache).unwrap();
    let answer = engine.generate_seen(cache, &past.tokens, prompt, how).unwrap();
    answer.map(Result::unwrap).collect()
}

#[test]
fn answers_after_a_past_share_their_steps() {
    let engine = demo_with(128);
    let how = endless(40);
    // Lengths on both sides of a page, and a past of one token.
    let cases: Vec<(Past, Vec<u32>)> = [(1, 3), (127, 1), (128, 9), (129, 200), (300, 2)]
        .into_iter()
        .zip(1..)
        .map(|((past, prompt), seed)| {
            let (prompt, cache) = (ids(seed + 50, prompt), kept(&engine, &ids(seed, past)));
            let unseen = Past { cache, tokens: Vec::new() };
            // What would be said is said to have been seen, so the penalty changes the answer.
            let said = alone(&engine, &unseen, &prompt, &how);
            let tokens = said.iter().map(|piece| piece.token.token).collect();
            let past = Past { tokens, ..unseen };
            assert_ne!(alone(&engine, &past, &prompt, &how), said);
            (past, prompt)
        })
        .collect();
    let expected: Vec<Vec<Piece>> =
        cases.iter().map(|(past, prompt)| alone(&engine, past, prompt, &how)).collect();

    let scheduler = start(engine, 256);
    let submit = |(past, prompt): &(Past, Vec<u32>)| {
        scheduler.submit(after(past.clone(), prompt.clone(), &how)).unwrap()
    };
    let events: Vec<_> = cases.iter().map(submit).collect();
    let beside = scheduler.submit(embed([ids(99, 200), ids(98, 30)])).unwrap();
    for ((events, (past, prompt)), expected) in events.into_iter().zip(&cases).zip(expected) {
        let (pieces, _, summary) = outcome(events).done();
        assert_eq!(pieces, expected);
        let tokens = past.cache.tokens();
        assert_eq!((summary.prompt_tokens, summary.cached_tokens), (tokens + prompt.len(), tokens));
        assert_eq!(summary.output_tokens, 40);
    }
    assert_eq!(outcome(beside).done().1.len(), 2);
    let steps = scheduler.steps_since(0);
    let most = |count: fn(&Step) -> u64| steps.iter().map(count).max().unwrap();
    assert!(most(|step| step.tokens.from_cache) >= 5, "never all in one step: {steps:?}");
    assert!(steps.iter().all(|step| step.tokens.from_cache <= step.tokens.sum()));
    let stats = end(&scheduler);
    assert_eq!(stats.past_tokens, 1 + 127 + 128 + 129 + 300);
    assert_eq!(stats.prefix_tokens, 0, "prefixes are of whole prompts");
    assert_eq!(stats.total.from_cache, (3 + 1 + 9 + 200 + 2) + 5 * 39);
}

#[test]
fn passes_keep_their_keys_and_values_where_asked() {
    let engine = demo_with(128);
    let texts = [ids(1, 150), ids(2, 1 + 1), ids(3, 128)];
    let expected: Vec<KvSnapshot> = texts.iter().map(|text| kept(&engine, text)).collect();
    let scheduler = start(engine, 256);
    let submit = |keep_kv| {
        let texts = texts.iter().cloned().map(encoded).collect();
        let how = Embed::default().keep_kv(keep_kv);
        scheduler.submit(Work::Embed { texts, options: how }.into()).unwrap()
    };
    let (with, without) = (submit(true), submit(false));
    let (with, without) = (outcome(with).done().1, outcome(without).done().1);
    for ((with, without), expected) in with.iter().zip(&without).zip(&expected) {
        assert_eq!(with.kv.as_ref(), Some(expected));
        assert_eq!(without.kv, None);
        assert_eq!(with.vector, without.vector);
    }
    end(&scheduler);
}

#[test]
fn a_preempted_answer_gets_its_past_back() {
    let engine = demo_with(12);
    let how = endless(500);
    let pasts: Vec<Past> = (1..3)
        .map(|seed| {
            let tokens = ids(seed, 200);
            Past { cache: kept(&engine, &tokens), tokens }
        })
        .collect();
    let whole = demo_with(128);
    let expected: Vec<Vec<Piece>> =
        pasts.iter().map(|past| alone(&whole, past, &ids(7, 5), &how)).collect();
    let scheduler = start(engine, 256);
    let submit = |past: &Past| scheduler.submit(after(past.clone(), ids(7, 5), &how)).unwrap();
    let events: Vec<_> = pasts.iter().map(submit).collect();
    until(&scheduler, |stats| stats.running == 2 && stats.steps > 40);
    for length in [1000, 900] {
        let text = scheduler.submit(embed([ids(77, length)])).unwrap();
        assert_eq!(outcome(text).done().1.len(), 1);
    }
    for (events, expected) in events.into_iter().zip(expected) {
        let (pieces, _, summary) = outcome(events).done();
        assert_eq!(pieces, expected);
        assert_eq!((summary.prompt_tokens, summary.cached_tokens), (205, 200));
    }
    let stats = end(&scheduler);
    assert!(stats.preemptions > 0);
    assert!(stats.past_tokens > 400, "copied back: {stats:?}");
}

#[test]
fn a_past_of_another_model_or_too_long_is_refused() {
    let scheduler = start(demo_with(4), 256);
    let how = greedy(4);
    let shape = |layers, tokens| {
        let c = scheduler.engine().config();
        let shape = [layers, 2, c.kv_heads, tokens, c.head_dim];
        let cache = KvSnapshot::from_f32(shape, vec![0.5; shape.iter().product()]).unwrap();
        Past { cache, tokens: Vec::new() }
    };
    let layers = scheduler.engine().config().layers;
    let refused = |past, prompt| scheduler.submit(after(past, prompt, &how)).map(drop).unwrap_err();
    let other = refused(shape(layers + 1, 4), vec![7]);
    assert!(matches!(&other, Refused::Invalid(_)), "{other:?}");
    assert!(other.to_string().contains("expected shape"), "{other}");
    let long = refused(shape(layers, 2048), vec![7]);
    assert!(matches!(long, Refused::TooLong { tokens: 2049, limit: 2048 }), "{long:?}");
    let large = refused(shape(layers, 510), vec![7]);
    assert!(matches!(large, Refused::NeverFits { tokens: 514, kv_tokens: 512 }), "{large:?}");
    assert!(matches!(refused(shape(layers, 4), Vec::new()), Refused::Invalid(_)));
    end(&scheduler);
}

#[test]
fn one_cancellation_ends_all_requests_that_carry_it() {
    let engine = demo_with(128);
    let tokens = ids(1, 40);
    let past = Past { cache: kept(&engine, &tokens), tokens };
    let scheduler = start(engine, 256);
    let cancel = Cancel::default();
    let mine = |request: Request| Request { cancel: cancel.clone(), ..request };
    let answer = scheduler.submit(mine(after(past, ids(2, 4), &endless(1900)))).unwrap();
    let texts = scheduler.submit(mine(with_priority(embed(vec![ids(3, 900); 400]), -9))).unwrap();
    let other = scheduler.submit(embed([ids(4, 20)])).unwrap();
    until(&scheduler, |stats| stats.running == 1 && stats.steps > 3);
    cancel.cancel();
    let ends = |events: gritlm::schedule::Events| {
        let last = events.last();
        assert!(!matches!(last, Some(Event::Finished(_) | Event::Failed(_))), "{last:?}");
    };
    ends(answer);
    ends(texts);
    assert_eq!(outcome(other).done().1.len(), 1);
    assert_eq!(end(&scheduler).cancelled, 2);
}

#[test]
fn a_window_drops_what_lies_before_it_of_a_past() {
    let folder = crate::support::data("mistral-tiny");
    let options = Options::default().device(Device::Cpu).kv_tokens(1024);
    let engine = Engine::open(folder.to_str().unwrap(), &options).unwrap();
    let tokens = ids(3, 150);
    let past = Past { cache: kept(&engine, &tokens), tokens };
    let how = endless(20);
    let expected = alone(&engine, &past, &[9, 8], &how);
    let scheduler = start(engine, 64);
    let answer = scheduler.submit(after(past, vec![9, 8], &how)).unwrap();
    assert_eq!(outcome(answer).done().0, expected);
    end(&scheduler);
}
