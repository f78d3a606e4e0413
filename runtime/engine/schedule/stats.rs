//! Counters: of the scheduler, and of one request.

use super::Refused;
use serde::{Serialize, Serializer};
use std::collections::VecDeque;
use std::time::Duration;

/// Tokens that were computed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct StepTokens {
    /// Of answers, one a step each.
    pub decode: u64,
    /// Of prompts.
    pub prefill: u64,
    /// Of texts, to embed or to rank.
    pub embed: u64,
    /// Those of `decode` and `prefill` that belong to answers with a [`Past`](super::Past): answers
    /// from documents' caches.
    pub from_cache: u64,
}

impl StepTokens {
    /// All kinds.
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

/// A pass that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// What was computed.
    pub tokens: StepTokens,
    /// How long it took.
    pub time: Duration,
}

/// Steps that are kept.
const KEPT: usize = 256;

/// The last steps, oldest first, in room that is there from the start.
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

/// Requests that were not taken, by reason; see [`Refused`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct Refusals {
    /// The queue was full.
    pub queue_full: u64,
    /// Beyond the model's positions.
    pub too_long: u64,
    /// Beyond all KV pages.
    pub never_fits: u64,
    /// The scheduler was ending.
    pub draining: u64,
    /// They meant nothing.
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

/// What the scheduler does and has done. Whoever has a request's last event finds it counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct Stats {
    /// Prompts that wait for pages.
    pub waiting_generate: usize,
    /// Requests with texts that wait for their turn.
    pub waiting_embed: usize,
    /// Tokens of all that waits.
    pub waiting_tokens: usize,
    /// Answers under way.
    pub running: usize,
    /// Passes.
    pub steps: u64,
    /// Tokens of the last pass.
    pub last: StepTokens,
    /// Tokens of all passes.
    pub total: StepTokens,
    /// Times that an answer was preempted: it gave its pages to a text, and was computed again or,
    /// with a [`Past`](super::Past), copied away and back.
    pub preemptions: u64,
    /// Time in passes; as JSON, `busy_seconds`.
    #[serde(rename = "busy_seconds", serialize_with = "seconds")]
    #[cfg_attr(feature = "utoipa", schema(rename = "busy_seconds", value_type = f64, minimum = 0))]
    pub busy: Duration,
    /// KV pages.
    pub pages: usize,
    /// Those that nobody holds.
    pub pages_free: usize,
    /// Those that hold prefixes for prompts to come; given back when pages run short.
    pub pages_prefix: usize,
    /// Tokens of prompts that were found in such pages and not computed again.
    pub prefix_tokens: u64,
    /// Tokens whose keys and values came with their requests and were not computed again.
    pub past_tokens: u64,
    /// Requests taken.
    pub submitted: u64,
    /// Requests done.
    pub finished: u64,
    /// Requests that the device or the model failed.
    pub failed: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
    /// Requests that missed their deadline.
    pub expired: u64,
    /// Requests that were not taken.
    pub refused: Refusals,
}

impl Stats {
    /// How long so many tokens take at the pace so far, in whole seconds that a client may wait.
    pub(super) fn time_for(&self, tokens: usize) -> Duration {
        let pace = self.total.sum() as f64 / self.busy.as_secs_f64();
        let seconds = tokens as f64 / pace;
        // The pace is NaN before the first pass, and `as` makes 0 of it.
        Duration::from_secs((seconds.ceil() as u64).clamp(1, 60))
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Tokens of the prompt or of all texts.
    pub prompt_tokens: usize,
    /// Those of a prompt that were found computed.
    pub cached_tokens: usize,
    /// Tokens drawn.
    pub output_tokens: usize,
    /// Passes that began while it waited.
    pub queued_steps: u64,
    /// Passes from its first to its last.
    pub steps: u64,
    /// Time, by stage.
    pub timings: Timings,
}

/// Where a request's time went; together, from submission to the last event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// Until its first pass.
    pub queued: Duration,
    /// From there until the first token was drawn, or the last text was done.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
}

impl Timings {
    /// From submission to the first token.
    pub fn first_token(&self) -> Duration {
        self.queued + self.prefill
    }
}
