//! Retrieval-augmented generation with the caches of the GRIT paper: documents are embedded once,
//! at indexing time, and an answer reuses their keys and values instead of reading them again.

mod ask;
mod chunk;
mod error;
mod index;
mod join;
mod mode;
mod passes;
mod read;
mod search;
pub mod store;
pub mod text;
mod usage;

pub use ask::{Answer, Ask, Asked, Passage, Prepared, Stored, ask};
pub use chunk::{Chunking, Cut, MIN_CHUNK};
pub use error::{Error, Result};
pub use index::{Event, Indexed, Indexer, Plan};
pub use join::{Part, Positions, join};
pub use mode::{Mode, Order};
pub use passes::{Passes, Scheduled};
#[cfg(unix)]
pub use read::serve_parser;
pub use read::{MAX_NAME, ParseLimits, Parser, Source, read};
pub use search::{Filter, Find, Hit, Searcher, Snapshot};
pub use store::{
    CacheKind, Chunk, Compacted, Document, Identity, KvFormat, NewChunk, NewDocument, Problem,
    Reader, Report, Stamp, Status, VectorFormat, Vectors, Writer, content_hash, verify,
};
pub use usage::{Times, Usage};
