//! The one writer.
//!
//! A commit first appends to the vectors' file and the last segment, syncs both, and then commits
//! the rows that name what was appended. Whatever lies behind what is recorded was never committed,
//! and the next writer cuts it off.

use super::disk::{self, HEAD, LOCK};
use super::draft::Draft;
use super::graph::GraphFile;
use super::hnsw::{self, Graph};
use super::identity::Identity;
use super::reader::Reader;
use super::tables::{self, DocumentRow, Index, State, connect, damaged, put_meta, sql};
use super::types::{Compacted, NewChunk, NewDocument, Stamp};
use super::{Spill, content_hash, folder_bytes, head};
use crate::unlock::UnlockOnDrop;
use crate::{Error, Result};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The one writer of a store.
///
/// ```
/// use gritlm::rag::{Identity, NewChunk, NewDocument, Reader, Stamp, Writer};
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
/// # Ok::<(), gritlm::Error>(())
/// ```
pub struct Writer {
    folder: PathBuf,
    db: Connection,
    index: Index,
    head: File,
    /// Held while the writer is, until the database is closed: so it is the last field.
    _lock: UnlockOnDrop,
}

impl Writer {
    /// Creates the store in `folder` where there is none, else opens it, and cleans up what a crash
    /// has left behind. Documents whose commits a damaged log has lost are not there; their
    /// [`stamps`](Self::stamps) say so.
    ///
    /// # Errors
    /// When another writer has it, it was made with another model, `attn` or format, or its
    /// database is damaged.
    pub fn open(folder: impl AsRef<Path>, identity: &Identity) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let lock = lock(&folder)?;
        let db = connect(&folder, true)?;
        if tables::is_empty(&db).map_err(sql(&folder))? {
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
        // The rows are checked; what is kept here is what commits need.
        index.chunks = Vec::new();
        let head = disk::open(&folder.join(HEAD))?;
        let writer = Self { folder, db, index, head, _lock: lock };
        writer.clean_files()?;
        head::write(&writer.head, writer.index.state.commit);
        Ok(writer)
    }

    /// Where caches of a document wait that is not whole yet.
    pub(crate) fn spill(&self) -> Result<Spill> {
        Spill::new(&self.folder)
    }

    /// What the store was made with.
    pub fn identity(&self) -> &Identity {
        &self.index.identity
    }

    /// Stores a document and replaces what was stored under its path: all or nothing, durable when
    /// it returns.
    ///
    /// # Errors
    /// When a vector or cache has another shape or is not finite, or nothing more can be written;
    /// then the store is as before.
    pub fn put(&mut self, document: &NewDocument, chunks: &[NewChunk]) -> Result<()> {
        self.put_all(&[(document, chunks)])
    }

    /// [`Writer::put`] of several documents with one commit, all or nothing together: a commit
    /// waits for the disk up to three times, so many small documents are faster so.
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
        // The documents are stored: that the disk has no room to move others is no failure of this.
        let _ = self.hold_files_to_budget();
        Ok(())
    }

    /// Removes a document; false where there is none.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn remove(&mut self, path: &str) -> Result<bool> {
        self.change(|draft| draft.remove(path))
    }

    /// Notes that sources of these paths have another stamp, while what is stored of them is right.
    /// Paths that are not in the store are left out.
    ///
    /// # Errors
    /// When nothing can be written; then the store is as before.
    pub fn restamp(&mut self, stamps: &[(String, Stamp)]) -> Result<()> {
        if stamps.is_empty() {
            return Ok(());
        }
        self.change(|draft| stamps.iter().try_for_each(|(path, stamp)| draft.restamp(path, *stamp)))
    }

    /// Every stored document's path, with the state of its source then.
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

    /// Sets how many bytes of keys and values are kept, 64 a chunk for the header counted; the
    /// store remembers it. What is beyond is evicted, the least recently used first; text and
    /// vector stay. Segments are cleaned as needed, so that their files take at most a quarter
    /// more.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn set_budget(&mut self, bytes: Option<u64>) -> Result<()> {
        if self.index.state.budget != bytes {
            self.change(|draft| {
                draft.state.budget = bytes;
                draft.evict()
            })?;
        }
        self.hold_files_to_budget()
    }

    /// Sets above how many chunks there is to be a graph, by which
    /// [`Searcher`](crate::rag::Searcher) finds chunks without a look at all of them; None for no
    /// graph. The store remembers it, and [`Writer::update_graph`] makes the graph.
    ///
    /// # Errors
    /// When this build makes no graphs, or nothing can be written.
    pub fn set_approximate(&mut self, above: Option<u64>) -> Result<()> {
        if let (Some(above), false) = (above, hnsw::AVAILABLE) {
            return Err(Error::Option {
                option: "--approximate-above",
                expected: "none in a build without usearch (feature usearch)".into(),
                found: above.to_string(),
            });
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

    /// Makes, rewrites or drops the graph for approximate search, where that is due: there is none
    /// yet, its file is damaged, more than a quarter of it has gone, or what was added since is more
    /// than a sixteenth of what it covers. In the last case it is added, else the graph is made from
    /// nothing. `watch` is told how many vectors are in it, of how many; where it returns an error
    /// the graph stays as it was.
    ///
    /// # Errors
    /// When a vector is damaged or nothing can be written, and what `watch` returns.
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

    /// Makes a graph over all vectors from `old`, which is sound, or from nothing.
    fn make_graph(
        &mut self,
        old: Option<GraphFile>,
        watch: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        if !hnsw::AVAILABLE {
            return Ok(());
        }
        let reader = Reader::open(&self.folder)?;
        // One of another version of usearch is of no use.
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
        // Outside of a transaction: readers that note what they use would wait for it.
        if let Err(error) = disk::write_whole(&path, &bytes) {
            // What is left lying is cleaned by the next writer.
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

    /// Frees the place of everything that was replaced, removed or evicted. Readers go on with the
    /// old files, which are gone when the last of them has refreshed.
    ///
    /// # Errors
    /// When nothing can be written; then the store is as before.
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
        // These shrink the database, and the log where no reader needs it. That they may fail costs
        // only the place.
        let _ = self.db.execute_batch("VACUUM");
        let _ = self.db.busy_timeout(std::time::Duration::ZERO);
        let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.db.busy_timeout(tables::PATIENCE).map_err(sql(&self.folder))?;
        Ok(Compacted { before, after: folder_bytes(&self.folder)? })
    }

    /// Cleans the emptiest segments while all of them take more than 5/4 of the budget.
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

    /// One commit: all that `work` does, or nothing.
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
                    // What is left lying is cleaned by the next writer.
                    let _ = self.clean_files();
                }
                Ok(value)
            }
            Err(error) => {
                // As above.
                let _ = self.clean_files();
                Err(error)
            }
        }
    }

    fn attempt<T>(
        &self,
        work: impl FnOnce(&mut Draft<'_>) -> Result<T>,
    ) -> Result<(T, State, Vec<tables::SegmentRow>)> {
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

    /// Cuts off what is behind the recorded bytes and deletes the files that are not recorded. A
    /// file of vectors or segments that is too short or missing gets zeros, which fit no checksum:
    /// what it held stays damaged, and can be removed and stored again.
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
                // Where a reader keeps it from being deleted, a later writer does.
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

/// Takes the writer's lock, which the system gives back when the process ends, however it does.
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
        Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
    }
    // For the message above only.
    let id = std::process::id().to_string();
    let _ = file.set_len(0).and_then(|()| disk::write_at(&file, id.as_bytes(), 0));
    Ok(UnlockOnDrop(file))
}
