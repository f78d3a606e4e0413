//! The rows of the tables, each with a checksum of its content that is compared when it is read.

use super::content_hash;
use super::database::{damaged, sql};
use super::types::Stamp;
use crate::Result;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::path::Path;

/// The canonical form of a row's content, of which the checksum is taken.
pub(super) struct Content(Vec<u8>);

impl Content {
    pub(super) fn of(table: &str) -> Self {
        Self(Vec::with_capacity(128)).text(table)
    }

    pub(super) fn number(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    pub(super) fn checksum(&self) -> u64 {
        content_hash(&self.0)
    }
}

/// Reads an unsigned column: SQLite's integers are signed, and checksums, ids and sizes keep
/// their bits.
pub(super) fn get(row: &Row<'_>, name: &str) -> rusqlite::Result<u64> {
    row.get::<_, i64>(name).map(i64::cast_unsigned)
}

/// The place of a chunk's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// Bytes of the record, including its header.
    pub(super) bytes: u64,
    pub(super) checksum: u64,
}

/// A row of `chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRow {
    pub(super) id: u64,
    pub(super) document: u64,
    pub(super) index: u32,
    pub(super) tokens: u32,
    pub(super) slot: u64,
    pub(super) vector_checksum: u64,
    pub(super) text_checksum: u64,
    pub(super) kv: Option<Place>,
}

impl ChunkRow {
    pub(super) fn checksum(&self) -> u64 {
        let c = Content::of("chunks").number(self.id).number(self.document);
        let c = c.number(self.index.into()).number(self.tokens.into()).number(self.slot);
        let c = c.number(self.vector_checksum).number(self.text_checksum);
        match self.kv {
            None => c.checksum(),
            Some(p) => {
                c.number(p.segment).number(p.offset).number(p.bytes).number(p.checksum).checksum()
            }
        }
    }

    /// Reads the row and the checksum stored with it.
    fn read(row: &Row<'_>) -> rusqlite::Result<(Self, u64)> {
        let kv = |name: &str| row.get::<_, Option<i64>>(name).map(|n| n.map(i64::cast_unsigned));
        let parts = (kv("segment")?, kv("kv_offset")?, kv("kv_bytes")?, kv("kv_checksum")?);
        let kv = if let (Some(segment), Some(offset), Some(bytes), Some(checksum)) = parts {
            Some(Place { segment, offset, bytes, checksum })
        } else {
            None
        };
        let read = Self {
            id: get(row, "id")?,
            document: get(row, "document")?,
            index: row.get("position")?,
            tokens: row.get("tokens")?,
            slot: get(row, "slot")?,
            vector_checksum: get(row, "vector_checksum")?,
            text_checksum: get(row, "text_checksum")?,
            kv,
        };
        Ok((read, get(row, "checksum")?))
    }

    /// Returns the rows that `tail`, a WHERE or ORDER BY clause, selects, after checking each.
    pub(super) fn select(
        db: &Connection,
        folder: &Path,
        tail: &str,
        value: Option<u64>,
    ) -> Result<Vec<Self>> {
        let read = || -> rusqlite::Result<Vec<(Self, u64)>> {
            let mut found = db.prepare_cached(&format!("SELECT * FROM chunks {tail}"))?;
            let values = rusqlite::params_from_iter(value.map(u64::cast_signed));
            found.query_map(values, Self::read)?.collect()
        };
        let rows = read().map_err(sql(folder))?;
        let checked = rows.into_iter().map(|(row, checksum)| {
            if row.checksum() == checksum {
                Ok(row)
            } else {
                Err(damaged(folder, format!("the row of chunk {}", row.id)))
            }
        });
        checked.collect()
    }

    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let n = u64::cast_signed;
        let mut put = db.prepare_cached(
            "INSERT OR REPLACE INTO chunks VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
        )?;
        put.execute(params![
            n(self.id),
            n(self.document),
            self.index,
            self.tokens,
            n(self.slot),
            n(self.vector_checksum),
            n(self.text_checksum),
            self.kv.map(|p| n(p.segment)),
            self.kv.map(|p| n(p.offset)),
            self.kv.map(|p| n(p.bytes)),
            self.kv.map(|p| n(p.checksum)),
            n(self.checksum()),
        ])?;
        Ok(())
    }
}

/// A row of `documents`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DocumentRow {
    pub(super) id: u64,
    pub(super) path: String,
    pub(super) title: String,
    pub(super) stamp: Stamp,
    /// Metadata as JSON.
    pub(super) metadata: String,
}

