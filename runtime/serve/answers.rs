//! Carries a request's events from the engine's thread to its handler, which awaits them.

use super::body::Loaded;
use super::budget::Charge;
use super::failure::Failure;
use super::metrics::Watch;
use axum::http::HeaderValue;
use gritlm::schedule::{Event, Request, Summary, Ticket, Timings, Work};
use gritlm::{Embedding, Ranked};
use gritlm_model::ops::SampledToken;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Priority and timeout, the scheduling options that every request may have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestOptions {
    /// Higher values are scheduled earlier.
    pub(super) priority: Option<i32>,
    /// Seconds after which the answer is no longer needed.
    pub(super) timeout: Option<f32>,
}

/// A request's events. Dropping it cancels the request.
pub(super) struct Answers(Many);

/// An event and the index of its request, from 0.
type Numbered = Result<(usize, Event), Failure>;

/// Sends a request's events to its handler, which may be slow to take them. Events that wait are
/// charged to the budget.
#[derive(Clone)]
pub(super) struct Sink {
    sender: UnboundedSender<Numbered>,
    charge: Arc<Charge>,
    /// Whether an event exceeded the budget. Its failure is sent, and nothing after it.
    full: bool,
}

impl Sink {
    pub(super) fn send(&mut self, index: usize, event: Event) {
        if self.full {
            return;
        }
        let told = self.charge.grow(bytes(&event)).map(|()| (index, event));
        self.full = told.is_err();
        // If the receiver is gone, its tickets have been dropped as well.
        let _ = self.sender.send(told);
    }
}

/// Returns the bytes that an event occupies while it waits. Vectors and ranks are charged in
/// advance by [`result_bytes`]; the last event costs nothing, so it always fits.
fn bytes(event: &Event) -> usize {
    let top = |drawn: &SampledToken| size_of_val(&drawn.top[..]);
    match event {
        Event::Prompt(scores) => {
            size_of::<Numbered>() + size_of_val(&scores[..]) + scores.iter().map(top).sum::<usize>()
        }
        Event::Piece(piece) => size_of::<Numbered>() + piece.text.len() + top(&piece.token),
        _ => 0,
    }
}

/// Returns the bytes that the results of work will occupy, as far as they are known in advance.
fn result_bytes(work: &Work, dim: usize) -> usize {
    match work {
        Work::Embed { texts, options: how } => {
            let numbers = how.dimensions.unwrap_or(dim).min(dim);
            texts.len() * (size_of::<Numbered>() + numbers * size_of::<f32>())
        }
        Work::Rank { prompts } => prompts.len() * size_of::<Numbered>(),
        Work::Generate { .. } => 0,
    }
}

impl Loaded {
    /// Submits work to the scheduler.
    pub(super) fn submit(&self, work: Work, options: RequestOptions) -> Result<Answers, Failure> {
        Ok(Answers(self.submit_all([work], options)?))
    }

    /// Submits several pieces of work to the scheduler, all or none.
    pub(super) fn submit_all(
        &self,
        works: impl IntoIterator<Item = Work>,
        options: RequestOptions,
    ) -> Result<Many, Failure> {
        let (sink, mut many) = self.events();
        for (index, work) in works.into_iter().enumerate() {
            self.results.grow(result_bytes(&work, self.engine().config().dim))?;
            many.watches.push(self.app.metrics.watch(&work));
            let mut sink = sink.clone();
            let request = options.request(work)?;
            let ticket = self.scheduler.submit_to(request, move |event| sink.send(index, event))?;
            many._tickets.push(ticket);
        }
        Ok(many)
    }

    /// Submits a request to the scheduler; the metrics count it under `name`. `until_first` is
    /// dropped with the first event, and `ticket` with the events.
    pub(super) fn submit_watched(
        &self,
        request: Request,
        name: &str,
        ticket: Ticket,
        until_first: impl Send + 'static,
    ) -> Result<Many, Failure> {
        let (mut sink, mut many) = self.events();
        many.watches.push(self.app.metrics.watch_kind(name));
        let mut until_first = Some(until_first);
        let own = self.scheduler.submit_to(request, move |event| {
            drop(until_first.take());
            sink.send(0, event);
        })?;
        many._tickets.extend([own, ticket]);
        Ok(many)
    }

    fn events(&self) -> (Sink, Many) {
        let (sender, receiver) = unbounded_channel();
        let charge = Arc::clone(&self.results);
        let many = Many { receiver, charge, taken: 0, watches: Vec::new(), _tickets: Vec::new() };
        (Sink { sender, charge: Arc::clone(&self.results), full: false }, many)
    }
}

impl RequestOptions {
    fn request(self, work: Work) -> Result<Request, Failure> {
        let deadline = self.deadline()?;
        Ok(Request { priority: self.priority.unwrap_or(0), deadline, ..work.into() })
    }

    /// Returns the time after which the answer is no longer needed.
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

/// The events of several requests, in order of arrival. Dropping it cancels all of them.
pub(super) struct Many {
    receiver: UnboundedReceiver<Numbered>,
    charge: Arc<Charge>,
    /// Bytes of the charge that belong to events already taken.
    taken: usize,
    watches: Vec<Watch>,
    _tickets: Vec<Ticket>,
}

impl Many {
    /// Returns the number of requests.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Returns the next event and the index of its request, from 0, or the failure of any request.
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

    /// Gives the bytes of the events taken so far back to the budget: they have been sent and are
    /// not kept.
    pub(super) fn sent(&mut self) {
        self.charge.shrink(std::mem::take(&mut self.taken));
    }
}

impl Answers {
    /// Returns all vectors of an embedding request.
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

    /// Returns all passages of a ranking request, in their order.
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

/// Returns a request's stages as a `Server-Timing` header.
pub(super) fn server_timing(tokenize: Duration, timings: &Timings) -> HeaderValue {
    stages(&[
        ("tokenize", tokenize),
        ("queue", timings.queued),
        ("prefill", timings.prefill),
        ("decode", timings.decode),
    ])
}

/// Returns the stages up to a stream's first event as a `Server-Timing` header, which is sent
/// before the stream ends.
pub(super) fn first_timing(tokenize: Duration, first: Duration) -> HeaderValue {
    stages(&[("tokenize", tokenize), ("first", first)])
}

/// Formats stages as a `Server-Timing` header, in milliseconds.
pub(super) fn stages(stages: &[(&str, Duration)]) -> HeaderValue {
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let text: Vec<String> =
        stages.iter().map(|(name, time)| format!("{name};dur={:.3}", ms(time))).collect();
    // The text is visible ASCII, so the conversion does not fail.
    HeaderValue::from_str(&text.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
