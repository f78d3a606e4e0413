//! From the engine's thread to a handler: a request's events, awaited.

use super::body::Loaded;
use super::failure::Failure;
use super::metrics::Watch;
use crate::schedule::{Event, Request, Summary, Ticket, Timings, Work};
use crate::{Embedding, Ranked};

use axum::http::HeaderValue;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What every request may say about when it is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    /// Higher is earlier.
    pub(super) priority: Option<i32>,
    /// Seconds after which the answer is of no use any more.
    pub(super) timeout: Option<f32>,
}

/// A request's events. Dropping it gives the request up.
pub(super) struct Answers {
    receiver: UnboundedReceiver<Event>,
    watch: Watch,
    _ticket: Ticket,
}

impl Loaded {
    /// Hands work to the scheduler.
    pub(super) fn submit(&self, work: Work, wish: Wish) -> Result<Answers, Failure> {
        let watch = self.app.metrics.watch(&work);
        let (sender, receiver) = unbounded_channel();
        let ticket = self.scheduler.submit_to(wish.request(work)?, move |event| {
            // A receiver that is gone has dropped its ticket, too.
            let _ = sender.send(event);
        })?;
        Ok(Answers { receiver, watch, _ticket: ticket })
    }

    /// Hands several to the scheduler, all or none.
    pub(super) fn submit_all(
        &self,
        works: impl IntoIterator<Item = Work>,
        wish: Wish,
    ) -> Result<Many, Failure> {
        let (sender, receiver) = unbounded_channel();
        let mut many = Many { receiver, watches: Vec::new(), _tickets: Vec::new() };
        for (index, work) in works.into_iter().enumerate() {
            many.watches.push(self.app.metrics.watch(&work));
            let sender = sender.clone();
            let ticket = self.scheduler.submit_to(wish.request(work)?, move |event| {
                let _ = sender.send((index, event));
            })?;
            many._tickets.push(ticket);
        }
        Ok(many)
    }
}

impl Wish {
    fn request(self, work: Work) -> Result<Request, Failure> {
        let deadline = self.deadline()?;
        Ok(Request { work, priority: self.priority.unwrap_or(0), deadline })
    }

    /// When its answer is of no use any more.
    pub(super) fn deadline(self) -> Result<Option<Instant>, Failure> {
        let Some(seconds) = self.timeout else { return Ok(None) };
        match Duration::try_from_secs_f32(seconds) {
            Ok(timeout) => Ok(Instant::now().checked_add(timeout)),
            Err(_) => {
                let problem = format!("expected seconds, 0 or more, found {seconds}");
                Err(Failure::field("timeout", problem))
            }
        }
    }
}

/// Several requests' events, as they come. Dropping it gives them all up.
pub(super) struct Many {
    receiver: UnboundedReceiver<(usize, Event)>,
    watches: Vec<Watch>,
    _tickets: Vec<Ticket>,
}

impl Many {
    /// What one task sends, all of it from 0.
    pub(super) fn of(receiver: UnboundedReceiver<(usize, Event)>, watch: Watch) -> Self {
        Self { receiver, watches: vec![watch], _tickets: Vec::new() }
    }

    /// How many requests they are.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// The next event and whose it is, from 0; a failure of one comes as such.
    pub(super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        let (index, event) = self.receiver.recv().await.ok_or_else(Failure::lost)?;
        if let Some(watch) = self.watches.get_mut(index) {
            watch.see(&event);
        }
        match event {
            Event::Failed(error) => Err(error.into()),
            event => Ok((index, event)),
        }
    }
}

impl Answers {
    /// The next event; failures come as such.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        let event = self.receiver.recv().await.ok_or_else(Failure::lost)?;
        self.watch.see(&event);
        match event {
            Event::Failed(error) => Err(error.into()),
            event => Ok(event),
        }
    }

    /// All vectors of an embedding request.
    pub(super) async fn embeddings(mut self) -> Result<(Vec<Embedding>, Summary), Failure> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                Event::Embedding { embedding, .. } => all.push(embedding),
                Event::Finished(summary) => return Ok((all, summary)),
                _ => {}
            }
        }
    }

    /// All passages of a request to rank, in their order.
    pub(super) async fn ranked(mut self) -> Result<(Vec<Ranked>, Summary), Failure> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                Event::Ranked(ranked) => all.push(ranked),
                Event::Finished(summary) => return Ok((all, summary)),
                _ => {}
            }
        }
    }
}

/// A request's stages as a `Server-Timing` header.
pub(super) fn server_timing(tokenize: Duration, timings: &Timings) -> HeaderValue {
    stages(&[
        ("tokenize", tokenize),
        ("queue", timings.queued),
        ("prefill", timings.prefill),
        ("decode", timings.decode),
    ])
}

/// The stages until a stream begins, which ends later.
pub(super) fn first_timing(tokenize: Duration, first: Duration) -> HeaderValue {
    stages(&[("tokenize", tokenize), ("first", first)])
}

/// In milliseconds.
pub(super) fn stages(stages: &[(&str, Duration)]) -> HeaderValue {
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let text: Vec<String> =
        stages.iter().map(|(name, time)| format!("{name};dur={:.3}", ms(time))).collect();
    // Digits and letters only.
    HeaderValue::from_str(&text.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
