//! A commit being prepared: rows in an open transaction, and bytes appended beyond the recorded
//! ends.

use super::content_hash;
use super::database::sql;
use super::disk::{self, write_at};
use super::identity::{CacheKind, Identity};
use super::rows::{ChunkRow, DocumentRow, Place, SegmentRow, UseRow};
use super::segment::{HEADER, Record};
use super::tables::{Index, STATE, State, put_meta};
use super::types::{NewChunk, NewDocument, Stamp};
use super::vectors;
use crate::{Error, Result};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// The largest size of a segment's file, unless a single record is larger.
const SEGMENT: u64 = 1 << 30;
/// The smallest segment size with a budget. Segments are then an eighth of the budget, so that
/// cleaning one moves little.
const SMALL_SEGMENT: u64 = 1 << 20;

/// The changes of one commit; see [`super::writer::Writer`].
pub(super) struct Draft<'a> {
    pub(super) db: &'a Connection,
    folder: &'a Path,
    identity: &'a Identity,
    pub(super) state: State,
    /// Segments by id, as the commit changes them.
    pub(super) segments: BTreeMap<u64, SegmentRow>,
    before: BTreeMap<u64, SegmentRow>,
    /// Segments being cleaned, to which nothing is appended.
    closed: BTreeSet<u64>,
    /// Files written to but not yet synced, by name.
    files: BTreeMap<String, File>,
    new_names: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(db: &'a Connection, folder: &'a Path, index: &'a Index) -> Self {
        let segments: BTreeMap<_, _> = index.segments.iter().map(|s| (s.id, *s)).collect();
        Self {
            db,
            folder,
            identity: &index.identity,
            state: index.state.clone(),
            before: segments.clone(),
            segments,
            closed: BTreeSet::new(),
            files: BTreeMap::new(),
            new_names: false,
        }
    }

    fn sql<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(sql(self.folder))
    }

    fn add(&mut self, checksum: u64) {
        self.state.sum = self.state.sum.wrapping_add(checksum);
    }

    fn subtract(&mut self, checksum: u64) {
        self.state.sum = self.state.sum.wrapping_sub(checksum);
    }

    /// Writes `parts` to a file at `offset`; the file is synced before the commit.
    fn write(&mut self, name: String, parts: &[&[u8]], mut offset: u64) -> Result<()> {
        let path = self.folder.join(&name);
        let file = match self.files.entry(name) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                self.new_names |= !path.exists();
                new.insert(disk::open(&path)?)
            }
        };
        for part in parts {
            write_at(file, part, offset).map_err(Error::io(&path))?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Checks that the vectors and caches of chunks have the store's shape and are finite.
    pub(super) fn check(identity: &Identity, path: &str, chunks: &[NewChunk]) -> Result<()> {
        let wrong = |i: usize, problem: String| {
            Err(gritlm::Error::Input { what: format!("{path}, chunk {i}"), problem }.into())
        };
        for (i, chunk) in chunks.iter().enumerate() {
            let (dim, found) = (identity.dim, chunk.vector.len());
            if found != dim {
                return wrong(i, format!("expected a vector of {dim} numbers, found {found}"));
            }
            if !chunk.vector.iter().all(|v| v.is_finite()) {
                return Err(gritlm::Error::NotFinite { what: format!("{path}, chunk {i}") }.into());
            }
            let Some(kv) = &chunk.kv else { continue };
            if identity.cache == CacheKind::None {
                return wrong(i, "the store keeps no keys and values (`cache` none)".into());
            }
            let [layers, kv_heads, head_dim] = identity.kv_shape;
            let expected = [layers, 2, kv_heads, kv.tokens(), head_dim];
            if kv.shape() != expected {
                let found = kv.shape();
                return wrong(i, format!("expected a cache of {expected:?}, found {found:?}"));
            }
            if !kv.is_finite() {
                return Err(gritlm::Error::NotFinite {
                    what: format!("{path}, chunk {i}: its cache"),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Removes a document with everything that belongs to it; returns false if there is none.
    pub(super) fn remove(&mut self, path: &str) -> Result<bool> {
        let found = DocumentRow::select(self.db, self.folder, "WHERE path = ?1", [path])?;
        let Some(document) = found.first() else { return Ok(false) };
        let tail = "WHERE document = ?1 ORDER BY position";
        for chunk in ChunkRow::select(self.db, self.folder, tail, Some(document.id))? {
            self.subtract(chunk.checksum());
            self.state.chunks -= 1;
            if let Some(graph) = self.state.graph.as_mut().filter(|g| chunk.id <= g.through) {
                graph.dead = graph.dead.saturating_add(1);
            }
            if let Some(place) = chunk.kv {
                self.forget_kv(chunk.id, place)?;
            }
            self.delete("DELETE FROM texts WHERE chunk = ?1", chunk.id)?;
            self.delete("DELETE FROM chunks WHERE id = ?1", chunk.id)?;
        }
        self.delete("DELETE FROM documents WHERE id = ?1", document.id)?;
        self.subtract(document.checksum());
        self.state.documents -= 1;
        Ok(true)
    }

    /// Replaces a document's stamp, if there is such a document.
    pub(super) fn restamp(&mut self, path: &str, stamp: Stamp) -> Result<()> {
        let found = DocumentRow::select(self.db, self.folder, "WHERE path = ?1", [path])?;
        let Some(document) = found.into_iter().next() else { return Ok(()) };
        self.delete("DELETE FROM documents WHERE id = ?1", document.id)?;
        self.subtract(document.checksum());
        let document = DocumentRow { stamp, ..document };
        self.sql(document.write(self.db))?;
        self.add(document.checksum());
        Ok(())
    }

    fn delete(&self, statement: &str, id: u64) -> Result<()> {
        let delete = || self.db.prepare_cached(statement)?.execute([id.cast_signed()]);
        self.sql(delete()).map(drop)
    }

    /// Adds a document whose path is not in the store.
    pub(super) fn add_document(&mut self, new: &NewDocument, chunks: &[NewChunk]) -> Result<()> {
        let document = DocumentRow {
            id: self.state.next_document,
            path: new.path.clone(),
            title: new.title.clone(),
            stamp: new.stamp,
            metadata: new.metadata.to_string(),
        };
        self.state.next_document += 1;
        self.state.documents += 1;
        self.sql(document.write(self.db))?;
        self.add(document.checksum());

        let name = disk::vectors(self.state.generation);
        let slot = self.state.slots;
        let rows: Vec<u8> =
            chunks.iter().flat_map(|c| vectors::encode(self.identity, &c.vector)).collect();
        let width = self.identity.vector_bytes();
        self.write(name, &[&rows], slot * width as u64)?;
        self.state.slots += chunks.len() as u64;

        // If a document exceeds the whole budget, its first chunks keep their caches. Otherwise
        // each new cache would evict others only to be evicted next.
        let mut room = self.state.budget.unwrap_or(u64::MAX);
        for (i, (new, row)) in chunks.iter().zip(rows.chunks(width.max(1))).enumerate() {
            let id = self.state.next_chunk;
            self.state.next_chunk += 1;
            self.state.chunks += 1;
            let size =
                |tokens: usize| HEADER as u64 + tokens as u64 * self.identity.kv_bytes_per_token();
            let kv = match &new.kv {
                Some(kv) if size(kv.tokens()) <= room => {
                    room -= size(kv.tokens());
                    let Record { header, payload, checksum } = Record::of(self.identity, id, kv);
                    Some(self.append(id, &[&header, &payload], checksum)?)
                }
                Some(_) => {
                    room = 0;
                    self.state.evicted += 1;
                    None
                }
                None => None,
            };
            let chunk = ChunkRow {
                id,
                document: document.id,
                index: i as u32,
                tokens: new.tokens,
                slot: slot + i as u64,
                vector_checksum: content_hash(row),
                text_checksum: content_hash(new.text.as_bytes()),
                kv,
            };
            self.sql(chunk.write(self.db))?;
            self.add(chunk.checksum());
            let put = || {
                let mut put = self.db.prepare_cached("INSERT INTO texts VALUES (?1, ?2)")?;
                put.execute(rusqlite::params![id.cast_signed(), new.text])
            };
            self.sql(put())?;
            if kv.is_some() {
                let turn = self.sql(UseRow::next_turn(self.db))?;
                self.sql(UseRow { chunk: id, turn, hits: 0 }.write(self.db))?;
            }
        }
        Ok(())
    }

    /// Appends a chunk's record to the last segment, or to a new one if that is full.
    fn append(&mut self, chunk: u64, parts: &[&[u8]], checksum: u64) -> Result<Place> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let limit = self.state.budget.map_or(SEGMENT, |b| (b / 8).clamp(SMALL_SEGMENT, SEGMENT));
        let last = self.segments.last_key_value().map(|(_, segment)| *segment);
        let open = last.filter(|s| !self.closed.contains(&s.id) && s.bytes + bytes <= limit);
        let mut segment = open.unwrap_or_else(|| {
            self.state.next_segment += 1;
            SegmentRow { id: self.state.next_segment, bytes: 0, live: 0 }
        });
        debug_assert!(chunk < self.state.next_chunk);
        let offset = segment.bytes;
        self.write(disk::segment(segment.id), parts, offset)?;
        segment.bytes += bytes;
        segment.live += bytes;
        self.segments.insert(segment.id, segment);
        self.state.kv_bytes += bytes;
        self.state.cached += 1;
        Ok(Place { segment: segment.id, offset, bytes, checksum })
    }

    /// Accounts for the removal of a chunk's keys and values; the caller updates the chunk's row.
    fn forget_kv(&mut self, chunk: u64, place: Place) -> Result<()> {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live = segment.live.saturating_sub(place.bytes);
        }
        self.state.kv_bytes = self.state.kv_bytes.saturating_sub(place.bytes);
        self.state.cached = self.state.cached.saturating_sub(1);
        self.delete("DELETE FROM uses WHERE chunk = ?1", chunk)
    }

    /// Replaces a chunk's row and updates the sum of checksums.
    fn replace(&mut self, old: &ChunkRow, new: &ChunkRow) -> Result<()> {
        self.subtract(old.checksum());
        self.add(new.checksum());
        self.sql(new.write(self.db))
    }

    /// Evicts the least recently used keys and values until the budget holds.
    pub(super) fn evict(&mut self) -> Result<()> {
        let budget = self.state.budget.unwrap_or(u64::MAX);
        while self.state.kv_bytes > budget {
            let Some(id) = self.sql(UseRow::oldest(self.db))? else { break };
            let rows = ChunkRow::select(self.db, self.folder, "WHERE id = ?1", Some(id))?;
            match rows.first() {
                Some(row) if let Some(place) = row.kv => {
                    self.forget_kv(id, place)?;
                    self.replace(row, &ChunkRow { kv: None, ..*row })?;
                    self.state.evicted += 1;
                }
                _ => self.delete("DELETE FROM uses WHERE chunk = ?1", id)?,
            }
        }
        Ok(())
    }

    /// Moves the live records of the given segments to the end, so that the segments' files can
    /// be deleted.
    pub(super) fn clean(&mut self, segments: BTreeSet<u64>) -> Result<()> {
        let cached = "WHERE segment IS NOT NULL ORDER BY segment, kv_offset";
        let rows = ChunkRow::select(self.db, self.folder, cached, None)?;
        self.closed = segments;
        for row in rows {
            let Some(place) = row.kv.filter(|p| self.closed.contains(&p.segment)) else { continue };
            let path = self.folder.join(disk::segment(place.segment));
            // A damaged record is moved unchanged; its checksum still reveals the damage.
            let file = disk::open_read(&path).map_err(Error::io(&path))?;
            let found = file.metadata().map_err(Error::io(&path))?.len();
            if place.offset.saturating_add(place.bytes) > found {
                let problem = format!("the record of chunk {} ends behind the file", row.id);
                return Err(Error::Store { path, problem });
            }
            let mut record = vec![0; place.bytes as usize];
            disk::read_at(&file, &mut record, place.offset).map_err(Error::io(&path))?;
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.live = segment.live.saturating_sub(place.bytes);
            }
            self.state.kv_bytes = self.state.kv_bytes.saturating_sub(place.bytes);
            self.state.cached = self.state.cached.saturating_sub(1);
            let moved = self.append(row.id, &[&record], place.checksum)?;
            self.replace(&row, &ChunkRow { kv: Some(moved), ..row })?;
        }
        Ok(())
    }

    /// Writes the live vectors to the next generation's file.
    pub(super) fn rewrite_vectors(&mut self) -> Result<()> {
        let rows = ChunkRow::select(self.db, self.folder, "ORDER BY id", None)?;
        let path = self.folder.join(disk::vectors(self.state.generation));
        let old = disk::open_read(&path).map_err(Error::io(&path))?;
        self.state.generation += 1;
        let name = disk::vectors(self.state.generation);
        let width = self.identity.vector_bytes();
        // Copies about 4 MiB at a time.
        let block = (1 << 22) / width.max(1) + 1;
        for (b, rows) in rows.chunks(block).enumerate() {
            let mut bytes = vec![0; rows.len() * width];
            for (row, place) in rows.iter().zip(bytes.chunks_mut(width.max(1))) {
                let read = disk::read_at(&old, place, row.slot * width as u64);
                read.map_err(Error::io(&path))?;
            }
            let first = (b * block) as u64;
            self.write(name.clone(), &[&bytes], first * width as u64)?;
            for (row, slot) in rows.iter().zip(first..) {
                self.replace(row, &ChunkRow { slot, ..*row })?;
            }
        }
        self.state.slots = rows.len() as u64;
        Ok(())
    }

    /// Syncs what was appended and writes the rows that record it. After that the transaction may
    /// commit.
    pub(super) fn finish(&mut self) -> Result<()> {
        for (name, file) in &self.files {
            file.sync_data().map_err(Error::io(self.folder.join(name)))?;
        }
        if self.new_names {
            disk::sync_folder(self.folder)?;
        }
        self.segments.retain(|_, segment| segment.live > 0);
        let before = std::mem::take(&mut self.before);
        for (id, old) in &before {
            if self.segments.get(id) != Some(old) {
                self.subtract(old.checksum());
                self.delete("DELETE FROM segments WHERE id = ?1", *id)?;
            }
        }
        let changed = self.segments.values().filter(|s| before.get(&s.id) != Some(s));
        let changed: Vec<SegmentRow> = changed.copied().collect();
        for segment in changed {
            self.add(segment.checksum());
            self.sql(segment.write(self.db))?;
        }
        self.state.commit += 1;
        self.sql(put_meta(self.db, STATE, &self.state))
    }
}
