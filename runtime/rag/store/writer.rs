//! The writer. A store has at most one at a time.
//!
//! A commit first appends to the vectors' file and the last segment, syncs both, and then commits
//! the rows that refer to what was appended. Bytes beyond the recorded ends were never committed,
//! and the next writer truncates them.

use super::database::{self, connect, damaged, sql};
use super::disk::{self, HEAD, LOCK};
use super::draft::Draft;
use super::graph::GraphFile;
use super::hnsw::{self, Graph};
use super::identity::Identity;
use super::reader::Reader;
use super::rows::{DocumentRow, SegmentRow};
use super::tables::{self, Index, State, put_meta};
use super::types::{Compacted, NewChunk, NewDocument, Stamp};
use super::{Spill, content_hash, folder_bytes, head};
use crate::{Error, Result};
use gritlm::UnlockOnDrop;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Changes a store. Only one writer can be open at a time.
///
/// ```
/// use gritlm_rag::{Identity, NewChunk, NewDocument, Reader, Stamp, Writer};
///
/// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
/// let folder = std::env::temp_dir().join(format!("store-{}", std::process::id()));
/// let mut writer = Writer::open(&folder, &Identity::of(&engine))?;
/// let text = "pdfgrep searches text in PDF files";
/// let vector = engine.embed(&[text], &gritlm::Embed::default())?.remove(0).vector;
/// writer.put(
///     &NewDocument {
///         path: "pdfgrep.txt".into(),
///         title: "pdfgrep".into(),
///         stamp: Stamp::default(),
///         metadata: serde_json::Value::Null,
///     },
///     &[NewChunk { text: text.into(), tokens: 9, vector, kv: None }],
/// )?;
///
/// let reader = Reader::open(&folder)?;
/// let id = reader.vectors()?.ids()[0];
/// assert_eq!(reader.chunk(id)?.text, text);
/// # drop(writer);
/// # std::fs::remove_dir_all(&folder).unwrap();
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
pub struct Writer {
    folder: PathBuf,
    db: Connection,
    index: Index,
    head: File,
    /// The writer's lock. It is the last field, so that it is released after the database is
    /// closed.
    _lock: UnlockOnDrop,
}

