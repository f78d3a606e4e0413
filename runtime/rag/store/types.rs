//! What goes into a store and what comes out.

use crate::cache::KvCache;
use serde::{Deserialize, Serialize};

/// What tells whether a document's source has changed since it was indexed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Nanoseconds since 1970 at which the file, or on Unix anything about it, was last changed. 0
    /// where that is not known, or was so shortly before it was read that a later change may have
    /// the same time.
    pub modified: i64,
    /// Its length.
    pub bytes: u64,
    /// [`content_hash`](super::content_hash) of its content.
    pub hash: u64,
}

/// A document to store, without its chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDocument {
    /// What tells it from all others: a file's path, or with the line within a JSONL file.
    pub path: String,
    /// For people.
    pub title: String,
    /// The state of the source.
    pub stamp: Stamp,
    /// What filters look at; null where there is nothing.
    pub metadata: serde_json::Value,
}

/// A chunk to store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChunk {
    /// The text that was embedded.
    pub text: String,
    /// Its tokens.
    pub tokens: u32,
    /// Its embedding `(dim)`.
    pub vector: Vec<f32>,
    /// Keys and values to generate from; None where they are not kept.
    pub kv: Option<KvCache>,
}

/// A stored document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// As given to [`NewDocument`].
    pub path: String,
    /// As given.
    pub title: String,
    /// As given.
    pub stamp: Stamp,
    /// As given.
    pub metadata: serde_json::Value,
    /// Ids of its chunks, in their order in the document.
    pub chunks: Vec<u64>,
}

/// A stored chunk, without its vector and its keys and values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chunk {
    /// Never used again for another chunk of this store.
    pub id: u64,
    /// Its document's path.
    pub document: String,
    /// Its document's title.
    pub title: String,
    /// Which chunk of the document, from 0.
    pub index: u32,
    /// The text that was embedded.
    pub text: String,
    /// Its tokens.
    pub tokens: u32,
    /// Its document's.
    pub metadata: serde_json::Value,
    /// Whether [`Reader::kv`](super::Reader::kv) finds something: stored and not evicted.
    pub has_kv: bool,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Documents.
    pub documents: u64,
    /// Chunks, each with a vector.
    pub chunks: u64,
    /// Chunks with keys and values.
    pub cached: u64,
    /// Bytes of the database with its write-ahead log.
    pub database_bytes: u64,
    /// Bytes of the vectors' file.
    pub vector_bytes: u64,
    /// Of these, bytes of vectors that were replaced or removed; [`super::Writer::compact`]
    /// (super::Writer::compact) frees them.
    pub dead_vector_bytes: u64,
    /// Bytes of the segments' files.
    pub segment_bytes: u64,
    /// Of these, bytes of live keys and values: what the budget counts.
    pub kv_bytes: u64,
    /// The most that `kv_bytes` may be; None for no limit.
    pub kv_budget: Option<u64>,
    /// Keys and values that have been read, over all readers.
    pub hits: u64,
    /// Chunks whose keys and values were asked for and not there.
    pub misses: u64,
    /// Chunks whose keys and values gave way to the budget.
    pub evicted: u64,
    /// More chunks than this are searched approximately; None for exactly, however many.
    pub approximate_above: Option<u64>,
    /// Chunks in the graph for approximate search; the others are searched exactly.
    pub graph_chunks: u64,
    /// Bytes of the graph's file.
    pub graph_bytes: u64,
}

/// What [`super::Writer::compact`](super::Writer::compact) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Bytes of all files before.
    pub before: u64,
    /// Bytes of all files after.
    pub after: u64,
}

/// Something in a store that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name in the store's folder.
    pub file: String,
    /// The document that it belongs to, where that is known: removing it and indexing again heals.
    pub document: Option<String>,
    /// What was expected and what was found.
    pub problem: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.document {
            Some(path) => write!(f, "{}: {path}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

/// What [`verify`](super::verify) found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Documents looked at.
    pub documents: u64,
    /// Chunks looked at, with text and vector.
    pub chunks: u64,
    /// Keys and values looked at.
    pub cached: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Everything that is wrong; empty for a sound store.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}
