//! The file of the graph for approximate search, and when it is made anew.
//!
//! It is written once and whole, synced, and then recorded by a commit. It covers the chunks that
//! there were; what came later is searched exactly, and what has gone since is skipped. So the file
//! may be behind, and is rewritten only where enough has changed.

use super::{content_hash, disk, layout};
use serde::{Deserialize, Serialize};
use std::fs::File;

/// What the store records of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GraphFile {
    /// In its name; another for each file.
    pub(super) generation: u64,
    pub(super) bytes: u64,
    pub(super) checksum: u64,
    /// Vectors in it: those of all chunks that there were with ids up to `through`.
    pub(super) vectors: u64,
    /// Those of them whose chunks have gone since.
    pub(super) dead: u64,
    pub(super) through: u64,
}

impl GraphFile {
    /// The highest id of a chunk that can be in it.
    pub(crate) fn through(&self) -> u64 {
        self.through
    }

    /// Chunks in it that there still are.
    pub(crate) fn live(&self) -> u64 {
        self.vectors.saturating_sub(self.dead)
    }

    /// Whether so much of it is dead that it is better made from nothing.
    pub(super) fn is_worn(&self) -> bool {
        self.dead > self.vectors / 4
    }

    /// Whether so many of a store's chunks are not in it that they are better added.
    pub(super) fn is_behind(&self, chunks: u64) -> bool {
        chunks.saturating_sub(self.live()) > self.live() / 16
    }

    /// The bytes of a graph over vectors of `dim` numbers, compared with the checksum and looked
    /// through; in memory, where nobody changes them before usearch, which trusts what it loads.
    /// Whoever writes a file can write its checksum, too.
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
