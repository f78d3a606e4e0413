//! The tables of `store.sqlite`, whose committed rows alone define a store's content.
//!
//! Every row has a checksum of its content, and `meta` keeps the number of rows and the sum of
//! their checksums, so that both changed and lost rows are detected. SQLite does not detect them
//! by itself: its pages have no checksums.

use super::content_hash;
use super::database::{damaged, sql};
use super::graph::GraphFile;
use super::identity::Identity;
use super::rows::{ChunkRow, Content, SegmentRow, get};
use crate::Result;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// The schema. The view `passages` is for users with a SQLite client.
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, title TEXT NOT NULL,
    modified INTEGER NOT NULL, bytes INTEGER NOT NULL, hash INTEGER NOT NULL,
    metadata TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL, position INTEGER NOT NULL,
    tokens INTEGER NOT NULL, slot INTEGER NOT NULL, vector_checksum INTEGER NOT NULL,
    text_checksum INTEGER NOT NULL, segment INTEGER, kv_offset INTEGER, kv_bytes INTEGER,
    kv_checksum INTEGER, checksum INTEGER NOT NULL) STRICT;
CREATE INDEX chunks_of_document ON chunks (document, position);
CREATE TABLE texts (chunk INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, live INTEGER NOT NULL,
    checksum INTEGER NOT NULL) STRICT;
CREATE TABLE uses (
    chunk INTEGER PRIMARY KEY, turn INTEGER NOT NULL, hits INTEGER NOT NULL,
    checksum INTEGER NOT NULL) STRICT;
CREATE INDEX uses_by_turn ON uses (turn, chunk);
CREATE VIEW passages AS
    SELECT chunks.id, path, title, position, tokens, text, metadata
    FROM chunks JOIN documents ON documents.id = document JOIN texts ON texts.chunk = chunks.id;
";

/// Creates the tables.
pub(super) fn make(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(SCHEMA)
}

/// Compares the definitions of the tables with the schema.
pub(super) fn check_schema(db: &Connection, folder: &Path) -> Result<()> {
    let read = |db: &Connection| -> rusqlite::Result<Vec<Option<String>>> {
        let mut all = db.prepare("SELECT sql FROM sqlite_schema ORDER BY name")?;
        all.query_map([], |row| row.get(0))?.collect()
    };
    let expected = || {
        let fresh = Connection::open_in_memory()?;
        make(&fresh)?;
        read(&fresh)
    };
    if read(db).map_err(sql(folder))? != expected().map_err(sql(folder))? {
        return Err(damaged(folder, "its tables are not those of a store of this version"));
    }
    Ok(())
}

/// The state that changes with every commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Number of commits so far.
    pub(super) commit: u64,
    /// Generation of the vectors' file.
    pub(super) generation: u64,
    /// Rows of the vectors' file, including dead ones.
    pub(super) slots: u64,
    pub(super) next_document: u64,
    pub(super) next_chunk: u64,
    pub(super) next_segment: u64,
    pub(super) documents: u64,
    pub(super) chunks: u64,
    /// Number of chunks with keys and values; `kv_bytes` is the size of their records.
    pub(super) cached: u64,
    pub(super) kv_bytes: u64,
    pub(super) budget: Option<u64>,
    pub(super) evicted: u64,
    /// The number of chunks above which the store has a graph; None for never. This and the next
    /// two fields are missing in stores made before graphs existed.
    #[serde(default)]
    pub(super) approximate_above: Option<u64>,
    #[serde(default)]
    pub(super) graph: Option<GraphFile>,
    /// Generation of the last graph's file.
    #[serde(default)]
    pub(super) graph_generation: u64,
    /// Wrapping sum of the checksums of all rows of `documents`, `chunks` and `segments`.
    pub(super) sum: u64,
}

/// How often keys and values were found and not found, as noted by readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reads {
    pub(super) hits: u64,
    pub(super) misses: u64,
}

/// The keys of `meta`.
pub(super) const IDENTITY: &str = "identity";

pub(super) const STATE: &str = "state";

pub(super) const READS: &str = "reads";

