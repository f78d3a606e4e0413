//! The scheduler: what comes out is what the engine alone computes, whoever else is in the batch;
//! and nobody waits for ever, takes what is not theirs, or keeps it.

use crate::support::{Reference, data, with_a_yes};
use gritlm::model::ops::{DeviceError, Mask, PAGE};
use gritlm::schedule::{
    Event, Events, Limits, Refused, Request, Scheduler, Stats, Step, StepTokens, Summary, Ticket,
    Work,
};
use gritlm::{
    Device, Embed, Embedding, Encoded, Engine, Error, Options, Piece, Pooling, Prompt, Ranked,
    Sampling,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) fn demo_with(kv_pages: usize) -> Engine {
    let kv_tokens = kv_pages * PAGE;
    let options = Options { device: Device::Cpu, kv_tokens, ..Options::default() };
    Engine::open("demo", &options).unwrap()
}

fn demo() -> Engine {
    demo_with(128)
}

/// One with words for yes and no.
fn judge() -> Engine {
    let options = Options { device: Device::Cpu, ..Options::default() };
    Engine::open(with_a_yes().path().to_str().unwrap(), &options).unwrap()
}

pub(crate) fn start(engine: Engine, batch_tokens: usize) -> Scheduler {
    Scheduler::start(engine, Limits { batch_tokens, ..Limits::default() }).unwrap()
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
    Sampling { max_tokens, ..Sampling::greedy() }
}

/// `tokens` ids that differ from those of another `seed` in the first place already.
pub(crate) fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 20 + (seed * 31 + i * 7 + i * i * seed) % 200).collect()
}

fn generate(seed: u32, prompt: usize, max_tokens: usize) -> Request {
    // So that the length of the answer is known.
    let how = Sampling { ignore_eos: true, ..greedy(max_tokens) };
    Work::Generate { prompt: ids(seed, prompt), how, past: None }.into()
}

