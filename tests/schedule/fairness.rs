//! Texts and answers share the steps and the pages; priority and age decide who comes first.

use super::{Gate, demo, demo_with, embed, end, generate, ids, start, with_priority};
use gritlm::model::ops::PAGE;
use gritlm::schedule::{Event, Request, Scheduler, Summary, Ticket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
