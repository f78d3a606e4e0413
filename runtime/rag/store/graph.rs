//! The file of the graph for approximate search, and when it is rewritten.
//!
//! The writer writes the file once, syncs it, and then records it with a commit. The graph covers
//! the chunks that existed then: later chunks are searched exactly, and removed ones are skipped.
//! The file may therefore be out of date, and is rewritten only after enough changes.

use super::{content_hash, disk, layout};
use serde::{Deserialize, Serialize};
use std::fs::File;

/// What the store records about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GraphFile {
    /// The number in the file's name, different for each file.
    pub(super) generation: u64,
    pub(super) bytes: u64,
    pub(super) checksum: u64,
    /// Vectors in the graph: those of all chunks with ids up to `through` when it was written.
    pub(super) vectors: u64,
    /// Those of them whose chunks were removed since.
    pub(super) dead: u64,
    pub(super) through: u64,
}

impl GraphFile {
    /// Returns the highest chunk id that the graph can contain.
    pub(crate) fn through(&self) -> u64 {
        self.through
    }

    /// Returns the number of chunks in the graph that still exist.
    pub(crate) fn live(&self) -> u64 {
        self.vectors.saturating_sub(self.dead)
    }

    /// Returns whether more than a quarter of the graph is dead, so that it should be built from
    /// scratch.
    pub(super) fn is_worn(&self) -> bool {
        self.dead > self.vectors / 4
    }

    /// Returns whether the chunks missing from the graph are more than a sixteenth of its live
    /// ones, so that they should be added.
    pub(super) fn is_behind(&self, chunks: u64) -> bool {
        chunks.saturating_sub(self.live()) > self.live() / 16
    }

    /// Reads a graph over vectors of `dim` numbers into memory, compares it with the checksum and
    /// validates its layout. usearch trusts what it loads, so it gets this private copy, which
    /// nobody can change after the checks. A checksum alone is not enough: anyone who can write
    /// the file can write a matching checksum.
    pub(super) fn read(&self, file: Option<&File>, dim: usize) -> Result<Vec<u8>, String> {
        let file = file.ok_or(disk::MISSING)?;
        let found = file.metadata().map_err(|e| e.to_string())?.len();
        if found != self.bytes {
            return Err(format!("expected {} bytes, found {found}", self.bytes));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes as usize).map_err(|e| e.to_string())?;
        bytes.resize(self.bytes as usize, 0);
        disk::read_at(file, &mut bytes, 0).map_err(|e| e.to_string())?;
        let found = content_hash(&bytes);
        if found != self.checksum {
            return Err(format!("expected checksum {:016x}, found {found:016x}", self.checksum));
        }
        layout::check(&bytes, dim, self)?;
        Ok(bytes)
    }
}