pub(crate) fn embed(texts: impl IntoIterator<Item = Vec<u32>>) -> Request {
    let encoded = |tokens| Encoded { tokens, skip: 1, truncated: 0 };
    let texts = texts.into_iter().map(encoded).collect();
    Work::Embed { texts, how: Embed::default() }.into()
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

/// Who finished, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(&'static str, Summary)>>>);

impl Log {
    fn submit(&self, scheduler: &Scheduler, name: &'static str, request: Request) -> Ticket {
        let log = self.clone();
        let sink = move |event| match event {
            Event::Finished(summary) => log.0.lock().unwrap().push((name, summary)),
            Event::Failed(error) => panic!("{name}: {error}"),
            _ => {}
        };
        scheduler.submit_to(request, sink).unwrap()
    }

    fn names(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|&(name, _)| name).collect()
    }

    fn of(&self, name: &str) -> Summary {
        self.0.lock().unwrap().iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// Work of every kind, and what the engine alone makes of it.
fn mixed(engine: &Engine) -> Vec<(Work, Outcome)> {
    let mut all = Vec::new();
    for i in 0..12 {
        let prompt = Prompt::raw(format!("Describe {} {i}. ", "the package ".repeat(i * 9)));
        let mut how = Sampling { seed: i as u64, ..greedy(4 + i) };
        match i % 6 {
            1 => how = Sampling { temperature: 0.9, top_p: 0.95, logprobs: 3, ..how },
            2 => how = Sampling { repetition_penalty: 1.3, ignore_eos: true, ..how },
            3 => how = Sampling { stop: vec!["e".into(), "a p".into()], ..how },
            4 => how = Sampling { mask: Some(Mask::Causal { window: Some(40) }), ..how },
            5 => how = Sampling { mask: Some(Mask::Bidirectional { window: None }), ..how },
            _ => {}
        }
        let pieces = engine.generate(&prompt, &how).unwrap().map(Result::unwrap).collect();
        let prompt = engine.tokenize_prompt(&prompt, false).unwrap();
        all.push((
            Work::Generate { prompt, how, past: None },
            Outcome { pieces, ..Outcome::default() },
        ));
    }
    for i in 0..18 {
        let text = |j: usize| format!("text {i}.{j} {}", "and more ".repeat((i * 5 + j * 3) % 23));
        let texts: Vec<String> = (0..1 + i % 4).map(text).collect();
        let mut how = Embed::default();
        match i % 6 {
            1 => how = Embed::with_instruction("Find it."),
            2 => how = Embed { dimensions: Some(64), pooling: Pooling::Cls, ..how },
            3 => how = Embed { attn: Some(gritlm::Attn::Cccc), max_length: 20, ..how },
            4 => how = Embed { mask: Some(Mask::Bidirectional { window: Some(9) }), ..how },
            5 => how = Embed { normalize: false, pooling: Pooling::WeightedMean, ..how },
            _ => {}
        }
        let embeddings = engine.embed(&texts, &how).unwrap();
        let texts = engine.encode_texts(&texts, &how).unwrap();
        all.push((Work::Embed { texts, how }, Outcome { embeddings, ..Outcome::default() }));
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
    let engine = judge();
    let (limit, vocab) = (engine.config().max_positions, engine.config().vocab as u32);
    let rank = |prompts: Vec<Vec<u32>>| Request::from(Work::Rank { prompts });
    let limits = Limits { batch_tokens: 64, fault: Some(fault), ..Limits::default() };
    let scheduler = Scheduler::start(engine, limits).unwrap();
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

#[test]
fn texts_do_not_stop_answers() {
    let scheduler = start(demo(), 64);
    let (gate, log) = (Gate::shut(&scheduler), Log::default());
    // 150 steps of texts if they had the steps to themselves.
    let flood = log.submit(&scheduler, "texts", embed((0..300).map(|i| ids(i, 32))));
    let answer = log.submit(&scheduler, "answer", generate(1, 200, 20));
    gate.open();
    end(&scheduler);
    assert_eq!(log.names(), ["answer", "texts"]);
    // Half of the step is 32 tokens: seven steps for the prompt, then a token in each.
    let Summary { queued_steps, steps, .. } = log.of("answer");
    assert_eq!(queued_steps, 0);
    assert!(steps <= 7 + 19, "{steps} steps");
    // Nor did they stand still.
    let texts = log.of("texts");
    assert!(texts.queued_steps == 0 && texts.steps <= 170, "{texts:?}");
    drop((flood, answer));
}

#[test]
fn answers_do_not_stop_texts() {
    let scheduler = start(demo(), 64);
    let (gate, log) = (Gate::shut(&scheduler), Log::default());
    let flood: Vec<Ticket> =
        (0..40).map(|i| log.submit(&scheduler, "answer", generate(i, 200, 50))).collect();
    let long = log.submit(&scheduler, "long", embed([ids(50, 200)]));
    let short = log.submit(&scheduler, "short", embed([ids(51, 12)]));
    gate.open();
    end(&scheduler);
    // At most 32 answers run, so that 16 tokens a step are the texts' at least: after 13 steps
    // they have saved up 200.
    assert!(log.of("long").queued_steps <= 13, "{:?}", log.of("long"));
    assert!(log.of("short").queued_steps <= 14, "{:?}", log.of("short"));
    assert_eq!(log.names().len(), 42);
    drop((flood, long, short));
}

/// Nor by taking every page as soon as it is free.
#[test]
fn answers_do_not_keep_the_pages_from_texts() {
    let scheduler = start(demo_with(4), 64);
    let (gate, log) = (Gate::shut(&scheduler), Log::default());
    let submit = |i| log.submit(&scheduler, "answer", generate(i, 10 + i as usize * 3, 20));
    let before: Vec<Ticket> = (0..8).map(submit).collect();
    let text = log.submit(&scheduler, "text", embed([ids(50, 4 * PAGE)]));
    let after: Vec<Ticket> = (8..20).map(submit).collect();
    gate.open();
    end(&scheduler);
    let at = log.names().iter().position(|&name| name == "text").unwrap();
    assert!((4..=8).contains(&at), "the text came after {at} answers");
    drop((before, text, after));
}

#[test]
fn priority_comes_first_and_age_counts() {
    let scheduler = start(demo(), 64);
    let (gate, log) = (Gate::shut(&scheduler), Log::default());
    let full = |seed| embed([ids(seed, 64)]);
    let tickets = [("first", 0), ("urgent", 5), ("second", 0), ("idle", -1)]
        .map(|(name, priority)| log.submit(&scheduler, name, with_priority(full(1), priority)));
    gate.open();
    while log.names().len() < 4 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(log.names(), ["urgent", "first", "second", "idle"]);
    drop(tickets);

    // One request after the other of the next higher level, each submitted when the last is done.
    // None but the waiting one is ever alone, so that its turn is a matter of its age.
    let (gate, tickets) = (Gate::shut(&scheduler), Arc::new(Mutex::new(Vec::new())));
    fn chain(scheduler: &Scheduler, tickets: &Arc<Mutex<Vec<Ticket>>>, left: u32) {
        let (again, kept) = (scheduler.clone(), Arc::clone(tickets));
        let sink = move |event| {
            if matches!(event, Event::Finished(_)) && left > 0 {
                chain(&again, &kept, left - 1);
            }
        };
        let request = with_priority(embed([ids(left, 64)]), 1);
        // Refused at the end, which is the chain's, too.
        if let Ok(ticket) = scheduler.submit_to(request, sink) {
            tickets.lock().unwrap().push(ticket);
        }
    }
    let old = log.submit(&scheduler, "old", full(7));
    chain(&scheduler, &tickets, 150);
    chain(&scheduler, &tickets, 150);
    gate.open();
    while !log.names().contains(&"old") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waited = log.of("old").queued_steps;
    assert!((60..=68).contains(&waited), "{waited} steps");
    drop(old);
    end(&scheduler);
}

#[test]
fn the_queue_is_bounded() {
    let limits = Limits { queue_requests: 3, queue_tokens: 100, ..Limits::default() };
    let scheduler = Scheduler::start(demo(), limits).unwrap();
    let gate = Gate::shut(&scheduler);
    let submit = |request| scheduler.submit(request);
    // More tokens than may wait, but nothing else waits.
    let alone = submit(embed([ids(1, 101)])).unwrap();
    let refused = submit(embed([ids(1, 2)])).unwrap_err();
    assert!(matches!(refused, Refused::QueueFull { requests: 1, tokens: 101, .. }), "{refused}");
    gate.open();
    outcome(alone).done();

    let gate = Gate::shut(&scheduler);
    let mut taken =
        vec![submit(generate(1, 40, 3)).unwrap(), submit(embed([ids(2, 20), ids(3, 20)])).unwrap()];
    let refused = submit(generate(4, 21, 3)).unwrap_err();
    assert!(matches!(refused, Refused::QueueFull { requests: 2, tokens: 80, .. }), "{refused}");
    taken.push(submit(generate(4, 20, 3)).unwrap());
    match submit(embed([ids(5, 2)])).unwrap_err() {
        Refused::QueueFull { requests: 3, tokens: 100, retry_after } => {
            assert!((1..=60).contains(&retry_after.as_secs()));
        }
        other => panic!("{other}"),
    }
    let stats = scheduler.stats();
    assert_eq!((stats.waiting_generate, stats.waiting_embed, stats.waiting_tokens), (2, 1, 100));
    gate.open();
    for events in taken {
        outcome(events).done();
    }
    assert_eq!(end(&scheduler).refused.queue_full, 3);
}

#[test]
fn what_cannot_be_done_is_refused_at_once() {
    let engine = demo_with(4);
    let (limit, vocab) = (engine.config().max_positions, engine.config().vocab as u32);
    assert!(limit > 5 * PAGE);
    let scheduler = start(engine, 64);
    let refused = |request| scheduler.submit(request).unwrap_err();
    let long = |tokens| Refused::TooLong { tokens, limit }.to_string();
    assert_eq!(refused(generate(1, limit, 1)).to_string(), long(limit));
    assert_eq!(refused(embed([ids(1, limit + 1)])).to_string(), long(limit + 1));
    for (request, needed) in [
        (generate(1, 500, 14), 513),
        (embed([ids(1, 3), ids(2, 513)]), 513),
        (generate(1, 10, limit), limit - 1),
    ] {
        let kv_tokens = 4 * PAGE;
        let expected = Refused::NeverFits { tokens: needed, kv_tokens }.to_string();
        assert_eq!(refused(request).to_string(), expected);
    }
    // Just so.
    outcome(scheduler.submit(generate(1, 500, 13)).unwrap()).done();
    let how = Sampling { temperature: -1.0, ..greedy(3) };
    let meaningless = [
        embed([]),
        embed([vec![1]]),
        embed([vec![1, vocab]]),
        generate(1, 0, 1),
        Work::Generate { prompt: vec![vocab], how: greedy(3), past: None }.into(),
        Work::Generate { prompt: vec![1], how, past: None }.into(),
        Work::Embed {
            texts: vec![Encoded { tokens: vec![1, 2], skip: 1, truncated: 0 }],
            how: Embed { dimensions: Some(0), ..Embed::default() },
        }
        .into(),
    ];
    let count = meaningless.len() as u64;
    for request in meaningless {
        assert!(matches!(refused(request), Refused::Invalid(_)));
    }
    let limits = Limits { batch_tokens: 15, ..Limits::default() };
    assert!(matches!(Scheduler::start(demo(), limits), Err(Error::Option { .. })));
    let (pieces, _, summary) = outcome(scheduler.submit(generate(1, 5, 0)).unwrap()).done();
    assert_eq!((pieces.len(), summary.prompt_tokens, summary.steps), (0, 5, 0));
    let found = end(&scheduler).refused;
    assert_eq!((found.too_long, found.never_fits, found.invalid), (2, 3, count));
}

#[test]
fn the_last_steps_are_kept() {
    let scheduler = start(demo(), 64);
    assert_eq!(scheduler.steps_since(0), []);
    let events = [generate(1, 90, 20), embed([ids(2, 30), ids(3, 40)])]
        .map(|request| scheduler.submit(request).unwrap());
    events.into_iter().for_each(|events| drop(outcome(events).done()));
    let (steps, stats) = (scheduler.steps_since(0), scheduler.stats());
    let number = |step: &Step| step.step;
    assert_eq!(steps.iter().map(number).collect::<Vec<_>>(), Vec::from_iter(1..=stats.steps));
    let sum = |of: fn(&StepTokens) -> u64| steps.iter().map(|s| of(&s.tokens)).sum::<u64>();
    let total = [sum(|t| t.decode), sum(|t| t.prefill), sum(|t| t.embed)];
    assert_eq!(total, [19, 90, 70]);
    assert_eq!(total, [stats.total.decode, stats.total.prefill, stats.total.embed]);
    assert_eq!(steps.iter().map(|step| step.time).sum::<Duration>(), stats.busy);
    assert_eq!(steps.last().unwrap().tokens, stats.last);
    assert_eq!(scheduler.steps_since(stats.steps - 3), steps[steps.len() - 3..]);
    assert_eq!(scheduler.steps_since(stats.steps), []);

    // As many as are kept, and no more.
    outcome(scheduler.submit(generate(4, 3, 300)).unwrap()).done();
    let (kept, last) = (scheduler.steps_since(0), scheduler.stats().steps);
    assert_eq!(last, stats.steps + 300);
    assert_eq!(kept.iter().map(number).collect::<Vec<_>>(), Vec::from_iter(last - 255..=last));
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
fn whoever_goes_away_frees_the_pages() {
    let engine = demo_with(24);
    let Work::Generate { prompt, how, past: None } = generate(2, 150, 100).work else {
        unreachable!()
    };
    let expected: Vec<Piece> =
        engine.generate(&Prompt::Tokens(prompt), &how).unwrap().map(Result::unwrap).collect();
    let scheduler = start(engine, 64);
    // All pages in its hands, three tokens seen, gone.
    let mut leaver = scheduler.submit(generate(1, 200, 20 * PAGE)).unwrap();
    let stays = scheduler.submit(generate(2, 150, 100)).unwrap();
    let waits = scheduler.submit(generate(3, 200, 10 * PAGE)).unwrap();
    assert_eq!(leaver.by_ref().take(3).count(), 3);
    assert_eq!(scheduler.stats().waiting_generate, 1);
    drop(waits);
    until(&scheduler, |s| s.cancelled == 1);
    let next = scheduler.submit(generate(4, 200, 10 * PAGE)).unwrap();
    drop(leaver);
    until(&scheduler, |s| s.cancelled == 2);
    assert_eq!(outcome(stays).done().0, expected);
    // Whose pages the leaver had.
    let mut next = next;
    assert!(matches!(next.next(), Some(Event::Piece(_))));
    drop(next);
    until(&scheduler, |s| s.cancelled == 3);
    let stats = scheduler.stats();
    assert_eq!(stats.pages_free + stats.pages_prefix, stats.pages);
    end(&scheduler);
}

#[test]
fn deadlines_are_kept_waiting_and_running() {
    let scheduler = start(demo(), 64);
    let late = Request { deadline: Some(Instant::now()), ..generate(1, 10, 5) };
    let late = outcome(scheduler.submit(late).unwrap());
    assert!(matches!(late.error, Some(Error::Expired)) && late.pieces.is_empty());
    let late = Request { deadline: Some(Instant::now()), ..embed([ids(1, 10)]) };
    assert!(matches!(outcome(scheduler.submit(late).unwrap()).error, Some(Error::Expired)));

    // The step loop is held from its first token until the deadline is past.
    let deadline = Instant::now() + Duration::from_secs(2);
    let (sender, events) = channel();
    let sink = move |event| {
        if matches!(event, Event::Piece(_)) {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        }
        sender.send(event).unwrap();
    };
    let request = Request { deadline: Some(deadline), ..generate(1, 10, 500) };
    let ticket = scheduler.submit_to(request, sink).unwrap();
    let found: Vec<Event> = events.iter().collect();
    assert!(matches!(found[..], [Event::Piece(_), Event::Failed(Error::Expired)]), "{found:?}");
    drop(ticket);
    let in_time = Instant::now() + Duration::from_secs(600);
    let request = Request { deadline: Some(in_time), ..generate(1, 10, 5) };
    outcome(scheduler.submit(request).unwrap()).done();
    assert_eq!(end(&scheduler).expired, 3);
}

#[test]
fn nobody_waits_for_a_slow_reader() {
    let scheduler = start(demo(), 64);
    let slow = scheduler.submit(generate(1, 10, 50)).unwrap();
    outcome(scheduler.submit(generate(2, 10, 60)).unwrap()).done();
    until(&scheduler, |s| s.finished == 2);
    assert_eq!(outcome(slow).done().0.len(), 50);
    end(&scheduler);
}

#[test]
fn draining_finishes_what_was_taken() {
    let scheduler = start(demo(), 64);
    let gate = Gate::shut(&scheduler);
    let mut taken = vec![scheduler.submit(generate(1, 100, 30)).unwrap()];
    taken.push(scheduler.submit(embed((0..30).map(|i| ids(i, 20)))).unwrap());
    let other = scheduler.clone();
    let drains = std::thread::spawn(move || other.drain());
    while !matches!(scheduler.submit(embed([ids(1, 2)])), Err(Refused::Draining)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    gate.open();
    drains.join().unwrap();
    for events in taken {
        outcome(events).done();
    }
    assert!(end(&scheduler).refused.draining > 0);
}

/// The last handle's end is a drain that nobody waits for.
#[test]
fn handles_may_go_before_the_events() {
    let scheduler = start(demo(), 64);
    let events = scheduler.submit(generate(1, 100, 30)).unwrap();
    drop(scheduler);
    assert_eq!(outcome(events).done().0.len(), 30);
}

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
        let how = Sampling { repetition_penalty: 1.1, ignore_eos: true, ..greedy(140) };
        let how = Sampling { verbatim: true, ..how };
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
            let work = Work::Generate { prompt: prompt.clone(), how: how.clone(), past: None };
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
        let mask = |mask| Sampling { mask: Some(mask), ..greedy(3) };
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
        let request = Work::Generate { prompt: ids(seed, tokens), how: greedy(3), past: None };
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

#[test]
fn no_text_is_too_long_for_a_step() {
    let engine = demo();
    let long: String = "alpha beta gamma ".repeat(60);
    let how = Embed { max_length: 2000, ..Embed::default() };
    let expected = engine.embed(&[&long], &how).unwrap();
    let texts = engine.encode_texts(&[&long], &how).unwrap();
    assert!(expected[0].tokens > 200);
    let scheduler = start(engine, 16);
    let work = Work::Embed { texts, how };
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

#[test]
fn a_failure_is_its_own() {
    let engine = demo();
    let alone = engine.generate(&Prompt::Tokens(ids(1, 30)), &greedy(20)).unwrap();
    let alone: Vec<Piece> = alone.map(Result::unwrap).collect();
    let limits = Limits { batch_tokens: 256, fault: Some(fault), ..Limits::default() };
    let scheduler = Scheduler::start(engine, limits).unwrap();
    let gate = Gate::shut(&scheduler);
    let submit = |request: Request| scheduler.submit(request).unwrap();
    let good = [
        submit(Work::Generate { prompt: ids(1, 30), how: greedy(20), past: None }.into()),
        submit(embed([ids(2, 9), ids(3, 9)])),
    ];
    let bad = [
        submit(embed([ids(4, 9), FAILS.to_vec(), ids(5, 9)])),
        submit(Work::Generate { prompt: FAILS.to_vec(), how: greedy(20), past: None }.into()),
        submit(embed([PANICS.to_vec()])),
    ];
    gate.open();
    let [answer, texts] = good.map(|events| outcome(events).done());
    assert_eq!((answer.0, texts.1.len()), (alone, 2));
    for (events, embeddings) in bad.into_iter().zip([1, 0, 0]) {
        let found = outcome(events);
        assert!(matches!(found.error, Some(Error::Device(DeviceError(_)))), "{:?}", found.error);
        assert_eq!(found.embeddings.len(), embeddings);
    }
    assert_eq!(end(&scheduler).failed, 3);

    // A lost device.
    let limits = Limits { fault: Some(|_| true), ..Limits::default() };
    let scheduler = Scheduler::start(demo(), limits).unwrap();
    let events = [1, 2, 3].map(|seed| scheduler.submit(generate(seed, 20, 5)).unwrap());
    for events in events {
        assert!(matches!(outcome(events).error, Some(Error::Device(_))));
    }
    assert_eq!(end(&scheduler).failed, 3);
}

/// A model whose weights hold NaN.
#[test]
fn what_is_no_number_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(data("mistral-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end_of_weights = bytes.len();
    bytes[end_of_weights - 64..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let options = Options { device: Device::Cpu, ..Options::default() };
    let engine = Engine::open(folder.path().to_str().unwrap(), &options).unwrap();
    let scheduler = start(engine, 64);
    for request in [generate(1, 5, 5), embed([ids(1, 5)])] {
        let found = outcome(scheduler.submit(request).unwrap());
        assert!(matches!(found.error, Some(Error::NotFinite { .. })), "{found:?}");
    }
    end(&scheduler);
}

/// Whatever comes and goes in whatever order, everything is accounted for.
#[test]
fn nothing_is_lost_in_a_crowd() {
    let limits = Limits { batch_tokens: 48, queue_requests: 20, ..Limits::default() };
    let scheduler = Scheduler::start(demo_with(12), limits).unwrap();
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut held, mut refused): (Vec<Events>, u64) = (Vec::new(), 0);
    for _ in 0..250 {
        let seed = draw(5) as u32;
        let request = match draw(2) {
            0 => generate(seed, 1 + draw(300) as usize, 1 + draw(40) as usize),
            _ => embed((0..1 + draw(3)).map(|i| ids(seed + i as u32, 2 + draw(250) as usize))),
        };
        let deadline = (draw(6) == 0).then(|| Instant::now() + Duration::from_millis(draw(30)));
        let priority = draw(3) as i32;
        match scheduler.submit(Request { priority, deadline, ..request }) {
            Ok(events) => held.push(events),
            Err(Refused::QueueFull { .. }) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(draw(20)));
            }
            Err(other) => panic!("{other}"),
        }
        if draw(4) == 0 && !held.is_empty() {
            let leaves = draw(held.len() as u64) as usize;
            drop(held.swap_remove(leaves));
        }
    }
    for events in held {
        let found = outcome(events);
        assert!(found.summary.is_some() || matches!(found.error, Some(Error::Expired)));
    }
    let stats = end(&scheduler);
    assert_eq!((stats.refused.queue_full, stats.failed), (refused, 0));
    assert!(stats.finished > 0 && stats.steps > 0);
}

/// What a sink gets, it gets in order and to the end; then it is dropped.
#[test]
fn sinks_end() {
    let scheduler = start(demo(), 64);
    let (sender, events): (Sender<Event>, Receiver<Event>) = channel();
    let sink = move |event| sender.send(event).unwrap();
    let ticket = scheduler.submit_to(generate(1, 10, 5), sink).unwrap();
    let found: Vec<Event> = events.iter().collect();
    assert_eq!(found.len(), 6);
    let Some(Event::Finished(summary)) = found.last() else { panic!("{found:?}") };
    let times = summary.timings;
    assert!(times.first_token() >= times.queued && times.prefill > Duration::ZERO);
    assert_eq!((summary.queued_steps, summary.steps), (0, 5));
    drop(ticket);
    end(&scheduler);
}
