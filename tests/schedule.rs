//! The scheduler: every result is what the engine alone computes, whatever else is in the batch.
//! The modules show its other promises.

mod bounds; // the queue's bounds, refusals, the record of steps
mod ends; // cancellation, deadlines, draining
mod failures; // failures hit only the requests that caused them
mod fairness; // who comes first, and that nobody waits for ever
mod prefix; // beginnings that prompts share

use crate::faulty::faulty;
use crate::support::{Reference, with_a_yes};
use gritlm::model::ops::{Mask, PAGE};
use gritlm::schedule::{
    Event, Events, Limits, Refused, Request, Scheduler, Stats, Summary, Ticket, Work,
};
use gritlm::{
    Device, Embed, Embedding, Encoded, Engine, Error, Options, Piece, Pooling, Prompt, Ranked,
    Sampling,
};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

pub(crate) fn demo_with(kv_pages: usize) -> Engine {
    let kv_tokens = kv_pages * PAGE;
    let options = Options::default().device(Device::Cpu).kv_tokens(kv_tokens);
    Engine::open("demo", &options).unwrap()
}

fn demo() -> Engine {
    demo_with(128)
}

/// One with words for yes and no.
fn judge() -> Engine {
    let options = Options::default().device(Device::Cpu);
    Engine::open(with_a_yes().path().to_str().unwrap(), &options).unwrap()
}

pub(crate) fn start(engine: Engine, batch_tokens: usize) -> Scheduler {
    Scheduler::start(engine, Limits::default().batch_tokens(batch_tokens)).unwrap()
}

/// Ends it, and makes sure that every page is free and every request counted.
#[track_caller]
pub(crate) fn end(scheduler: &Scheduler) -> Stats {
    scheduler.drain();
    let stats = scheduler.stats();
    assert_eq!(stats.pages_free, stats.pages, "pages are missing: {stats:?}");
    let ended = stats.finished + stats.failed + stats.cancelled + stats.expired;
    assert_eq!(stats.submitted, ended, "requests are missing: {stats:?}");
    let Stats { waiting_generate, waiting_embed, waiting_tokens, running, .. } = stats;
    assert_eq!([waiting_generate, waiting_embed, waiting_tokens, running], [0; 4]);
    stats
}

pub(crate) fn greedy(max_tokens: usize) -> Sampling {
    Sampling::greedy().max_tokens(max_tokens).verbatim(true)
}

/// `tokens` ids that differ from those of another `seed` in the first place already.
pub(crate) fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 20 + (seed * 31 + i * 7 + i * i * seed) % 200).collect()
}

fn generate(seed: u32, prompt: usize, max_tokens: usize) -> Request {
    // So that the length of the answer is known.
    let how = greedy(max_tokens).ignore_eos(true);
    Work::Generate { prompt: ids(seed, prompt), sampling: how, past: None }.into()
}

pub(crate) fn embed(texts: impl IntoIterator<Item = Vec<u32>>) -> Request {
    let encoded = |tokens| Encoded { tokens, skip: 1, truncated: 0 };
    let texts = texts.into_iter().map(encoded).collect();
    Work::Embed { texts, options: Embed::default() }.into()
}

pub(crate) fn with_priority(request: Request, priority: i32) -> Request {
    Request { priority, ..request }
}

/// All that came of a request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pieces: Vec<Piece>,
    embeddings: Vec<Embedding>,
    ranked: Vec<Ranked>,
    summary: Option<Summary>,
    error: Option<Error>,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn done(self) -> (Vec<Piece>, Vec<Embedding>, Summary) {
        let summary = self.summary.unwrap_or_else(|| panic!("not finished: {:?}", self.error));
        (self.pieces, self.embeddings, summary)
    }
}

pub(crate) fn outcome(events: Events) -> Outcome {
    let mut all = Outcome::default();
    for event in events {
        assert!(all.summary.is_none() && all.error.is_none(), "{event:?} after the last event");
        match event {
            Event::Prompt(scores) => panic!("scores that nobody asked for: {scores:?}"),
            Event::Piece(piece) => all.pieces.push(piece),
            Event::Embedding { index, embedding } => {
                assert_eq!(index, all.embeddings.len());
                all.embeddings.push(embedding);
            }
            Event::Ranked(ranked) => {
                assert_eq!(ranked.index, all.ranked.len());
                all.ranked.push(ranked);
            }
            Event::Finished(summary) => all.summary = Some(summary),
            Event::Failed(error) => all.error = Some(error),
        }
    }
    all
}

