//! The tables of `store.sqlite`, whose committed rows alone define a store's content.
//!
//! Every row has a checksum of its content, and `meta` keeps the number of rows and the sum of
//! their checksums, so that both changed and lost rows are detected. SQLite does not detect them
//! by itself: its pages have no checksums.

use super::content_hash;
use super::disk::{self, DATABASE};
use super::graph::GraphFile;
use super::identity::Identity;
use super::types::Stamp;
use crate::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;
use std::time::Duration;

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

/// How long a commit waits for a reader that notes what it used.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Converts SQLite's errors, adding the path of the database; `folder` is the store's.
pub(super) fn sql(folder: &Path) -> impl Fn(rusqlite::Error) -> Error {
    let path = folder.join(DATABASE);
    move |error| Error::Store { path: path.clone(), problem: error.to_string() }
}

/// Returns the error for data that is not as it was written.
pub(super) fn damaged(folder: &Path, what: impl Into<String>) -> Error {
    Error::Store { path: folder.join(DATABASE), problem: format!("damaged: {}", what.into()) }
}

/// Returns the error for a folder without a store.
pub(super) fn none(folder: &Path) -> Error {
    let problem = "there is no store; gritlm index makes one".into();
    Error::Store { path: folder.into(), problem }
}

/// Opens the database. With `create`, creates an empty one if there is none.
pub(super) fn connect(folder: &Path, create: bool) -> Result<Connection> {
    let path = folder.join(DATABASE);
    if !create && !path.exists() {
        return Err(none(folder));
    }
    for end in ["", "-wal", "-shm", "-journal"] {
        let path = folder.join(format!("{DATABASE}{end}"));
        disk::check_regular(&path).map_err(Error::io(&path))?;
    }
    // The store's folder may be a symbolic link, which SQLite would refuse just as links in the
    // folder, so the path is resolved first.
    let path = folder.canonicalize().map_err(Error::io(folder))?.join(DATABASE);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let mut db = Connection::open_with_flags(&path, flags).map_err(sql(folder))?;
    if !create && is_empty(&db).is_err_and(|e| is_read_only(&e)) && log_is_empty(folder) {
        // SQLite's write-ahead log needs a shared-memory file, which cannot be created in a
        // read-only folder. If the log is empty, that file is not needed.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let uri = immutable(&path);
        let open = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI);
        db = open.map_err(sql(folder))?;
    }
    let set = || -> rusqlite::Result<()> {
        db.busy_timeout(PATIENCE)?;
        db.pragma_update(None, "cell_size_check", true)?;
        db.pragma_update(None, "trusted_schema", false)?;
        if create {
            db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
            // Makes each commit durable when it returns.
            db.pragma_update(None, "synchronous", "full")?;
        }
        Ok(())
    };
    set().map_err(sql(folder))?;
    Ok(db)
}

fn is_read_only(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

fn log_is_empty(folder: &Path) -> bool {
    std::fs::metadata(folder.join(format!("{DATABASE}-wal"))).map_or(true, |m| m.len() == 0)
}

/// Returns the URI that opens a database as immutable.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for c in path.to_string_lossy().chars() {
        match c {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            c => uri.push(c),
        }
    }
    uri + "?immutable=1"
}

/// Creates the tables.
pub(super) fn make(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(SCHEMA)
}

/// Returns whether the database has no tables.
pub(super) fn is_empty(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
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

/// The canonical form of a row's content, of which the checksum is taken.
struct Content(Vec<u8>);

impl Content {
    fn of(table: &str) -> Self {
        Self(Vec::with_capacity(128)).text(table)
    }

    fn number(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn checksum(&self) -> u64 {
        content_hash(&self.0)
    }
}

/// Reads an unsigned column: SQLite's integers are signed, and checksums, ids and sizes keep
/// their bits.
fn get(row: &Row<'_>, name: &str) -> rusqlite::Result<u64> {
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
