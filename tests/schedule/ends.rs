//! How requests end: cancelled, expired, drained or finished, each frees its pages and is counted.

use super::{Gate, demo, demo_with, embed, end, generate, ids, outcome, start, until};
use gritlm::model::ops::PAGE;
use gritlm::schedule::{Event, Events, Limits, Refused, Request, Scheduler, Work};
use gritlm::{Error, Piece, Prompt};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

#[test]
fn whoever_goes_away_frees_the_pages() {
    let engine = demo_with(24);
    let Work::Generate { prompt, sampling: how, past: None } = generate(2, 150, 100).work else {
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

/// Whatever comes and goes in whatever order, everything is accounted for.
#[test]
fn nothing_is_lost_in_a_crowd() {
    let limits = Limits::default().batch_tokens(48).queue_requests(20);
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
