//! Readers. Any number of them can be open, also while a writer is.

use super::database::{self, connect, damaged, sql};
use super::hnsw::{self, Graph};
use super::identity::Identity;
use super::notes::Notes;
use super::rows::{ChunkRow, DocumentRow, SegmentRow};
use super::segment::Segment;
use super::tables::{self, Index, Reads, get_meta};
use super::types::{Chunk, Document, Status};
use super::vectors::Vectors;
use super::{disk, folder_bytes_of, head};
use crate::{Error, Result};
use gritlm::cache::KvSnapshot;
use gritlm::{Attn, Engine};
use rusqlite::Connection;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often to try to open all files of a store. A compaction may delete a file after its name
/// was read and before it is opened, but hardly five times in a row.
const ATTEMPTS: usize = 5;

/// A snapshot of a store. What is written after opening is visible only after
/// [`Reader::refresh`], and what is deleted since stays readable. Threads can share a reader.
///
/// While a reader lives, SQLite's write-ahead log and the files of compacted segments cannot be
/// freed, so a long-lived reader should refresh now and then.
pub struct Reader {
    folder: PathBuf,
    view: View,
    notes: Notes,
}

/// One state of the store, with all its files open.
struct View {
    /// Connection with an open transaction that pins this state.
    db: Mutex<Connection>,
    index: Index,
    /// The vectors' file; None if it is missing.
    vectors: Option<File>,
    /// Segments by id, without those whose file is missing.
    segments: HashMap<u64, Segment>,
    /// The graph's file; None if it is missing or the store has no graph.
    graph: Option<File>,
}

impl View {
    fn open(folder: &Path) -> Result<Self> {
        for _ in 1..ATTEMPTS {
            let view = Self::attempt(folder)?;
            let Index { state, segments, .. } = &view.index;
            let whole = view.vectors.is_some() && view.segments.len() == segments.len();
            if whole && view.graph.is_some() == state.graph.is_some() {
                return Ok(view);
            }
        }
        // A file is really missing; whatever needs it returns an error.
        Self::attempt(folder)
    }

    fn attempt(folder: &Path) -> Result<Self> {
        // `head` is read before the database, because the database is never behind it.
        let head = head::read(folder).unwrap_or(0);
        let db = connect(folder, false)?;
        let begin = || -> rusqlite::Result<bool> {
            db.pragma_update(None, "query_only", true)?;
            db.execute_batch("BEGIN")?;
            database::is_empty(&db)
        };
        if begin().map_err(sql(folder))? {
            return Err(database::none(folder));
        }
        let index = Index::read(&db, folder)?;
        let found = index.state.commit;
        if found < head {
            let lost = "its write-ahead log has lost commits; gritlm index stores them again";
            return Err(damaged(folder, format!("expected commit {head}, found {found}: {lost}")));
        }
        let open = |name: String| disk::open_read(&folder.join(name)).ok();
        let vectors = open(disk::vectors(index.state.generation));
        let segment = |s: &SegmentRow| {
            Segment::open(&folder.join(disk::segment(s.id)), s.bytes).ok().map(|file| (s.id, file))
        };
        let segments = index.segments.iter().filter_map(segment).collect();
        let graph = index.state.graph.and_then(|g| open(disk::graph(g.generation)));
        Ok(Self { db: Mutex::new(db), vectors, segments, graph, index })
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        // The connection is valid between any two statements, so a poisoned lock can be used.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Opens the store in `folder`.
    ///
    /// # Errors
    /// When there is no store, or its database is damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        let view = View::open(&folder)?;
        let notes = Notes::new(&folder);
        Ok(Self { folder, view, notes })
    }

    /// Moves the snapshot to the store's current state.
    ///
    /// # Errors
    /// As [`Reader::open`]; the old snapshot is kept.
    pub fn refresh(&mut self) -> Result<()> {
        self.notes.flush();
        self.view = View::open(&self.folder)?;
        Ok(())
    }

    /// Returns whether the store has changed since the snapshot.
    pub fn is_stale(&self) -> bool {
        head::read(&self.folder).is_ok_and(|commit| commit > self.commit())
    }

