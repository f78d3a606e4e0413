//! From the engine's thread to a handler: a request's events, awaited.

use super::body::Loaded;
use super::budget::Charge;
use super::failure::Failure;
use super::metrics::Watch;
use crate::schedule::{Event, Request, Summary, Ticket, Timings, Work};
use crate::{Embedding, Ranked};
use axum::http::HeaderValue;
use gritlm_model::ops::Drawn;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What every request may say about when it is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    /// Higher is earlier.
    pub(super) priority: Option<i32>,
    /// Seconds after which the answer is of no use any more.
    pub(super) timeout: Option<f32>,
}

/// A request's events. Dropping it gives the request up.
pub(super) struct Answers(Many);

/// An event and whose it is, from 0.
type Told = Result<(usize, Event), Failure>;

/// Where a request's events go: to its handler, which may be slow to take them. What waits for it is
/// charged.
#[derive(Clone)]
pub(super) struct Sink {
    sender: UnboundedSender<Told>,
    charge: Arc<Charge>,
    /// Whether an event found no room. None comes after it.
    full: bool,
}

impl Sink {
    pub(super) fn send(&mut self, index: usize, event: Event) {
        if self.full {
            return;
        }
        let told = self.charge.grow(bytes(&event)).map(|()| (index, event));
        self.full = told.is_err();
        // A receiver that is gone has dropped its ticket, too.
        let _ = self.sender.send(told);
    }

    /// Whether nobody takes the events any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Bytes that an event takes while it waits. Of vectors and ranks they are charged beforehand; the
/// last event always finds room.
fn bytes(event: &Event) -> usize {
    let top = |drawn: &Drawn| size_of_val(&drawn.top[..]);
    match event {
        Event::Prompt(scores) => {
            size_of::<Told>() + size_of_val(&scores[..]) + scores.iter().map(top).sum::<usize>()
        }
        Event::Piece(piece) => size_of::<Told>() + piece.text.len() + top(&piece.token),
        _ => 0,
    }
}

/// Bytes that the results of work take, as far as they are known before.
fn result_bytes(work: &Work, dim: usize) -> usize {
    match work {
        Work::Embed { texts, how } => {
            let numbers = how.dimensions.unwrap_or(dim).min(dim);
            texts.len() * (size_of::<Told>() + numbers * size_of::<f32>())
        }
        Work::Rank { prompts } => prompts.len() * size_of::<Told>(),
        Work::Generate { .. } => 0,
    }
}

impl Loaded {
    /// Hands work to the scheduler.
    pub(super) fn submit(&self, work: Work, wish: Wish) -> Result<Answers, Failure> {
        Ok(Answers(self.submit_all([work], wish)?))
    }

    /// Hands several to the scheduler, all or none.
    pub(super) fn submit_all(
        &self,
        works: impl IntoIterator<Item = Work>,
        wish: Wish,
    ) -> Result<Many, Failure> {
        let (sink, mut many) = self.events();
        for (index, work) in works.into_iter().enumerate() {
            self.results.grow(result_bytes(&work, self.engine().config().dim))?;
            many.watches.push(self.app.metrics.watch(&work));
            let mut sink = sink.clone();
            let request = wish.request(work)?;
            let ticket = self.scheduler.submit_to(request, move |event| sink.send(index, event))?;
            many._tickets.push(ticket);
        }
        Ok(many)
    }

    /// What one task sends, all of it from 0.
    pub(super) fn events_of(&self, watch: Watch) -> (Sink, Many) {
        let (sink, mut many) = self.events();
        many.watches.push(watch);
        (sink, many)
    }

    fn events(&self) -> (Sink, Many) {
        let (sender, receiver) = unbounded_channel();
        let charge = Arc::clone(&self.results);
        let many = Many { receiver, charge, taken: 0, watches: Vec::new(), _tickets: Vec::new() };
        (Sink { sender, charge: Arc::clone(&self.results), full: false }, many)
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
    receiver: UnboundedReceiver<Told>,
    charge: Arc<Charge>,
    /// Bytes of the charge that are those of events which have been taken.
    taken: usize,
    watches: Vec<Watch>,
    _tickets: Vec<Ticket>,
}

impl Many {
    /// How many requests they are.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// The next event and whose it is, from 0; a failure of one comes as such.
    pub(super) async fn next(&mut self) -> Result<(usize, Event), Failure> {
        let (index, event) = self.receiver.recv().await.ok_or_else(Failure::lost)??;
        self.taken += bytes(&event);
        if let Some(watch) = self.watches.get_mut(index) {
            watch.see(&event);
        }
        match event {
            Event::Failed(error) => Err(error.into()),
            event => Ok((index, event)),
        }
    }

    /// Gives back what the events took that have been taken: they are sent, and not kept.
    pub(super) fn sent(&mut self) {
        self.charge.shrink(std::mem::take(&mut self.taken));
    }
}

impl Answers {
    /// All vectors of an embedding request.
    pub(super) async fn embeddings(mut self) -> Result<(Vec<Embedding>, Summary), Failure> {
        let mut all = Vec::new();
        loop {
            match self.0.next().await?.1 {
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
            match self.0.next().await?.1 {
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
