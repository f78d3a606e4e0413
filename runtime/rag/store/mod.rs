//! The store: documents and their chunks, with vectors and, optionally, keys and values.
//!
//! A store is a folder:
//!
//! | file | content |
//! |---|---|
//! | `store.sqlite` | documents, texts, metadata, place of all else; view `passages` for people |
//! | `vectors-G.bin` | rows in the store's vector format, one per slot; compaction writes `G + 1` |
//! | `kv-N.seg` | records of keys and values: a header of 64 bytes, then the numbers |
//! | `graph-G.usearch` | graph for approximate search, if any, in usearch's format; `G` counts up |
//! | `lock` | the file that the [`Writer`] locks |
//! | `head` | number of the last commit |
//!
//! The committed rows in SQLite alone define the store's content: vectors, records and graphs are
//! written and synced before the commit. A process killed at any moment therefore loses at most
//! the documents of its last call. Every row, text, vector and record has a checksum (xxh3, 64
//! bits) that is compared on every read. A mismatch is an error that names file and document;
//! damaged data is never returned. [`verify`] reads everything.
//!
//! All numbers are little-endian.

#[cfg(target_endian = "big")]
compile_error!("the store's files are little-endian, and nothing converts them yet");

mod database;
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
mod rows;
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

/// Returns the hash used for [`Stamp`] and for everything in a store: xxh3, 64 bits.
pub fn content_hash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Returns the bytes of all files in a folder.
fn folder_bytes(folder: &Path) -> Result<u64> {
    folder_bytes_of(folder, |_| true)
}

/// Returns the bytes of those files in a folder whose names `fits` accepts.
fn folder_bytes_of(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if fits(&entry.file_name().to_string_lossy()) {
            // A file deleted since it was listed takes no space.
            bytes += entry.metadata().map_or(0, |m| m.len());
        }
    }
    Ok(bytes)
}