    /// Returns what the store was made with.
    pub fn identity(&self) -> &Identity {
        &self.view.index.identity
    }

    /// Checks that the store's contents can be used with `engine` and `attn`.
    ///
    /// # Errors
    /// When the model (by fingerprint) or `attn` differs; the message names both.
    pub fn check(&self, engine: &Engine, attn: Attn) -> Result<()> {
        let asked = Identity { attn, ..Identity::of(engine) };
        self.check_identity(&asked)
    }

    /// Like [`Reader::check`], for an identity instead of an engine.
    ///
    /// # Errors
    /// As [`Reader::check`].
    pub fn check_identity(&self, asked: &Identity) -> Result<()> {
        let differs = self.identity().differs(asked);
        let path = || self.folder.clone();
        differs.map_or(Ok(()), |problem| Err(Error::Store { path: path(), problem }))
    }

    /// Returns the number of commits, which grows with every change of the store.
    pub fn commit(&self) -> u64 {
        self.view.index.state.commit
    }

    /// Returns the number of chunks.
    pub fn len(&self) -> usize {
        self.view.index.chunks.len()
    }

    /// Returns whether the store has no chunks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Maps the vectors of all chunks and compares them with their checksums.
    ///
    /// # Errors
    /// When a vector is damaged; the message names its document.
    pub fn vectors(&self) -> Result<Vectors> {
        let Index { identity, state, chunks, .. } = &self.view.index;
        let open = Vectors::open(self.view.vectors.as_ref(), identity, state.slots, chunks);
        let open =
            open.map(|vectors| vectors.named(self.folder.join(disk::vectors(state.generation))));
        open.map_err(|(chunk, problem)| {
            let name = disk::vectors(state.generation);
            let row = chunk.and_then(|id| self.row(id).ok());
            self.damaged(name, row, &problem)
        })
    }

    /// Loads the graph for approximate search; returns None if there is none, or this build
    /// cannot read it.
    ///
    /// # Errors
    /// When its file is damaged.
    pub(crate) fn graph(&self) -> Result<Option<Graph>> {
        let Index { identity, state, .. } = &self.view.index;
        let Some(file) = state.graph.filter(|_| hnsw::AVAILABLE) else { return Ok(None) };
        let path = self.folder.join(disk::graph(file.generation));
        let bytes = file.read(self.view.graph.as_ref(), identity.dim).map_err(|problem| {
            let problem = format!("{problem}; gritlm index makes it anew");
            Error::Store { path: path.clone(), problem }
        })?;
        Graph::load(&path, identity.dim, file, &bytes)
    }

    /// Returns an error about a damaged file, with the document that the damage affects.
    fn damaged(&self, file: String, row: Option<&ChunkRow>, problem: &str) -> Error {
        let document = row.and_then(|row| self.document(row.document).ok());
        let of = document.map(|d| format!(" (of {})", d.path)).unwrap_or_default();
        Error::Store { path: self.folder.join(file), problem: format!("{problem}{of}") }
    }

    /// Returns all documents, sorted by path.
    ///
    /// # Errors
    /// When a document's row is damaged.
    pub fn documents(&self) -> Result<Vec<Document>> {
        let mut chunks: HashMap<u64, Vec<u64>> = HashMap::new();
        for row in &self.view.index.chunks {
            // The chunks of a document have ascending ids in order of their positions.
            chunks.entry(row.document).or_default().push(row.id);
        }
        let rows = DocumentRow::select(&self.view.db(), &self.folder, "ORDER BY path", [])?;
        let documents = rows.into_iter().map(|row| {
            Ok(Document {
                chunks: chunks.remove(&row.id).unwrap_or_default(),
                metadata: self.metadata(&row)?,
                path: row.path,
                title: row.title,
                stamp: row.stamp,
            })
        });
        documents.collect()
    }

    fn metadata(&self, row: &DocumentRow) -> Result<serde_json::Value> {
        let wrong = |_| damaged(&self.folder, format!("the metadata of {}", row.path));
        serde_json::from_str(&row.metadata).map_err(wrong)
    }

