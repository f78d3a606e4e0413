//! The store: documents and their chunks, with vectors and, where wanted, keys and values.
//!
//! A store is a folder:
//!
//! | file | what it holds |
//! |---|---|
//! | `store.sqlite` | documents, texts, metadata, and where everything else is; the view `passages` is for people |
//! | `vectors-G.bin` | rows of the store's vector format, one a slot, nothing else; compaction makes the next `G` |
//! | `kv-N.seg` | records of keys and values, one after the other: a header of 64 bytes, then the numbers |
//! | `graph-G.usearch` | in a store that is searched approximately: the graph over its vectors, as usearch writes it; each one anew |
//! | `lock` | what the one [`Writer`] holds |
//! | `head` | the number of the last commit |
//!
//! A commit in SQLite is the only truth: vectors, records and graphs are written and synced first. So a
//! process killed at any moment loses the documents of its last call at most. Every row, text,
//! vector and record has a checksum (xxh3, 64 bits) that is compared whenever it is read; what does
//! not fit is an error that names file and document, never an answer. [`verify`] reads everything.
//!
//! Numbers are little-endian.

#[cfg(target_endian = "big")]
compile_error!("the store's files are little-endian, and nothing converts them yet");

mod disk;
mod draft;
mod graph;
mod head;
#[cfg_attr(not(feature = "usearch"), path = "no_hnsw.rs")]
mod hnsw;
mod identity;
mod layout;
mod limits;
mod map;
mod notes;
mod reader;
mod segment;
mod spill;
mod tables;
mod types;
mod vectors;
mod verify;
mod writer;

pub(crate) use hnsw::Graph;
pub use identity::{CacheKind, Identity, KvFormat, VectorFormat};
pub use reader::Reader;
pub(crate) use spill::Spill;
pub use types::{
    Chunk, Compacted, Document, NewChunk, NewDocument, Problem, Report, Stamp, Status,
};
pub use vectors::Vectors;
pub use verify::verify;
pub use writer::Writer;

use crate::{Error, Result};
use std::path::Path;

/// The hash for [`Stamp`], and of everything in a store: xxh3, 64 bits.
pub fn content_hash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Bytes of the files in a folder.
fn folder_bytes(folder: &Path) -> Result<u64> {
    folder_bytes_of(folder, |_| true)
}

/// Bytes of the files in a folder whose names fit.
fn folder_bytes_of(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if fits(&entry.file_name().to_string_lossy()) {
            // Gone since it was listed: it takes no place.
            bytes += entry.metadata().map_or(0, |m| m.len());
        }
    }
    Ok(bytes)
}
