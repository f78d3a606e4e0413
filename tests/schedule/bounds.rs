//! The bounded queue, requests that are refused when they are submitted, and the record of steps.

use super::{Gate, demo, demo_with, embed, end, generate, greedy, ids, outcome, start};
use gritlm::model::ops::PAGE;
use gritlm::schedule::{Limits, Refused, Scheduler, Step, StepTokens, Work};
use gritlm::{Embed, Encoded, Error};
use std::time::Duration;

#[test]
fn the_queue_is_bounded() {
    let limits = Limits::default().queue_requests(3).queue_tokens(100);
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
    let how = greedy(3).temperature(-1.0);
    let meaningless = [
        embed([]),
        embed([vec![1]]),
        embed([vec![1, vocab]]),
        generate(1, 0, 1),
        Work::Generate { prompt: vec![vocab], sampling: greedy(3), past: None }.into(),
        Work::Generate { prompt: vec![1], sampling: how, past: None }.into(),
        Work::Embed {
            texts: vec![Encoded { tokens: vec![1, 2], skip: 1, truncated: 0 }],
            options: Embed::default().dimensions(Some(0)),
        }
        .into(),
    ];
    let count = meaningless.len() as u64;
    for request in meaningless {
        assert!(matches!(refused(request), Refused::Invalid(_)));
    }
    let limits = Limits::default().batch_tokens(15);
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