    fn document(&self, id: u64) -> Result<DocumentRow> {
        let rows =
            DocumentRow::select(&self.view.db(), &self.folder, "WHERE id = ?1", [id.cast_signed()]);
        let missing = || damaged(&self.folder, format!("there is no document {id}"));
        rows?.into_iter().next().ok_or_else(missing)
    }

    fn row(&self, id: u64) -> Result<&ChunkRow> {
        let chunks = &self.view.index.chunks;
        let found = chunks.binary_search_by_key(&id, |row| row.id).ok();
        found.and_then(|at| chunks.get(at)).ok_or_else(|| Error::Store {
            path: self.folder.clone(),
            problem: format!("there is no chunk {id}"),
        })
    }

    /// Returns the chunk with this id.
    ///
    /// # Errors
    /// When there is no such chunk, or it is damaged.
    pub fn chunk(&self, id: u64) -> Result<Chunk> {
        let row = self.row(id)?;
        let document = self.document(row.document)?;
        Ok(Chunk {
            id,
            metadata: self.metadata(&document)?,
            document: document.path,
            title: document.title,
            index: row.index,
            text: tables::text(&self.view.db(), &self.folder, row)?,
            tokens: row.tokens,
            has_kv: row.kv.is_some(),
        })
    }

    /// Returns a chunk's keys and values, in f32 or bf16 as they are stored (int8 becomes f32),
    /// or None if they are not kept or were evicted. Counts as a use for the LRU eviction.
    ///
    /// # Errors
    /// When there is no such chunk, or its record is damaged; the message names file and
    /// document.
    pub fn kv(&self, id: u64) -> Result<Option<KvSnapshot>> {
        let kv = self.load(id)?;
        self.notes.add(id, kv.is_some());
        Ok(kv)
    }

    /// Like [`Reader::kv`], but does not count as a use.
    pub(super) fn load(&self, id: u64) -> Result<Option<KvSnapshot>> {
        let row = self.row(id)?;
        let Some(place) = row.kv else { return Ok(None) };
        let read = match self.view.segments.get(&place.segment) {
            Some(segment) => segment.read(self.identity(), id, place),
            None => Err(disk::MISSING.into()),
        };
        let name = disk::segment(place.segment);
        let wrong = |problem: String| {
            self.damaged(name, Some(row), &format!("keys and values of chunk {id}: {problem}"))
        };
        read.map(Some).map_err(wrong)
    }

    /// Returns what the store holds. Reads by other readers are included as of
    /// [`Reader::refresh`].
    ///
    /// # Errors
    /// When the size of a file cannot be read, or the database is damaged.
    pub fn status(&self) -> Result<Status> {
        let Index { identity, state, chunks, segments } = &self.view.index;
        let reads: Reads =
            get_meta(&self.view.db(), &self.folder, tables::READS)?.unwrap_or_default();
        let (hits, misses) = self.notes.pending();
        let width = identity.vector_bytes() as u64;
        Ok(Status {
            documents: state.documents,
            chunks: state.chunks,
            cached: state.cached,
            database_bytes: folder_bytes_of(&self.folder, |name| name.starts_with(disk::DATABASE))?,
            vector_bytes: state.slots * width,
            dead_vector_bytes: state.slots.saturating_sub(chunks.len() as u64) * width,
            segment_bytes: segments.iter().map(|s| s.bytes).sum(),
            kv_bytes: state.kv_bytes,
            kv_budget: state.budget,
            hits: reads.hits.saturating_add(hits),
            misses: reads.misses.saturating_add(misses),
            evicted: state.evicted,
            approximate_above: state.approximate_above,
            graph_chunks: state.graph.map_or(0, |g| g.live()),
            graph_bytes: state.graph.map_or(0, |g| g.bytes),
        })
    }

    // For [`super::verify`]: the parts that the view consists of.

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Connection> {
        self.view.db()
    }

    pub(super) fn index(&self) -> &Index {
        &self.view.index
    }

    pub(super) fn vectors_file(&self) -> Option<&File> {
        self.view.vectors.as_ref()
    }

    pub(super) fn graph_file(&self) -> Option<&File> {
        self.view.graph.as_ref()
    }
}
