//! Requests to the scheduler, their events, and the reasons for refusing them.

use super::Summary;
use crate::cache::KvSnapshot;
use crate::{Embed, Embedding, Encoded, Error, Piece, Ranked, Sampling};
use gritlm_model::ops::SampledToken;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The work of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Embed texts; one [`Event::Embedding`] each, in order.
    Embed {
        /// From [`crate::Engine::encode_texts`] with the same `how`.
        texts: Vec<Encoded>,
        /// How; instruction and length are in the texts already.
        how: Embed,
    },
    /// Judge passages; one [`Event::Ranked`] each, in order.
    Rank {
        /// From [`crate::Engine::encode_passages`].
        prompts: Vec<Vec<u32>>,
    },
    /// Generate an answer; one [`Event::Piece`] per token.
    Generate {
        /// From [`crate::Engine::tokenize_prompt`].
        prompt: Vec<u32>,
        /// How; [`Sampling::verbatim`] with what [`crate::Prompt::Raw`] and its like make.
        how: Sampling,
        /// What precedes the prompt and is not computed again; None for nothing.
        past: Option<Past>,
    },
}

/// Keys and values that precede a prompt: those of an embedding pass, say, or of several that were
/// joined. They are copied to KV pages when the answer gets its pages, one such answer a step,
/// because the copy delays the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// The keys and values.
    pub cache: KvSnapshot,
    /// Their tokens, for the repetition penalty; may be empty.
    pub tokens: Vec<u32>,
}

/// Cancels all requests that carry a clone of it.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
}

impl Cancel {
    /// Cancels them: they leave the batch at the next step, and their pages are free.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether they are cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl PartialEq for Cancel {
    /// Returns whether both cancel the same requests.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cancelled, &other.cancelled)
    }
}

impl Work {
    /// Tokens to be computed before the first result that needs them all.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Embed { texts, .. } => texts.iter().map(|t| t.tokens.len()).sum(),
            Self::Rank { prompts } => prompts.iter().map(Vec::len).sum(),
            Self::Generate { prompt, .. } => prompt.len(),
        }
    }

    /// Tokens that precede a prompt and are not computed.
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
    /// Higher is earlier. One level is worth 64 steps of waiting, so nothing waits for ever.
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
    /// A piece of the answer.
    Piece(Piece),
    /// A text's vector.
    Embedding {
        /// Which text, from 0.
        index: usize,
        /// Its embedding.
        embedding: Embedding,
    },
    /// A passage's relevance.
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
    /// The queue is full. Come back later.
    #[error(
        "the queue is full: {requests} requests with {tokens} tokens wait; try again in {} s",
        retry_after.as_secs()
    )]
    QueueFull {
        /// Requests that wait.
        requests: usize,
        /// Their tokens.
        tokens: usize,
        /// How long what waits will take at the pace so far; 1 to 60 s.
        retry_after: Duration,
    },
    /// A text or prompt is longer than the model's positions. Shorten it.
    #[error("the input has {tokens} tokens; the model has {limit} positions")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        limit: usize,
    },
    /// The KV pages would not suffice if they were all free. Ask for less, or open the engine with
    /// more.
    #[error(
        "the request needs room for {tokens} tokens, and the KV cache holds {kv_tokens}; shorten \
         it, ask for fewer tokens or raise `kv_tokens`"
    )]
    NeverFits {
        /// Tokens of the longest sequence, those to be generated counted.
        tokens: usize,
        /// Tokens of the whole pool.
        kv_tokens: usize,
    },
    /// The scheduler ends: it finishes what it has and takes no more.
    #[error("the server is shutting down")]
    Draining,
    /// The request is invalid.
    #[error(transparent)]
    Invalid(#[from] Error),
}
