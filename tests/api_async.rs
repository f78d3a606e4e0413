//! The engine for async code: what is awaited is what blocking calls return.

use crate::faulty::faulty;
use crate::support::devices;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvCache;
use gritlm::model::ops::Mask;
use gritlm::schedule::{Event, Limits, Request, Scheduler, Work};
use gritlm::{Embed, Engine, Grammar, Options, Prompt, Sampling};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// On one thread, as in a browser: calls that come at once wait their turn, and what is awaited is
/// what blocking calls return.
#[test]
fn async_calls_take_turns_on_one_thread() {
    fn sequence<'a>(tokens: &'a [u32], cache: &'a mut KvCache) -> [Sequence<'a>; 1] {
        [Sequence { tokens, cache, mask: Mask::Causal { window: None }, want: Want::Logits }]
    }
    let mut engines = vec![faulty("demo", |_| false).unwrap()];
    for (device, _) in devices() {
        let options = Options::default().device(device);
        engines.push(pollster::block_on(Engine::open_async("demo", &options)).unwrap());
    }
    for (n, engine) in engines.into_iter().enumerate() {
        let name = engine.device();
        let prompts: [&[u32]; 2] = [&[1, 7, 8, 9], &[1, 5]];
        let mut caches = [engine.cache(), engine.cache()];
        let [first, second] = caches.each_mut();
        let (mut a, mut b) = (sequence(prompts[0], first), sequence(prompts[1], second));
        let mut outputs: [Option<Vec<Output>>; 2] = [None, None];
        {
            let mut one: Pin<&mut dyn Future<Output = _>> = pin!(engine.run_async(&mut a));
            let mut two: Pin<&mut dyn Future<Output = _>> = pin!(engine.run_async(&mut b));
            let context = &mut Context::from_waker(Waker::noop());
            let mut waited = [0; 2];
            while outputs.iter().any(Option::is_none) {
                for (i, run) in [&mut one, &mut two].into_iter().enumerate() {
                    if outputs[i].is_none() {
                        match run.as_mut().poll(context) {
                            Poll::Ready(done) => outputs[i] = Some(done.unwrap()),
                            Poll::Pending => waited[i] += 1,
                        }
                    }
                }
                assert!(waited.iter().all(|&polls| polls < 1000), "{name}: nobody goes on");
            }
            // The second call came while the first one waited for the device.
            assert!(n > 0 || waited[0] > 0 && waited[1] > waited[0], "{name}: {waited:?}");
        }
        for ((output, tokens), cache) in outputs.into_iter().zip(prompts).zip(&caches) {
            let mut again = engine.cache();
            let expected = engine.run(&mut sequence(tokens, &mut again)).unwrap();
            assert_eq!(output.unwrap(), expected, "{name}");
            let exported = pollster::block_on(engine.export_async(cache)).unwrap();
            assert_eq!(exported, engine.export(&again).unwrap(), "{name}");
        }
        let corpus = engine.corpus(2, vec![1.0, 0.0, 0.6, 0.8]).unwrap();
        let found = pollster::block_on(engine.search_in_async(&corpus, &[0.0, 1.0], 2)).unwrap();
        assert_eq!(found, engine.search_in(&corpus, &[0.0, 1.0], 2).unwrap(), "{name}");
    }
    let devices = pollster::block_on(gritlm::devices_async());
    assert_eq!(devices.len(), gritlm::devices().len());
}

/// The requests of the test below: an answer that follows a grammar, a plain one, texts to embed.
fn requests(engine: &Engine) -> [Request; 3] {
    let prompt = |text| engine.tokenize_prompt(&Prompt::user(text), false).unwrap();
    let plain = Sampling::greedy().max_tokens(9).ignore_eos(true);
    let schema = serde_json::json!({ "enum": ["yes", "no"] });
    let grammar = Grammar::json_schema(engine, &schema).unwrap();
    let guided = Sampling::greedy().max_tokens(12).grammar(Some(grammar));
    let texts = engine.encode_texts(&["chess", "a network"], &Embed::default()).unwrap();
    [
        Work::Generate { prompt: prompt("Is it so?"), sampling: guided, past: None }.into(),
        Work::Generate { prompt: prompt("A package"), sampling: plain, past: None }.into(),
        Work::Embed { texts, options: Embed::default() }.into(),
    ]
}

/// What events say, without their times.
fn said(events: impl Iterator<Item = Event>) -> Vec<String> {
    let one = |event| match event {
        Event::Piece(piece) => format!("{} {}", piece.token.token, piece.text),
        Event::Embedding { index, embedding, .. } => format!("{index} {:?}", embedding.vector),
        Event::Finished(summary) => format!("{} tokens in", summary.prompt_tokens),
        other => panic!("{other:?}"),
    };
    events.map(one).collect()
}

/// Without a thread, in turns with other work on one thread, the scheduler says what it says on a
/// thread of its own; a dropped request ends, and the future ends after the last.
#[test]
fn the_scheduler_runs_while_it_is_polled() {
    let started = Scheduler::start(faulty("demo", |_| false).unwrap(), Limits::default()).unwrap();
    let expected: Vec<Vec<String>> = requests(started.engine())
        .map(|request| started.submit(request).unwrap())
        .into_iter()
        .map(said)
        .collect();
    let engine = faulty("demo", |_| false).unwrap();
    let (scheduler, steps) = Scheduler::polled(engine, Limits::default()).unwrap();
    let mut steps = pin!(steps);
    let context = &mut Context::from_waker(Waker::noop());
    // Nothing to do: it waits.
    assert!(steps.as_mut().poll(context).is_pending());
    let [guided, plain, embed] = requests(scheduler.engine());
    let long = Sampling::greedy().max_tokens(400).ignore_eos(true);
    let prompt = scheduler.engine().tokenize_prompt(&Prompt::user("Left"), false).unwrap();
    let left = Work::Generate { prompt, sampling: long, past: None };
    let left = scheduler.submit(left.into()).unwrap();
    let first = [guided, plain].map(|request| scheduler.submit(request).unwrap());
    for _ in 0..6 {
        assert!(steps.as_mut().poll(context).is_pending());
    }
    // It comes, and another goes, between two polls.
    let second = scheduler.submit(embed).unwrap();
    drop(left);
    scheduler.close();
    let mut polls = 0;
    while steps.as_mut().poll(context).is_pending() {
        polls += 1;
        assert!(polls < 10_000, "the steps do not end");
    }
    assert!(polls > 5, "{polls}: the passes of this backend wait");
    let found: Vec<Vec<String>> = first.into_iter().chain([second]).map(said).collect();
    assert_eq!(found, expected);
    let stats = scheduler.stats();
    assert_eq!((stats.finished, stats.cancelled, stats.failed), (3, 1, 0));
    assert!(scheduler.submit(requests(scheduler.engine())[2].clone()).is_err());
}
