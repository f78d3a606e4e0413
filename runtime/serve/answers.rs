//! From the engine's thread to a handler: a request's events, awaited.

use super::body::Loaded;
use super::failure::Failure;
use super::metrics::Watch;
use crate::schedule::{Event, Request, Summary, Ticket, Timings, Work};
use crate::{Embedding, Piece};

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
        let deadline = match wish.timeout {
            None => None,
            Some(seconds) => match Duration::try_from_secs_f32(seconds) {
                Ok(timeout) => Instant::now().checked_add(timeout),
                Err(_) => {
                    let problem = format!("expected seconds, 0 or more, found {seconds}");
                    return Err(Failure::field("timeout", problem));
                }
            },
        };
        let priority = wish.priority.unwrap_or(0);
        let watch = self.app.metrics.watch(&work);
        let (sender, receiver) = unbounded_channel();
        let request = Request { work, priority, deadline };
        let ticket = self.scheduler.submit_to(request, move |event| {
            // A receiver that is gone has dropped its ticket, too.
            let _ = sender.send(event);
        })?;
        Ok(Answers { receiver, watch, _ticket: ticket })
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

    /// All pieces of an answer.
    pub(super) async fn pieces(mut self) -> Result<(Vec<Piece>, Summary), Failure> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                Event::Piece(piece) => all.push(piece),
                Event::Finished(summary) => return Ok((all, summary)),
                _ => {}
            }
        }
    }
}

/// A request's stages as a `Server-Timing` header, in milliseconds.
pub(super) fn server_timing(tokenize: Duration, timings: &Timings) -> HeaderValue {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let stages = [
        ("tokenize", tokenize),
        ("queue", timings.queued),
        ("prefill", timings.prefill),
        ("decode", timings.decode),
    ];
    let text: Vec<String> =
        stages.iter().map(|(name, time)| format!("{name};dur={:.3}", ms(*time))).collect();
    // Digits and letters only.
    HeaderValue::from_str(&text.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
