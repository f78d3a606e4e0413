//! Counters of the scheduler and of single requests.

use super::Refused;
use serde::{Serialize, Serializer};
use std::collections::VecDeque;
use std::time::Duration;

/// Number of computed tokens, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct StepTokens {
    /// Decoded tokens: one per step for each running answer.
    pub decode: u64,
    /// Prefill tokens of prompts.
    pub prefill: u64,
    /// Tokens of texts that are embedded or ranked.
    pub embed: u64,
    /// Tokens of `decode` and `prefill` that belong to answers with a [`Past`](super::Past), that
    /// is, to answers from documents' caches.
    pub from_cache: u64,
}

impl StepTokens {
    /// Returns the tokens of all kinds; `from_cache` is part of the others.
    pub fn sum(self) -> u64 {
        self.decode + self.prefill + self.embed
    }

    pub(super) fn add(&mut self, step: Self) {
        self.decode += step.decode;
        self.prefill += step.prefill;
        self.embed += step.embed;
        self.from_cache += step.from_cache;
    }
}

/// A completed pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the pass, from 1.
    pub step: u64,
    /// Tokens that the pass computed.
    pub tokens: StepTokens,
    /// Duration of the pass.
    pub time: Duration,
}

/// Number of steps that [`Recent`] keeps.
const KEPT: usize = 256;

/// The last steps, oldest first, in memory allocated at the start.
pub(super) struct Recent(VecDeque<Step>);

impl Recent {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(KEPT))
    }

    pub(super) fn push(&mut self, step: Step) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(step);
    }

    pub(super) fn since(&self, step: u64) -> Vec<Step> {
        let first = self.0.partition_point(|kept| kept.step <= step);
        self.0.range(first..).copied().collect()
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Number of refused requests, by reason; see [`Refused`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct Refusals {
    /// The queue was full.
    pub queue_full: u64,
    /// A text or prompt was longer than the model's positions.
    pub too_long: u64,
    /// The request needed more than all KV pages.
    pub never_fits: u64,
    /// The scheduler was shutting down.
    pub draining: u64,
    /// The request was invalid.
    pub invalid: u64,
}

impl Refusals {
    pub(super) fn count(&mut self, refused: &Refused) {
        *match refused {
            Refused::QueueFull { .. } => &mut self.queue_full,
            Refused::TooLong { .. } => &mut self.too_long,
            Refused::NeverFits { .. } => &mut self.never_fits,
            Refused::Draining => &mut self.draining,
            Refused::Invalid(_) => &mut self.invalid,
        } += 1;
    }
}

/// State and totals of the scheduler. A request is counted before its last event is delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct Stats {
    /// Generation requests that wait for KV pages or for a place in the batch, preempted answers
    /// included.
    pub waiting_generate: usize,
    /// Embedding and ranking requests with texts that have not been in a pass.
    pub waiting_embed: usize,
    /// Tokens of all waiting prompts and texts.
    pub waiting_tokens: usize,
    /// Running answers: those that hold their KV pages.
    pub running: usize,
    /// Number of passes.
    pub steps: u64,
    /// Tokens of the last pass.
    pub last: StepTokens,
    /// Tokens of all passes.
    pub total: StepTokens,
    /// Number of preemptions: an answer gave its KV pages to a text and was recomputed later or,
    /// with a [`Past`](super::Past), copied to memory and back.
    pub preemptions: u64,
    /// Time spent in passes; `busy_seconds` in JSON.
    #[serde(rename = "busy_seconds", serialize_with = "seconds")]
    #[cfg_attr(feature = "utoipa", schema(rename = "busy_seconds", value_type = f64, minimum = 0))]
    pub busy: Duration,
    /// Number of KV pages.
    pub pages: usize,
    /// Free KV pages.
    pub pages_free: usize,
    /// KV pages of the prefix cache; they are evicted when free pages run short.
    pub pages_prefix: usize,
    /// Prompt tokens found in the prefix cache and not recomputed.
    pub prefix_tokens: u64,
    /// Tokens whose keys and values came with a request's [`Past`](super::Past) and were not
    /// recomputed.
    pub past_tokens: u64,
    /// Accepted requests.
    pub submitted: u64,
    /// Completed requests.
    pub finished: u64,
    /// Requests that failed with an error of the device or the model.
    pub failed: u64,
    /// Requests that were cancelled or whose client disconnected.
    pub cancelled: u64,
    /// Requests that missed their deadline.
    pub expired: u64,
    /// Refused requests, by reason.
    pub refused: Refusals,
}

impl Stats {
    /// Estimates the time that `tokens` tokens take at the average pace so far, in whole seconds
    /// from 1 to 60.
    pub(super) fn time_for(&self, tokens: usize) -> Duration {
        let pace = self.total.sum() as f64 / self.busy.as_secs_f64();
        let seconds = tokens as f64 / pace;
        // The pace is NaN before the first pass, and `as` converts NaN to 0.
        Duration::from_secs((seconds.ceil() as u64).clamp(1, 60))
    }
}

/// Counts and times of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Tokens of the prompt, with those that precede it, or of all texts.
    pub prompt_tokens: usize,
    /// Prompt tokens that were reused and not computed.
    pub cached_tokens: usize,
    /// Sampled tokens.
    pub output_tokens: usize,
    /// Number of passes that began while the request waited.
    pub queued_steps: u64,
    /// Number of passes from the request's first to its last.
    pub steps: u64,
    /// Time spent in each stage.
    pub timings: Timings,
}

/// Time that a request spent in each stage; the sum is the time from submission to the last
/// event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// From submission to the request's first pass.
    pub queued: Duration,
    /// From the first pass until the first token was sampled or, for texts, until the last was
    /// done.
    pub prefill: Duration,
    /// From the end of `prefill` to the last event.
    pub decode: Duration,
}

impl Timings {
    /// Returns the time from submission to the first token.
    pub fn first_token(&self) -> Duration {
        self.queued + self.prefill
    }
}
