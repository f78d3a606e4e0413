//! What an answer cost: tokens, bytes and time.

use std::time::Duration;

/// What an answer cost and what its caches saved. Tokens of the answer itself and of a search
/// that reranks are not counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens that the model computed: the query's embedding pass, the passes of documents that
    /// had no stored cache, and the rest of the prompt.
    pub tokens_computed: usize,
    /// Tokens whose keys and values came from an embedding pass and were not computed again.
    pub tokens_reused: usize,
    /// Bytes of keys and values read from a store.
    pub bytes_read: u64,
    /// Documents whose passes were computed again because no stored cache was available.
    pub recomputed: usize,
    /// Where the time went.
    pub times: Times,
}

/// Where an answer's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Embedding passes: the query's, and those of documents without a stored cache.
    pub embed: Duration,
    /// From the query's vector to the documents, without reading caches: the caller's search.
    pub retrieve: Duration,
    /// Reading caches, joining them, and copying them to the device.
    pub load: Duration,
    /// Prefill of the rest of the prompt and sampling of the first token.
    pub prefill: Duration,
    /// Decoding of the remaining tokens.
    pub decode: Duration,
    /// From the question to the first token: all of the above but `decode`.
    pub first_token: Duration,
}

impl Times {
    /// Returns the time from the question to the latest token.
    pub fn total(&self) -> Duration {
        self.first_token + self.decode
    }

    /// Returns names and durations, in the order of the work, then the two totals.
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
