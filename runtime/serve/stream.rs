//! Streams answers as server-sent events, piece by piece.

use super::answers::Many;
use super::body::Loaded;
use super::echo::Echo;
use super::failure::{Failure, FailureBody};
use super::openai::{ChoiceDelta, Chunk, Head, Shape, Usage};
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use gritlm::schedule::{Event, Summary};
use gritlm::{Finish, Piece};
use gritlm_model::ops::SampledToken;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

/// What a stream contains besides the text.
pub(super) struct StreamOptions {
    /// Choices of each prompt.
    pub(super) n: usize,
    pub(super) logprobs: bool,
    pub(super) usage: bool,
    /// Prompts that the answers begin with; empty without `echo`.
    pub(super) echoes: Vec<Echo>,
}

/// The state of a choice under way.
#[derive(Clone, Default)]
struct ChoiceState {
    begun: bool,
    /// The scores of the choice's prompt, until they are sent.
    prompt: Vec<SampledToken>,
    /// Characters of the choice's text that have been sent.
    characters: usize,
    finish: Option<Finish>,
}

/// An answer being sent. If it is dropped, as when the client disconnects, the request is
/// cancelled.
struct Sending<S> {
    loaded: Loaded,
    many: Many,
    head: Head,
    options: StreamOptions,
    choices: Vec<ChoiceState>,
    summaries: Vec<Summary>,
    /// Number of choices that are not finished.
    left: usize,
    /// Events to send.
    out: VecDeque<sse::Event>,
    shape: PhantomData<fn() -> S>,
}

/// Returns the response once the first event has arrived, so that an earlier failure gets its own
/// status code. `first` is sent before that event.
pub(super) async fn respond<S: Shape>(
    loaded: Loaded,
    mut many: Many,
    head: Head,
    options: StreamOptions,
    first: Option<sse::Event>,
    timing: impl FnOnce() -> HeaderValue,
) -> Result<Response, Failure> {
    let (index, event) = many.next().await?;
    let (choices, summaries) =
        (vec![ChoiceState::default(); many.len()], vec![Summary::default(); many.len()]);
    let (left, out, shape) = (many.len(), VecDeque::from_iter(first), PhantomData);
    let mut sending =
        Sending::<S> { loaded, many, head, options, choices, summaries, left, out, shape };
    sending.take(index, event)?;
    let header = [(HeaderName::from_static("server-timing"), timing())];
    let events = Sse::new(stream::unfold(sending, Sending::next));
    // A comment every 15 s keeps proxies from closing the connection as dead.
    let events = events.keep_alive(KeepAlive::new().interval(Duration::from_secs(15)));
    Ok((header, events).into_response())
}

impl<S: Shape> Sending<S> {
    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some((Ok(event), self));
            }
            if self.left == 0 {
                return None;
            }
            self.many.sent();
            let taken = match self.many.next().await {
                Ok((index, event)) => self.take(index, event),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = taken {
                self.left = 0;
                if let Some(reason) = failure.reason() {
                    self.loaded.app.log(&self.loaded.route, &reason);
                }
                self.send(&FailureBody { error: failure.error });
            }
        }
    }

    /// Turns an event into parts to send.
    fn take(&mut self, index: usize, event: Event) -> Result<(), Failure> {
        match event {
            Event::Prompt(scores) => self.choices[index].prompt = scores,
            Event::Piece(piece) => {
                self.echo(index)?;
                self.choices[index].finish = piece.finish;
                self.pieces(index, &[piece])?;
            }
            Event::Finished(summary) => {
                self.echo(index)?;
                let choice = &self.choices[index];
                // Without a piece, there was no room for a token.
                let finish = Some(choice.finish.unwrap_or(Finish::Length));
                let first = !choice.begun;
                self.part(index, ChoiceDelta { first, text: None, logprobs: None, finish });
                self.summaries[index] = summary;
                self.left -= 1;
                if self.left == 0 {
                    self.end();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends the prompt if `echo` asks for it and it has not been sent.
    fn echo(&mut self, index: usize) -> Result<(), Failure> {
        let choice = &mut self.choices[index];
        match self.options.echoes.get(index / self.options.n) {
            Some(echo) if !choice.begun => {
                let pieces = echo.pieces(&std::mem::take(&mut choice.prompt));
                self.pieces(index, &pieces)
            }
            _ => Ok(()),
        }
    }

    /// Sends pieces as one part, unless there is nothing to send.
    fn pieces(&mut self, index: usize, pieces: &[Piece]) -> Result<(), Failure> {
        let choice = &mut self.choices[index];
        let logprobs = self
            .options
            .logprobs
            .then(|| S::logprobs(self.loaded.engine(), pieces, choice.characters));
        let logprobs = logprobs.transpose()?;
        let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        if logprobs.is_some() || !text.is_empty() {
            choice.characters += text.chars().count();
            let first = !std::mem::replace(&mut choice.begun, true);
            self.part(index, ChoiceDelta { first, text: Some(text), logprobs, finish: None });
        }
        Ok(())
    }

    fn part(&mut self, index: usize, delta: ChoiceDelta<S::Logprobs>) {
        let usage = self.options.usage.then_some(None);
        let choices = vec![S::part(index, delta)];
        self.send(&Chunk { head: self.head.clone(), choices, usage });
    }

    fn end(&mut self) {
        if self.options.usage {
            let usage = Some(Some(Usage::new(&self.summaries, self.options.n)));
            let choices = Vec::<S::Part>::new();
            self.send(&Chunk { head: self.head.clone(), choices, usage });
        }
        self.out.push_back(sse::Event::default().data("[DONE]"));
    }

    fn send(&mut self, data: &impl Serialize) {
        // Such data can always be serialized.
        self.out.extend(sse::Event::default().json_data(data));
    }
}
