//! Requests to the scheduler, their events, and the reasons for refusing them.

use super::Summary;
use crate::cache::KvSnapshot;
use crate::{Embed, Embedding, Encoded, Error, Piece, Ranked, Sampling};
use gritlm_model::ops::SampledToken;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use web_time::Instant;

/// The work of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Embeds texts, with one [`Event::Embedding`] each, in order.
    Embed {
        /// Texts from [`crate::Engine::encode_texts`], encoded with the same options.
        texts: Vec<Encoded>,
        /// Options; the instruction and the maximum length are already applied to the texts.
        options: Embed,
    },
    /// Judges the relevance of passages, with one [`Event::Ranked`] each, in order.
    Rank {
        /// Prompts from [`crate::Engine::encode_passages`].
        prompts: Vec<Vec<u32>>,
    },
    /// Generates an answer, with one [`Event::Piece`] per token.
    Generate {
        /// Token ids from [`crate::Engine::tokenize_prompt`].
        prompt: Vec<u32>,
        /// Options. Set [`Sampling::verbatim`] for prompts that the answer continues as text,
        /// such as [`crate::Prompt::Raw`].
        sampling: Sampling,
        /// Keys and values that precede the prompt and are not recomputed, if any.
        past: Option<Past>,
    },
}

/// Keys and values that precede a prompt, for instance those of one embedding pass or of several
/// that were joined. They are copied to KV pages when the answer gets its pages. Only one such
/// answer starts per step, because the copy delays the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// The keys and values.
    pub cache: KvSnapshot,
    /// Their token ids, for the repetition penalty; may be empty.
    pub tokens: Vec<u32>,
}

/// Cancels all requests that carry a clone of this value.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
}

impl Cancel {
    /// Cancels the requests: they leave the batch before the next step and free their KV pages.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the requests are cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl PartialEq for Cancel {
    /// Returns whether both values cancel the same requests.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cancelled, &other.cancelled)
    }
}

impl Work {
    /// Returns the number of tokens to compute before the work is complete or, for an answer,
    /// before its first token.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Embed { texts, .. } => texts.iter().map(|t| t.tokens.len()).sum(),
            Self::Rank { prompts } => prompts.iter().map(Vec::len).sum(),
            Self::Generate { prompt, .. } => prompt.len(),
        }
    }

    /// Returns the number of tokens that precede a prompt and are not computed.
    pub(super) fn past_tokens(&self) -> usize {
        match self {
            Self::Generate { past: Some(past), .. } => past.cache.tokens(),
            _ => 0,
        }
    }
}

/// Work with its priority and deadline.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The work to do.
    pub work: Work,
    /// Higher values are scheduled earlier. One level is worth 64 steps of waiting, so no request
    /// starves.
    pub priority: i32,
    /// Deadline, after which the request fails with [`Error::Expired`].
    pub deadline: Option<Instant>,
    /// Cancels the request together with others.
    pub cancel: Cancel,
}

impl From<Work> for Request {
    fn from(work: Work) -> Self {
        Self { work, priority: 0, deadline: None, cancel: Cancel::default() }
    }
}

/// An event of a request. The last one is [`Event::Finished`] or [`Event::Failed`].
#[derive(Debug)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from the second on, where
    /// [`Sampling::prompt_logprobs`] asks for them; before the first piece.
    Prompt(Vec<SampledToken>),
    /// The next piece of the answer.
    Piece(Piece),
    /// The embedding of a text.
    Embedding {
        /// Index of the text in the request, from 0.
        index: usize,
        /// The text's embedding.
        embedding: Embedding,
    },
    /// The relevance of a passage.
    Ranked(Ranked),
    /// The request is complete.
    Finished(Summary),
    /// The request failed.
    Failed(Error),
}

/// Reason why the scheduler refuses a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The queue is full. Retry later.
    #[error(
        "the queue is full: {requests} requests with {tokens} tokens wait; try again in {} s",
        retry_after.as_secs()
    )]
    QueueFull {
        /// Number of waiting requests.
        requests: usize,
        /// Tokens of these requests.
        tokens: usize,
        /// Time that the waiting requests will take at the pace so far, from 1 to 60 s.
        retry_after: Duration,
    },
    /// A text or prompt is longer than the model's positions. Shorten it.
    #[error("the input has {tokens} tokens; the model has {limit} positions")]
    TooLong {
        /// Length of the input in tokens.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        limit: usize,
    },
    /// The request would not fit if all KV pages were free. Ask for less, or open the engine with
    /// more.
    #[error(
        "the request needs room for {tokens} tokens, and the KV cache holds {kv_tokens}; shorten \
         it, ask for fewer tokens or raise `kv_tokens`"
    )]
    NeverFits {
        /// Tokens of the longest sequence, including those to generate.
        tokens: usize,
        /// Number of tokens that all KV pages hold.
        kv_tokens: usize,
    },
    /// The scheduler is shutting down: it completes the accepted requests and accepts no more.
    #[error("the server is shutting down")]
    Draining,
    /// The request is invalid.
    #[error(transparent)]
    Invalid(#[from] Error),
}