impl DocumentRow {
    pub(super) fn checksum(&self) -> u64 {
        let c = Content::of("documents").number(self.id).text(&self.path).text(&self.title);
        let c = c.number(self.stamp.modified.cast_unsigned()).number(self.stamp.bytes);
        c.number(self.stamp.hash).text(&self.metadata).checksum()
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<(Self, u64)> {
        let stamp = Stamp {
            modified: row.get("modified")?,
            bytes: get(row, "bytes")?,
            hash: get(row, "hash")?,
        };
        let read = Self {
            id: get(row, "id")?,
            path: row.get("path")?,
            title: row.get("title")?,
            stamp,
            metadata: row.get("metadata")?,
        };
        Ok((read, get(row, "checksum")?))
    }

    /// Returns the rows that `tail` selects, after checking each.
    pub(super) fn select(
        db: &Connection,
        folder: &Path,
        tail: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<Self>> {
        let read = || -> rusqlite::Result<Vec<(Self, u64)>> {
            let mut found = db.prepare_cached(&format!("SELECT * FROM documents {tail}"))?;
            found.query_map(values, Self::read)?.collect()
        };
        let rows = read().map_err(sql(folder))?;
        let checked = rows.into_iter().map(|(row, checksum)| {
            if row.checksum() == checksum {
                Ok(row)
            } else {
                Err(damaged(folder, format!("the row of document {} ({})", row.id, row.path)))
            }
        });
        checked.collect()
    }

    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut put =
            db.prepare_cached("INSERT INTO documents VALUES (?1,?2,?3,?4,?5,?6,?7,?8)")?;
        put.execute(params![
            self.id.cast_signed(),
            self.path,
            self.title,
            self.stamp.modified,
            self.stamp.bytes.cast_signed(),
            self.stamp.hash.cast_signed(),
            self.metadata,
            self.checksum().cast_signed(),
        ])?;
        Ok(())
    }
}

/// A row of `segments`: how many bytes of the file are written, and how many of them are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentRow {
    pub(super) id: u64,
    pub(super) bytes: u64,
    pub(super) live: u64,
}

impl SegmentRow {
    pub(super) fn checksum(&self) -> u64 {
        Content::of("segments").number(self.id).number(self.bytes).number(self.live).checksum()
    }

    /// Returns all rows, after checking each.
    pub(super) fn all(db: &Connection, folder: &Path) -> Result<Vec<Self>> {
        let read = || -> rusqlite::Result<Vec<(Self, u64)>> {
            let mut found = db.prepare_cached("SELECT * FROM segments ORDER BY id")?;
            let rows = found.query_map([], |row| {
                let (id, bytes, live) = (get(row, "id")?, get(row, "bytes")?, get(row, "live")?);
                Ok((Self { id, bytes, live }, get(row, "checksum")?))
            })?;
            rows.collect()
        };
        let rows = read().map_err(sql(folder))?;
        if let Some((row, _)) = rows.iter().find(|(row, checksum)| row.checksum() != *checksum) {
            return Err(damaged(folder, format!("the row of segment {}", row.id)));
        }
        Ok(rows.into_iter().map(|(row, _)| row).collect())
    }

    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut put =
            db.prepare_cached("INSERT OR REPLACE INTO segments VALUES (?1, ?2, ?3, ?4)")?;
        let n = u64::cast_signed;
        put.execute([n(self.id), n(self.bytes), n(self.live), n(self.checksum())])?;
        Ok(())
    }
}

/// When a chunk's keys and values were last used, on a clock that counts uses, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct UseRow {
    pub(super) chunk: u64,
    pub(super) turn: u64,
    pub(super) hits: u64,
}

impl UseRow {
    fn checksum(&self) -> u64 {
        Content::of("uses").number(self.chunk).number(self.turn).number(self.hits).checksum()
    }

    /// Reads a chunk's row and returns it with whether its checksum matches; None if there is no
    /// row.
    pub(super) fn of(db: &Connection, chunk: u64) -> rusqlite::Result<Option<(Self, bool)>> {
        let mut found = db.prepare_cached("SELECT * FROM uses WHERE chunk = ?1")?;
        let read = found.query_row([chunk.cast_signed()], |row| {
            let (chunk, turn, hits) = (get(row, "chunk")?, get(row, "turn")?, get(row, "hits")?);
            let read = Self { chunk, turn, hits };
            Ok((read, get(row, "checksum")? == read.checksum()))
        });
        read.optional()
    }

    /// Returns the next value of the clock, after all recorded uses.
    pub(super) fn next_turn(db: &Connection) -> rusqlite::Result<u64> {
        let mut last = db.prepare_cached("SELECT coalesce(max(turn), 0) + 1 FROM uses")?;
        last.query_row([], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    }

    /// Returns the least recently used chunk.
    pub(super) fn oldest(db: &Connection) -> rusqlite::Result<Option<u64>> {
        let mut first = db.prepare_cached("SELECT chunk FROM uses ORDER BY turn, chunk LIMIT 1")?;
        first.query_row([], |row| get(row, "chunk")).optional()
    }

    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut put = db.prepare_cached("INSERT OR REPLACE INTO uses VALUES (?1, ?2, ?3, ?4)")?;
        let n = u64::cast_signed;
        put.execute([n(self.chunk), n(self.turn), n(self.hits), n(self.checksum())])?;
        Ok(())
    }
}
