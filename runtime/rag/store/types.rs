//! Types that go into a store and come out of it.

use gritlm::cache::KvSnapshot;
use serde::{Deserialize, Serialize};

/// Identifies the state of a document's source, to detect that it has changed since it was
/// indexed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Time of the file's last change (on Unix, also of its metadata), in nanoseconds since 1970;
    /// 0 if the time is unknown, or was so shortly before the file was read that a later change
    /// may have the same time.
    pub modified: i64,
    /// The file's length in bytes.
    pub bytes: u64,
    /// [`content_hash`](super::content_hash) of the content.
    pub hash: u64,
}

/// A document to store, without its chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDocument {
    /// Identifies the document in the store: a file's path, for JSONL files with the line.
    pub path: String,
    /// The title, for display.
    pub title: String,
    /// The state of the source when it was read.
    pub stamp: Stamp,
    /// Metadata that filters match; null if there is none.
    pub metadata: serde_json::Value,
}

/// A chunk to store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChunk {
    /// The text that was embedded.
    pub text: String,
    /// Number of tokens as embedded.
    pub tokens: u32,
    /// The chunk's embedding, `(dim)`.
    pub vector: Vec<f32>,
    /// Keys and values to generate from; None to store none.
    pub kv: Option<KvSnapshot>,
}

/// A stored document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// As given in [`NewDocument`].
    pub path: String,
    /// As given in [`NewDocument`].
    pub title: String,
    /// As given in [`NewDocument`].
    pub stamp: Stamp,
    /// As given in [`NewDocument`].
    pub metadata: serde_json::Value,
    /// Ids of the document's chunks, in order.
    pub chunks: Vec<u64>,
}

/// A stored chunk, without its vector and its keys and values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chunk {
    /// The chunk's id, never reused in this store.
    pub id: u64,
    /// The path of its document.
    pub document: String,
    /// The title of its document.
    pub title: String,
    /// Index of the chunk in its document, from 0.
    pub index: u32,
    /// The text that was embedded.
    pub text: String,
    /// Number of tokens as embedded.
    pub tokens: u32,
    /// The metadata of its document.
    pub metadata: serde_json::Value,
    /// Whether keys and values are stored and not evicted, so that
    /// [`Reader::kv`](super::Reader::kv) returns them.
    pub has_kv: bool,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Number of documents.
    pub documents: u64,
    /// Number of chunks, each with a vector.
    pub chunks: u64,
    /// Number of chunks with keys and values.
    pub cached: u64,
    /// Bytes of the database with its write-ahead log.
    pub database_bytes: u64,
    /// Bytes of the vectors' file.
    pub vector_bytes: u64,
    /// Those of them that hold replaced or removed vectors;
    /// [`Writer::compact`](super::Writer::compact) frees them.
    pub dead_vector_bytes: u64,
    /// Bytes of the segments' files.
    pub segment_bytes: u64,
    /// Those of them that hold live keys and values: what the budget limits.
    pub kv_bytes: u64,
    /// The limit of `kv_bytes`; None for no limit.
    pub kv_budget: Option<u64>,
    /// How often keys and values were read, over all readers.
    pub hits: u64,
    /// How often keys and values were requested but not stored, over all readers.
    pub misses: u64,
    /// Chunks whose keys and values were evicted to stay within the budget.
    pub evicted: u64,
    /// The number of chunks above which search is approximate; None for always exact search.
    pub approximate_above: Option<u64>,
    /// Chunks in the graph for approximate search; all others are searched exactly.
    pub graph_chunks: u64,
    /// Bytes of the graph's file.
    pub graph_bytes: u64,
}

/// The result of [`Writer::compact`](super::Writer::compact).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Bytes of all files before.
    pub before: u64,
    /// Bytes of all files after.
    pub after: u64,
}

/// Damage found in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name in the store's folder.
    pub file: String,
    /// The document that the damaged data belongs to, if known: removing it and indexing it again
    /// repairs the store.
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

/// The result of [`verify`](super::verify).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Documents checked.
    pub documents: u64,
    /// Chunks checked, with text and vector.
    pub chunks: u64,
    /// Records of keys and values checked.
    pub cached: u64,
    /// Bytes read.
    pub bytes: u64,
    /// All problems found; empty for a sound store.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Returns whether there are no problems.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}