impl Writer {
    /// Opens the store in `folder`, or creates it, and cleans up what a crash has left behind.
    /// Documents whose commits were lost in a damaged write-ahead log are missing from
    /// [`stamps`](Self::stamps), so the next indexing stores them again.
    ///
    /// # Errors
    /// When another writer holds it, it was made with another model, `attn` or format, or its
    /// database is damaged.
    pub fn open(folder: impl AsRef<Path>, identity: &Identity) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let lock = lock(&folder)?;
        let db = connect(&folder, true)?;
        if database::is_empty(&db).map_err(sql(&folder))? {
            let make = || -> rusqlite::Result<()> {
                let making = Transaction::new_unchecked(&db, TransactionBehavior::Immediate)?;
                tables::make(&making)?;
                put_meta(&making, tables::IDENTITY, identity)?;
                put_meta(&making, tables::STATE, &State::default())?;
                put_meta(&making, tables::READS, &tables::Reads::default())?;
                making.commit()
            };
            make().map_err(sql(&folder))?;
            disk::sync_folder(&folder)?;
        }
        let mut index = Index::read(&db, &folder)?;
        if let Some(problem) = index.identity.differs_for_writing(identity) {
            return Err(Error::Store { path: folder, problem });
        }
        // Reading the index has checked the rows. Commits do not need them, so they are dropped.
        index.chunks = Vec::new();
        let head = disk::open(&folder.join(HEAD))?;
        let writer = Self { folder, db, index, head, _lock: lock };
        writer.clean_files()?;
        head::write(&writer.head, writer.index.state.commit);
        Ok(writer)
    }

    /// Creates a file in which the caches of an incomplete document wait.
    pub(crate) fn spill(&self) -> Result<Spill> {
        Spill::new(&self.folder)
    }

    /// Returns what the store was made with.
    pub fn identity(&self) -> &Identity {
        &self.index.identity
    }

    /// Stores a document and replaces what was stored under its path, all or nothing. The change
    /// is durable when the call returns.
    ///
    /// # Errors
    /// When a vector or cache has another shape or is not finite, or writing fails; then the
    /// store is as before.
    pub fn put(&mut self, document: &NewDocument, chunks: &[NewChunk]) -> Result<()> {
        self.put_all(&[(document, chunks)])
    }

    /// Stores several documents like [`Writer::put`], with one commit and all or nothing
    /// together. A commit waits for the disk up to three times, so this is faster for many small
    /// documents.
    ///
    /// # Errors
    /// As [`Writer::put`].
    pub fn put_all(&mut self, documents: &[(&NewDocument, &[NewChunk])]) -> Result<()> {
        for (document, chunks) in documents {
            Draft::check(&self.index.identity, &document.path, chunks)?;
        }
        self.change(|draft| {
            for (document, chunks) in documents {
                draft.remove(&document.path)?;
                draft.add_document(document, chunks)?;
            }
            draft.evict()
        })?;
        // The documents are stored; if the disk has no room to move others, that does not fail
        // this call.
        let _ = self.hold_files_to_budget();
        Ok(())
    }

    /// Removes a document; returns false if there is none.
    ///
    /// # Errors
    /// When writing fails.
    pub fn remove(&mut self, path: &str) -> Result<bool> {
        self.change(|draft| draft.remove(path))
    }

    /// Replaces the stamps of documents whose stored content is still right. Ignores paths that
    /// are not in the store.
    ///
    /// # Errors
    /// When writing fails; then the store is as before.
    pub fn restamp(&mut self, stamps: &[(String, Stamp)]) -> Result<()> {
        if stamps.is_empty() {
            return Ok(());
        }
        self.change(|draft| stamps.iter().try_for_each(|(path, stamp)| draft.restamp(path, *stamp)))
    }

    /// Returns the path of every stored document, with the stamp it was stored with.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn stamps(&self) -> Result<HashMap<String, Stamp>> {
        let rows = DocumentRow::select(&self.db, &self.folder, "", [])?;
        if rows.len() as u64 != self.index.state.documents {
            let expected = self.index.state.documents;
            let problem = format!("expected {expected} documents, found {}", rows.len());
            return Err(damaged(&self.folder, problem));
        }
        Ok(rows.into_iter().map(|row| (row.path, row.stamp)).collect())
    }

    /// Sets the most bytes of keys and values to keep, including 64 per chunk for the header; the
    /// store remembers it. Beyond that, the least recently used are evicted; their text and
    /// vector stay. Segments are cleaned as needed, so that their files take at most a quarter
    /// more than the budget.
    ///
    /// # Errors
    /// When writing fails.
    pub fn set_budget(&mut self, bytes: Option<u64>) -> Result<()> {
        if self.index.state.budget != bytes {
            self.change(|draft| {
                draft.state.budget = bytes;
                draft.evict()
            })?;
        }
        self.hold_files_to_budget()
    }

    /// Sets the number of chunks above which the store has a graph, with which
    /// [`Searcher`](crate::Searcher) finds chunks without scoring all of them; None for no
    /// graph. The store remembers it, and [`Writer::update_graph`] builds the graph.
    ///
    /// # Errors
    /// When this build has no graphs, or writing fails.
    pub fn set_approximate(&mut self, above: Option<u64>) -> Result<()> {
        if let (Some(above), false) = (above, hnsw::AVAILABLE) {
            return Err(gritlm::Error::Option {
                option: "approximate_above",
                expected: "none in a build without usearch (feature usearch)".into(),
                found: above.to_string(),
            }
            .into());
        }
        if self.index.state.approximate_above == above {
            return Ok(());
        }
        self.change(|draft| {
            let State { approximate_above, chunks, graph, .. } = &mut draft.state;
            *approximate_above = above;
            *graph = graph.filter(|_| above.is_some_and(|above| *chunks > above));
            Ok(())
        })
    }

    /// Builds, extends or drops the graph for approximate search if that is due. The graph is due
    /// when there is none yet, its file is damaged, more than a quarter of its vectors are dead,
    /// or the chunks that it does not cover are more than a sixteenth of those it covers. In the
    /// last case they are added to it; otherwise it is built from scratch. `watch` receives the
    /// number of vectors added so far and the number to add; if it returns an error, the graph
    /// stays as it was.
    ///
    /// # Errors
    /// When a vector is damaged or writing fails; also any error that `watch` returns.
    pub fn update_graph(&mut self, watch: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let State { approximate_above, chunks, graph, .. } = self.index.state;
        if approximate_above.is_none_or(|above| chunks <= above) {
            return match graph {
                None => Ok(()),
                Some(_) => self.record_graph(None),
            };
        }
        let sound = |graph: &GraphFile| {
            let file = disk::open_read(&self.folder.join(disk::graph(graph.generation)));
            graph.read(file.ok().as_ref(), self.index.identity.dim).is_ok()
        };
        match graph.filter(|graph| !graph.is_worn() && sound(graph)) {
            Some(graph) if !graph.is_behind(chunks) => Ok(()),
            old => self.make_graph(old, watch),
        }
    }

    /// Builds a graph over all vectors, starting from `old`, which is sound, or from scratch.
    fn make_graph(
        &mut self,
        old: Option<GraphFile>,
        watch: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        if !hnsw::AVAILABLE {
            return Ok(());
        }
        let reader = Reader::open(&self.folder)?;
        // A graph that cannot be loaded, such as one of another version of usearch, is rebuilt
        // from scratch.
        let loaded = old.and_then(|_| reader.graph().ok().flatten());
        let old = old.filter(|_| loaded.is_some());
        let vectors = reader.vectors()?;
        let first = old.map_or(0, |old| vectors.ids().partition_point(|&id| id <= old.through));
        let generation = self.index.state.graph_generation + 1;
        let path = self.folder.join(disk::graph(generation));
        let rows = first..vectors.len();
        let added = rows.len() as u64;
        let bytes = Graph::extend(loaded, &path, &vectors, rows, watch)?;
        let graph = GraphFile {
            generation,
            bytes: bytes.len() as u64,
            checksum: content_hash(&bytes),
            vectors: old.map_or(0, |old| old.vectors) + added,
            dead: old.map_or(0, |old| old.dead),
            through: vectors.ids().last().copied().unwrap_or_default(),
        };
        drop((reader, vectors));
        // Not in a transaction: readers that note what they use would wait for it.
        if let Err(error) = disk::write_whole(&path, &bytes) {
            // Ignore the error: the next writer cleans up what is left.
            let _ = self.clean_files();
            return Err(error);
        }
        self.record_graph(Some(graph))
    }

    fn record_graph(&mut self, graph: Option<GraphFile>) -> Result<()> {
        self.change(|draft| {
            draft.state.graph = graph;
            if let Some(graph) = graph {
                draft.state.graph_generation = graph.generation;
            }
            Ok(())
        })
    }

    /// Frees the space of everything that was replaced, removed or evicted. Readers continue with
    /// the old files, which disappear when the last of them has refreshed.
    ///
    /// # Errors
    /// When writing fails; then the store is as before.
    pub fn compact(&mut self) -> Result<Compacted> {
        let before = folder_bytes(&self.folder)?;
        let dead = self.index.segments.iter().filter(|s| s.live < s.bytes);
        let dead: BTreeSet<u64> = dead.map(|s| s.id).collect();
        let State { slots, chunks, graph, .. } = self.index.state;
        if slots > chunks || !dead.is_empty() {
            self.change(|draft| {
                if slots > chunks {
                    draft.rewrite_vectors()?;
                }
                draft.clean(dead)
            })?;
        }
        if graph.is_some_and(|graph| graph.dead > 0) {
            self.make_graph(None, &mut |_, _| Ok(()))?;
        }
        // These statements shrink the database, and the write-ahead log if no reader needs it. If
        // they fail, only the space is lost.
        let _ = self.db.execute_batch("VACUUM");
        let _ = self.db.busy_timeout(std::time::Duration::ZERO);
        let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.db.busy_timeout(database::PATIENCE).map_err(sql(&self.folder))?;
        Ok(Compacted { before, after: folder_bytes(&self.folder)? })
    }

    /// Cleans the segments with the smallest live share until all segments together take at most
    /// 5/4 of the budget.
    fn hold_files_to_budget(&mut self) -> Result<()> {
        let Some(budget) = self.index.state.budget else { return Ok(()) };
        let segments = &self.index.segments;
        let mut all: u64 = segments.iter().map(|s| s.bytes).sum();
        let mut emptiest: Vec<_> = segments.iter().filter(|s| s.live < s.bytes).collect();
        emptiest.sort_by(|a, b| {
            (u128::from(a.live) * u128::from(b.bytes))
                .cmp(&(u128::from(b.live) * u128::from(a.bytes)))
        });
        let mut chosen = BTreeSet::new();
        for segment in emptiest {
            if all <= budget.saturating_add(budget / 4) {
                break;
            }
            all -= segment.bytes - segment.live;
            chosen.insert(segment.id);
        }
        if chosen.is_empty() { Ok(()) } else { self.change(|draft| draft.clean(chosen)) }
    }

    /// Runs `work` as one commit: all of it takes effect, or nothing.
    fn change<T>(&mut self, work: impl FnOnce(&mut Draft<'_>) -> Result<T>) -> Result<T> {
        let done = self.attempt(work);
        match done {
            Ok((value, state, segments)) => {
                let old = std::mem::replace(&mut self.index.state, state);
                let gone = self
                    .index
                    .segments
                    .iter()
                    .any(|s| segments.binary_search_by_key(&s.id, |now| now.id).is_err());
                self.index.segments = segments;
                head::write(&self.head, self.index.state.commit);
                let files =
                    |state: &State| (state.generation, state.graph.map(|graph| graph.generation));
                if gone || files(&old) != files(&self.index.state) {
                    // Ignore the error: the next writer cleans up what is left.
                    let _ = self.clean_files();
                }
                Ok(value)
            }
            Err(error) => {
                // As above, ignore the error.
                let _ = self.clean_files();
                Err(error)
            }
        }
    }

    fn attempt<T>(
        &self,
        work: impl FnOnce(&mut Draft<'_>) -> Result<T>,
    ) -> Result<(T, State, Vec<SegmentRow>)> {
        let sql = sql(&self.folder);
        let open = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate);
        let open = open.map_err(&sql)?;
        let mut draft = Draft::new(&open, &self.folder, &self.index);
        let value = work(&mut draft)?;
        draft.finish()?;
        let Draft { state, segments, .. } = draft;
        open.commit().map_err(&sql)?;
        Ok((value, state, segments.into_values().collect()))
    }

    /// Truncates files to their recorded lengths and deletes data files that are not recorded. A
    /// file of vectors or keys and values that is missing or too short is filled with zeros,
    /// which match no checksum: its content stays damaged, and can be removed and stored again.
    fn clean_files(&self) -> Result<()> {
        let state = &self.index.state;
        let vectors = state.slots.saturating_mul(self.index.vector_bytes());
        let mut keep = HashMap::from([(disk::vectors(state.generation), vectors)]);
        keep.extend(self.index.segments.iter().map(|s| (disk::segment(s.id), s.bytes)));
        let graph = state.graph.map(|graph| disk::graph(graph.generation));
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kept = keep.contains_key(name.as_ref()) || graph.as_deref() == Some(&*name);
            if disk::is_data(&name) && !kept {
                // If an open reader prevents the deletion, a later writer deletes the file.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        for (name, bytes) in keep {
            let path = self.folder.join(name);
            let file = disk::open(&path)?;
            if file.metadata().map_err(Error::io(&path))?.len() != bytes {
                file.set_len(bytes).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}

/// Takes the writer's lock, which the operating system releases when the process ends for
/// whatever reason.
fn lock(folder: &Path) -> Result<UnlockOnDrop> {
    let path = folder.join(LOCK);
    let file = disk::open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&file).take(16).read_to_string(&mut holder);
            let problem = match holder.trim().parse::<u32>() {
                Err(_) => "another writer is at work on it".into(),
                Ok(holder) => format!("another writer (process {holder}) is at work on it"),
            };
            return Err(Error::Busy { path: folder.into(), problem });
        }
        Err(TryLockError::Error(source)) => return Err(gritlm::Error::Io { path, source }.into()),
    }
    // The process id is only for the message above.
    let id = std::process::id().to_string();
    let _ = file.set_len(0).and_then(|()| disk::write_at(&file, id.as_bytes(), 0));
    Ok(UnlockOnDrop(file))
}