/// Holds the step loop between two steps, so that what is submitted meanwhile arrives at once.
struct Gate {
    open: Sender<()>,
    ticket: Ticket,
}

impl Gate {
    fn shut(scheduler: &Scheduler) -> Self {
        let ((open, opened), (here, arrived)) = (channel(), channel());
        let sink = move |event| {
            if matches!(event, Event::Finished(_)) {
                here.send(()).unwrap();
                // Ends when the gate is dropped, too.
                let _ = opened.recv();
            }
        };
        let ticket = scheduler.submit_to(embed([ids(99, 2)]), sink).unwrap();
        arrived.recv().unwrap();
        Self { open, ticket }
    }

    fn open(self) {
        self.open.send(()).unwrap();
        drop(self.ticket);
    }
}

/// Work of every kind, and what the engine alone makes of it.
fn mixed(engine: &Engine) -> Vec<(Work, Outcome)> {
    let mut all = Vec::new();
    for i in 0..12 {
        let prompt = Prompt::raw(format!("Describe {} {i}. ", "the package ".repeat(i * 9)));
        let mut how = greedy(4 + i).seed(i as u64);
        match i % 6 {
            1 => how = how.temperature(0.9).top_p(0.95).logprobs(3),
            2 => how = how.repetition_penalty(1.3).ignore_eos(true),
            3 => how = how.stop(vec!["e".into(), "a p".into()]),
            4 => how = how.mask(Some(Mask::Causal { window: Some(40) })),
            5 => how = how.mask(Some(Mask::Bidirectional { window: None })),
            _ => {}
        }
        let pieces = engine.generate(&prompt, &how).unwrap().map(Result::unwrap).collect();
        let prompt = engine.tokenize_prompt(&prompt, false).unwrap();
        all.push((
            Work::Generate { prompt, sampling: how, past: None },
            Outcome { pieces, ..Outcome::default() },
        ));
    }
    for i in 0..18 {
        let text = |j: usize| format!("text {i}.{j} {}", "and more ".repeat((i * 5 + j * 3) % 23));
        let texts: Vec<String> = (0..1 + i % 4).map(text).collect();
        let mut how = Embed::default();
        match i % 6 {
            1 => how = Embed::with_instruction("Find it."),
            2 => how = how.dimensions(Some(64)).pooling(Pooling::Cls),
            3 => how = how.attn(Some(gritlm::Attn::Cccc)).max_length(20),
            4 => how = how.mask(Some(Mask::Bidirectional { window: Some(9) })),
            5 => how = how.normalize(false).pooling(Pooling::WeightedMean),
            _ => {}
        }
        let embeddings = engine.embed(&texts, &how).unwrap();
        let texts = engine.encode_texts(&texts, &how).unwrap();
        all.push((
            Work::Embed { texts, options: how },
            Outcome { embeddings, ..Outcome::default() },
        ));
    }
    let judges = if engine.tokenizer().id("▁yes").is_some() { 0..6 } else { 0..0 };
    for i in judges {
        let passages: Vec<String> = (0..=i).map(|j| "about it ".repeat(1 + j * 3 % 7)).collect();
        let mut ranked = engine.rerank("what is it", &passages).unwrap();
        ranked.sort_by_key(|r| r.index);
        let prompts = engine.encode_passages("what is it", &passages).unwrap();
        all.push((Work::Rank { prompts }, Outcome { ranked, ..Outcome::default() }));
    }
    all
}

/// On the CPU a sequence has the same bits in any batch and in any pieces, so nothing less will do.
#[test]
fn values_are_the_engines_alone_and_under_load() {
    let reference = |name| Reference::open(name).engine;
    let engines = [demo(), judge(), reference("mistral-tiny"), reference("mixtral-tiny")];
    for engine in engines {
        let (name, all) = (engine.name().to_string(), mixed(&engine));
        let scheduler = start(engine, 96);
        let check = |alone: &str, i: usize, found: Outcome| {
            assert_eq!(found.ranked, all[i].1.ranked, "{name}: passages {i} {alone}");
            let (pieces, embeddings, summary) = found.done();
            assert_eq!(pieces, all[i].1.pieces, "{name}: answer {i} {alone}");
            assert_eq!(embeddings, all[i].1.embeddings, "{name}: texts {i} {alone}");
            assert_eq!(summary.output_tokens, pieces.len());
        };
        for (i, (work, ..)) in all.iter().enumerate() {
            check("alone", i, outcome(scheduler.submit(work.clone().into()).unwrap()));
        }
        let gate = Gate::shut(&scheduler);
        let events: Vec<Events> =
            all.iter().map(|(work, ..)| scheduler.submit(work.clone().into()).unwrap()).collect();
        gate.open();
        for (i, events) in events.into_iter().enumerate() {
            check("under load", i, outcome(events));
        }
        // From several threads, without any order.
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (scheduler, check, all) = (&scheduler, &check, &all);
                scope.spawn(move || {
                    for i in (thread..all.len()).step_by(3) {
                        let events = scheduler.submit(all[i].0.clone().into()).unwrap();
                        check("from a thread", i, outcome(events));
                    }
                });
            }
        });
        assert!(end(&scheduler).total.decode > 0);
    }
}

