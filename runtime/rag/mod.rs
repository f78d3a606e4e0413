//! Retrieval-augmented generation with the caches of the GRIT paper: documents are embedded once,
//! at indexing time, and an answer reuses their keys and values instead of reading them again.

mod ask;
mod chunk;
mod index;
mod join;
mod mode;
mod read;
mod search;
pub mod store;
mod usage;

pub use ask::{Answer, Ask, Asked, Passage, Stored};
pub use chunk::{Chunking, Cut, MIN_CHUNK};
pub use index::{Event, Indexed, Indexer, Plan};
pub use join::{Part, Positions, join};
pub use mode::{Mode, Order};
pub(crate) use read::MAX_NAME;
#[cfg(unix)]
pub use read::serve_parser;
pub use read::{ParseLimits, Parser, Source, read};
pub(crate) use search::Shelf;
pub use search::{Filter, Find, Hit, Searcher};
pub use store::{
    CacheKind, Chunk, Compacted, Document, Identity, KvFormat, NewChunk, NewDocument, Problem,
    Reader, Report, Stamp, Status, VectorFormat, Vectors, Writer, content_hash, verify,
};
pub use usage::{Times, Usage};
