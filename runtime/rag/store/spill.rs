//! A temporary file for caches that wait until their document is complete. They do not fit in
//! memory: the caches of GritLM-7B take 128 KiB per token, and a book has half a million tokens.

use super::disk;
use super::map::map;
use crate::{Error, Result};
use gritlm::cache::KvSnapshot;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// An unnamed file in the store's folder, which disappears with its content when it is closed.
pub(crate) struct Spill {
    file: File,
    bytes: u64,
}

impl Spill {
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn new(store: &Path) -> Result<Self> {
        let path = store.join(disk::SPILL);
        let file = disk::create(&path).map_err(Error::io(&path))?;
        // On other systems than Unix the name stays until the next writer cleans up.
        if cfg!(unix) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        Ok(Self { file, bytes: 0 })
    }

    /// Writes keys and values to the file and returns them as a mapped cache.
    ///
    /// # Errors
    /// When the disk is full.
    pub(crate) fn keep(&mut self, kv: &KvSnapshot) -> Result<KvSnapshot> {
        let numbers: &[u8] = match (kv.as_bf16(), kv.as_f32()) {
            (Some(numbers), _) => bytemuck::cast_slice(numbers),
            (None, numbers) => bytemuck::cast_slice(numbers.unwrap_or_default()),
        };
        let io = |source| {
            Error::from(gritlm::Error::Io { path: "keys and values that wait".into(), source })
        };
        let start = self.bytes as usize;
        disk::write_at(&self.file, numbers, self.bytes).map_err(io)?;
        self.bytes += numbers.len() as u64;
        let map = Arc::new(map(&self.file, self.bytes as usize).map_err(io)?);
        let bytes = start..self.bytes as usize;
        Ok(KvSnapshot::from_map(kv.shape(), kv.as_bf16().is_some(), &map, bytes)?)
    }
}