/// Reads a value of `meta`; returns None if there is none.
pub(super) fn get_meta<T: DeserializeOwned>(
    db: &Connection,
    folder: &Path,
    key: &str,
) -> Result<Option<T>> {
    let wrong = || damaged(folder, format!("the row of meta {key}"));
    let read = || -> rusqlite::Result<Option<(String, u64)>> {
        let mut found = db.prepare_cached("SELECT value, checksum FROM meta WHERE key = ?1")?;
        found.query_row([key], |row| Ok((row.get("value")?, get(row, "checksum")?))).optional()
    };
    let Some((value, checksum)) = read().map_err(sql(folder))? else { return Ok(None) };
    if Content::of("meta").text(key).text(&value).checksum() != checksum {
        return Err(wrong());
    }
    serde_json::from_str(&value).map(Some).map_err(|_| wrong())
}

/// Writes a value of `meta`.
pub(super) fn put_meta<T: Serialize>(
    db: &Connection,
    key: &str,
    value: &T,
) -> rusqlite::Result<()> {
    let value = serde_json::to_string(value)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    let checksum = Content::of("meta").text(key).text(&value).checksum();
    let mut put = db.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2, ?3)")?;
    put.execute(params![key, value, checksum.cast_signed()])?;
    Ok(())
}

/// Reads a chunk's text and compares it with its checksum.
pub(super) fn text(db: &Connection, folder: &Path, row: &ChunkRow) -> Result<String> {
    let read = || -> rusqlite::Result<Option<String>> {
        let mut found = db.prepare_cached("SELECT text FROM texts WHERE chunk = ?1")?;
        found.query_row([row.id.cast_signed()], |row| row.get(0)).optional()
    };
    let text = read().map_err(sql(folder))?;
    text.filter(|text| content_hash(text.as_bytes()) == row.text_checksum)
        .ok_or_else(|| damaged(folder, format!("the text of chunk {}", row.id)))
}

/// The part of a store that every view reads when it opens: all rows but texts and documents.
pub(super) struct Index {
    pub(super) identity: Identity,
    pub(super) state: State,
    /// Chunks sorted by id, and therefore by slot.
    pub(super) chunks: Vec<ChunkRow>,
    pub(super) segments: Vec<SegmentRow>,
}

impl Index {
    pub(super) fn read(db: &Connection, folder: &Path) -> Result<Self> {
        check_schema(db, folder)?;
        let none = |key: &str| damaged(folder, format!("meta has no {key}"));
        let identity: Identity = get_meta(db, folder, IDENTITY)?.ok_or_else(|| none(IDENTITY))?;
        let state: State = get_meta(db, folder, STATE)?.ok_or_else(|| none(STATE))?;
        let chunks = ChunkRow::select(db, folder, "ORDER BY id", None)?;
        let segments = SegmentRow::all(db, folder)?;
        let documents = || -> rusqlite::Result<Vec<u64>> {
            let mut all = db.prepare("SELECT checksum FROM documents NOT INDEXED")?;
            all.query_map([], |row| get(row, "checksum"))?.collect()
        };
        let documents = documents().map_err(sql(folder))?;
        for (what, counted, found) in [
            ("documents", state.documents, documents.len()),
            ("chunks", state.chunks, chunks.len()),
            ("caches", state.cached, chunks.iter().filter(|c| c.kv.is_some()).count()),
        ] {
            if counted != found as u64 {
                return Err(damaged(folder, format!("expected {counted} {what}, found {found}")));
            }
        }
        let rows = documents.into_iter().chain(chunks.iter().map(ChunkRow::checksum));
        let sum = rows.chain(segments.iter().map(SegmentRow::checksum));
        if sum.fold(0, u64::wrapping_add) != state.sum {
            return Err(damaged(folder, "a row is missing or another's"));
        }
        let index = Self { identity, state, chunks, segments };
        index.check().map_err(|problem| damaged(folder, problem))?;
        Ok(index)
    }

    /// Returns the bytes of one slot.
    pub(super) fn vector_bytes(&self) -> u64 {
        self.identity.vector_bytes() as u64
    }
}
