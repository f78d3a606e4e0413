//! Notes which keys and values readers have used. Each reader collects uses in memory and writes
//! them in batches to the database, for the LRU eviction.
//!
//! A note is a hint: it may be lost with its reader, be delayed while a writer commits, or fail
//! in a read-only folder. None of this is reported as an error.

use super::database::{connect, sql};
use super::rows::UseRow;
use super::tables::{READS, Reads, get_meta, put_meta};
use crate::Result;
use rusqlite::{Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Number of uses that are written together.
const TOGETHER: usize = 64;
/// The most uses that are kept if they cannot be written.
const MOST: usize = 4096;
/// How long writing notes waits for a writer's commit.
const PATIENCE: Duration = Duration::from_millis(20);

/// The uses of one reader that are not written yet.
pub(super) struct Notes {
    folder: PathBuf,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    /// Ids of the used chunks, oldest use first.
    used: Vec<u64>,
    misses: u64,
}

impl Notes {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), pending: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a chunk's keys and values were requested, and whether they were found.
    pub(super) fn add(&self, chunk: u64, found: bool) {
        let mut pending = self.lock();
        if !found {
            pending.misses += 1;
            return;
        }
        pending.used.push(chunk);
        if pending.used.len().is_multiple_of(TOGETHER) {
            self.write(&mut pending);
        }
    }

    /// Returns the hits and misses that are not written yet.
    pub(super) fn pending(&self) -> (u64, u64) {
        let pending = self.lock();
        (pending.used.len() as u64, pending.misses)
    }

    /// Tries to write all notes now.
    pub(super) fn flush(&self) {
        self.write(&mut self.lock());
    }

    fn write(&self, pending: &mut Pending) {
        if pending.used.is_empty() && pending.misses == 0 {
            return;
        }
        if self.attempt(pending).is_ok() {
            *pending = Pending::default();
        } else if pending.used.len() > MOST {
            let old = pending.used.len() - MOST;
            pending.used.drain(..old);
        }
    }

    fn attempt(&self, pending: &Pending) -> Result<()> {
        let db = connect(&self.folder, false)?;
        let begin = || -> rusqlite::Result<Transaction<'_>> {
            db.busy_timeout(PATIENCE)?;
            // A note need not survive a power failure. The log stays valid, and the writer
            // checkpoints it.
            db.pragma_update(None, "synchronous", "normal")?;
            db.pragma_update(None, "wal_autocheckpoint", 0)?;
            Transaction::new_unchecked(&db, TransactionBehavior::Immediate)
        };
        let open = begin().map_err(sql(&self.folder))?;
        let reads: Reads = get_meta(&open, &self.folder, READS)?.unwrap_or_default();
        let write = || -> rusqlite::Result<()> {
            let reads = Reads {
                hits: reads.hits.saturating_add(pending.used.len() as u64),
                misses: reads.misses.saturating_add(pending.misses),
            };
            put_meta(&open, READS, &reads)?;
            for &chunk in &pending.used {
                // Without a row the chunk was evicted or removed since.
                if let Some((row, _)) = UseRow::of(&open, chunk)? {
                    let turn = UseRow::next_turn(&open)?;
                    UseRow { turn, hits: row.hits.saturating_add(1), ..row }.write(&open)?;
                }
            }
            Ok(())
        };
        write().map_err(sql(&self.folder))?;
        open.commit().map_err(sql(&self.folder))
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        self.flush();
    }
}