/// Passages count as texts: whole, of their kind, in the queue and in the pages.
#[test]
fn passages_are_texts() {
    let engine = faulty(with_a_yes().path().to_str().unwrap(), fault).unwrap();
    let (limit, vocab) = (engine.config().max_positions, engine.config().vocab as u32);
    let rank = |prompts: Vec<Vec<u32>>| Request::from(Work::Rank { prompts });
    let scheduler = start(engine, 64);
    let submit = |request| scheduler.submit(request).unwrap();
    let gate = Gate::shut(&scheduler);
    let before = scheduler.stats().total.embed;
    let good = submit(rank(vec![ids(1, 40), ids(2, 200), ids(3, 1)]));
    let bad = submit(rank(vec![ids(4, 9), FAILS.to_vec(), ids(5, 9)]));
    let late = Request { deadline: Some(Instant::now()), ..rank(vec![ids(6, 9)]) };
    let late = submit(late);
    drop(submit(rank(vec![ids(7, 300)])));
    let stats = scheduler.stats();
    assert_eq!((stats.waiting_embed, stats.waiting_tokens), (4, 241 + 21 + 9 + 300));
    gate.open();
    let found = outcome(good);
    assert_eq!((found.ranked.len(), found.summary.unwrap().prompt_tokens), (3, 241));
    let found = outcome(bad);
    assert!(matches!(found.error, Some(Error::Device(_))) && found.ranked.len() == 1, "{found:?}");
    assert!(matches!(outcome(late).error, Some(Error::Expired)));
    let refused = |prompts| scheduler.submit(rank(prompts)).unwrap_err();
    assert!(matches!(refused(vec![ids(1, limit + 1)]), Refused::TooLong { .. }));
    for wrong in [vec![], vec![vec![]], vec![vec![1, vocab]]] {
        assert!(matches!(refused(wrong), Refused::Invalid(_)));
    }
    let stats = end(&scheduler);
    assert_eq!((stats.failed, stats.expired, stats.cancelled), (1, 1, 1));
    // All of the bad one's were in one pass.
    assert_eq!(stats.total.embed - before, 241 + 21);

    // A vocabulary without the words cannot answer.
    let scheduler = start(demo(), 64);
    let refused = scheduler.submit(rank(vec![ids(1, 9)])).unwrap_err();
    assert!(refused.to_string().contains("\"yes\""), "{refused}");
    end(&scheduler);
}

/// Waits until the count is there; it is a step away.
#[track_caller]
pub(crate) fn until(scheduler: &Scheduler, there: impl Fn(&Stats) -> bool) {
    let start = Instant::now();
    while !there(&scheduler.stats()) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", scheduler.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_text_is_too_long_for_a_step() {
    let engine = demo();
    let long: String = "alpha beta gamma ".repeat(60);
    let how = Embed::default().max_length(2000);
    let expected = engine.embed(&[&long], &how).unwrap();
    let texts = engine.encode_texts(&[&long], &how).unwrap();
    assert!(expected[0].tokens > 200);
    let scheduler = start(engine, 16);
    let work = Work::Embed { texts, options: how };
    let alone = outcome(scheduler.submit(work.clone().into()).unwrap()).done();
    assert_eq!((&alone.1, alone.2.steps), (&expected, 1));
    let answers = [1, 2].map(|seed| scheduler.submit(generate(seed, 60, 30)).unwrap());
    assert_eq!(outcome(scheduler.submit(work.into()).unwrap()).done().1, expected);
    for events in answers {
        assert_eq!(outcome(events).done().0.len(), 30);
    }
    end(&scheduler);
}

const FAILS: [u32; 3] = [11, 13, 12];
const PANICS: [u32; 3] = [13, 11, 12];

fn fault(tokens: &[u32]) -> bool {
    if tokens.windows(3).any(|w| w == PANICS) {
        // Without the message that a panic writes.
        std::panic::resume_unwind(Box::new("on purpose"));
    }
    tokens.windows(3).any(|w| w == FAILS)
}
