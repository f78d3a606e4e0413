//! What an answer took.

use std::time::Duration;

/// What an answer took, and what its caches saved. Tokens of the answer itself and of a search that
/// reranks are not counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens that went through the model: the query's embedding pass, documents' passes that no
    /// store had, and what was left to read.
    pub tokens_computed: usize,
    /// Tokens whose keys and values a pass before had computed, and which were not read again.
    pub tokens_reused: usize,
    /// Bytes of keys and values that came from a store.
    pub bytes_read: u64,
    /// Documents whose passes had to be computed again, because the store has them no more.
    pub recomputed: usize,
    /// Where the time went.
    pub times: Times,
}

/// Where an answer's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Embedding passes: the query's, and those of documents that no store had.
    pub embed: Duration,
    /// From the query's vector to the documents, reading of caches left out: the caller's search.
    pub retrieve: Duration,
    /// Reading caches, joining them, and their way to the device.
    pub load: Duration,
    /// Reading the rest of the prompt and drawing the first token.
    pub prefill: Duration,
    /// Drawing the other tokens.
    pub decode: Duration,
    /// From the question to the first token, all of the above but `decode`.
    pub first_token: Duration,
}

impl Times {
    /// From the question to the last token so far.
    pub fn total(&self) -> Duration {
        self.first_token + self.decode
    }

    /// Name and duration, in the order of the work.
    pub fn named(&self) -> [(&'static str, Duration); 7] {
        [
            ("embed", self.embed),
            ("retrieve", self.retrieve),
            ("load", self.load),
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("first_token", self.first_token),
            ("total", self.total()),
        ]
    }
}
