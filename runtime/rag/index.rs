//! Indexes files into a store: reads, splits, embeds and stores what has changed, and removes
//! what is gone.
//!
//! One thread reads files and splits them into chunks while the calling thread embeds. Passes
//! take chunks in the order of the documents, so documents are completed one after the other. A
//! run that ends early therefore loses little: what is stored stays stored, and the next run
//! continues from there.

use super::chunk::Chunking;
use super::read::{Entry, Item, Links, Parser, Source, Unread, Walk, read_file, resolve, walk};
use super::store::{CacheKind, Identity, KvFormat, NewChunk, NewDocument, Spill, Stamp, Writer};
use crate::{Error, Passes, Result};
use gritlm::cache::KvSnapshot;
use gritlm::{Embed, Embedding, Encoded, Engine};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// What a run is going to do; see [`Indexer::plan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Documents that are new or have changed.
    pub documents: u64,
    /// Chunks of these documents.
    pub chunks: u64,
    /// Tokens to compute.
    pub tokens: u64,
    /// Bytes that the chunks' vectors will take.
    pub vector_bytes: u64,
    /// Bytes that the chunks' keys and values will take.
    pub kv_bytes: u64,
}

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Indexed {
    /// Documents that were added.
    pub added: u64,
    /// Documents that had changed and were stored again.
    pub replaced: u64,
    /// Documents that had not changed.
    pub unchanged: u64,
    /// Documents that were removed because their source is gone.
    pub removed: u64,
    /// Files that are not text.
    pub binary: u64,
    /// Links to files outside the given paths, which were left out; see [`Indexer::follow_links`].
    pub outside: u64,
    /// Files, folders and lines that could not be read.
    pub failed: u64,
    /// Chunks embedded.
    pub chunks: u64,
    /// Tokens embedded.
    pub tokens: u64,
}

/// A progress report of [`Indexer::run`].
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A file, or a line in it, cannot be read. The run continues without it, and what is stored
    /// of the file stays.
    Problem {
        /// The file, folder or line.
        path: &'a str,
        /// What is wrong with it.
        problem: &'a str,
    },
    /// Files were read or chunks were embedded.
    Progress {
        /// Bytes of files processed so far.
        read: u64,
        /// Bytes of all files.
        total: u64,
        /// What has been done so far.
        done: &'a Indexed,
    },
    /// The graph for approximate search is being built, after all documents have been stored; see
    /// [`Writer::update_graph`].
    Graph {
        /// Vectors added so far.
        done: u64,
        /// Vectors to add.
        total: u64,
    },
}

/// Indexes files into a store.
///
/// ```
/// use gritlm_rag::{Identity, Indexer};
/// # let folder = tempfile::tempdir().unwrap();
/// # let (notes, store) = (folder.path().join("notes"), folder.path().join("store"));
/// # std::fs::create_dir(&notes).unwrap();
/// # std::fs::write(notes.join("chess.txt"), "chess for the desktop").unwrap();
///
/// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
/// let mut indexer = Indexer::open(&engine, &store, &Identity::of(&engine))?;
/// let done = indexer.run(&[notes], &mut |_| Ok(()))?;
/// assert_eq!((done.added, done.chunks), (1, 1));
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
pub struct Indexer<'a> {
    passes: &'a dyn Passes,
    writer: Writer,
    folder: PathBuf,
    /// The most bytes of keys and values that wait in memory.
    memory: usize,
    parser: Parser,
    links: Links,
}

impl<'a> Indexer<'a> {
    /// Opens the store in `folder` for writing, or creates it. [`Identity`] determines how
    /// documents are split and what is kept of each chunk.
    ///
    /// # Errors
    /// When the chunk lengths are invalid, the store was made with other settings, another writer
    /// holds it, or it cannot be written.
    pub fn open(passes: &'a dyn Passes, folder: &Path, identity: &Identity) -> Result<Self> {
        let engine = passes.engine();
        let how = Chunking { tokens: identity.chunk, overlap: identity.overlap };
        how.check(engine.config().max_positions)?;
        identity.check(engine, identity.attn)?;
        let writer = Writer::open(folder, identity)?;
        let (folder, parser) = (resolve(folder), Parser::default());
        Ok(Self { passes, writer, folder, memory: 256 << 20, parser, links: Links::Within })
    }

    /// Sets the parser of HTML and PDF. The default, [`Parser::default`], parses in this process;
    /// parse documents from untrusted sources in a child process instead ([`Parser::in_child`]).
    pub fn set_parser(&mut self, parser: Parser) {
        self.parser = parser;
    }

    /// Sets whether to follow links to files outside the given paths. By default they are not
    /// followed: anyone who can write to an indexed folder could otherwise turn any file that the
    /// reading process can access into a document.
    pub fn follow_links(&mut self, anywhere: bool) {
        self.links = if anywhere { Links::Anywhere } else { Links::Within };
    }

    /// Sets how many bytes of keys and values may wait in memory until all chunks of their
    /// document are embedded; the default is 256 MiB. Beyond that they wait on disk, in the
    /// store's folder. The keys and values of the pass being computed are not counted.
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory = bytes;
    }

    /// Returns the writer of the store.
    pub fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Returns what [`Indexer::run`] would do: reads and splits what has changed, without
    /// embedding it. `watch` receives the bytes of files processed so far and the bytes of all
    /// files.
    ///
    /// # Errors
    /// When the store cannot be read or the parser's process does not start; also any error that
    /// `watch` returns.
    pub fn plan(
        &self,
        paths: &[PathBuf],
        watch: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Plan> {
        let Walk { files, .. } = walk(paths, Some(&self.folder), self.links);
        let (stamps, identity) = (self.writer.stamps()?, self.writer.identity());
        let (mut read, total) = (0, files.iter().map(|f| f.bytes).sum());
        let mut plan = Plan::default();
        let reading = Reading { parser: &self.parser, stamps: &stamps };
        cut_files(self.passes.engine(), identity, &files, reading, &mut |found| {
            for cut in found {
                match cut {
                    Cut::Read(bytes) => read += bytes,
                    Cut::Document(_, chunks) => {
                        plan.documents += 1;
                        plan.chunks += chunks.len() as u64;
                        plan.tokens += tokens(&chunks);
                    }
                    _ => {}
                }
            }
            watch(read, total)
        })?;
        plan.vector_bytes = plan.chunks * identity.vector_bytes() as u64;
        // The store counts a header of 64 bytes for each record.
        if identity.cache == CacheKind::Doc {
            plan.kv_bytes = plan.tokens * identity.kv_bytes_per_token() + 64 * plan.chunks;
        }
        Ok(plan)
    }

    /// Brings the store up to date with files and folders. Embeds and stores documents that are
    /// new or have changed (compared by time and size, then by content), removes those below
    /// `paths` that are gone, and updates the store's graph ([`Writer::update_graph`]). If
    /// `watch` returns an error, what has been embedded is stored, and the next run continues
    /// from there.
    ///
    /// Nothing is removed below a path that could not be read, even where it is one of the `paths`
    /// themselves: a missing folder may be on a drive that is not mounted.
    ///
    /// # Errors
    /// When the engine or the store fails or the parser's process does not start; also any error
    /// that `watch` returns.
    pub fn run(
        &mut self,
        paths: &[PathBuf],
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Indexed> {
        let Walk { roots, files, failed, dangling, outside } =
            walk(paths, Some(&self.folder), self.links);
        let stamps = self.writer.stamps()?;
        let known = |path: &str| stamps.keys().filter(|known| is_below(known, path)).count();
        // A dangling link is reported only if it once led to a document.
        let failed: Vec<Unread> = failed
            .into_iter()
            .chain(dangling.into_iter().filter(|link| known(&link.path) > 0))
            .map(|mut unread| {
                let kept = if unread.root { known(&unread.path) } else { 0 };
                if kept > 0 {
                    let plural = if kept > 1 { "s stay" } else { " stays" };
                    unread.problem += &format!("; its {kept} document{plural} in the store");
                }
                unread
            })
            .collect();
        let identity = self.writer.identity().clone();
        let engine = self.passes.engine();
        let mut run = Run::new(self.passes, &mut self.writer, self.memory, &identity, &stamps);
        run.total = files.iter().map(|f| f.bytes).sum();
        run.done.outside = outside;
        for Unread { path, name, problem, .. } in failed {
            run.problem(path, &name, &problem, watch)?;
        }
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(4);
            let (files, identity) = (&files, &identity);
            let reading = Reading { parser: &self.parser, stamps: &stamps };
            let reader = move || {
                cut_files(engine, identity, files, reading, &mut |found| {
                    // After an error nobody receives, so the thread stops reading.
                    send.send(found).map_err(|_| Error::from(gritlm::Error::Cancelled))
                })
            };
            // The parsers of HTML and PDF recurse as deep as a file is nested.
            let reader =
                std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, reader);
            let reader = reader.map_err(Error::io("a thread to read files"))?;
            let result = receive.iter().try_for_each(|found| run.take(found, watch));
            let result = result.and_then(|()| run.embed(1, watch));
            // Whatever ended the run, the embedded documents are stored.
            run.commit().and(result)?;
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        run.remove_gone(&roots)?;
        run.writer.restamp(&run.restamped)?;
        run.progress(watch)?;
        run.finish(watch)
    }

    /// Embeds and stores documents that do not come from files: those that are new or whose stamp
    /// has another hash than the stored one. It removes nothing; otherwise it works like
    /// [`Indexer::run`].
    ///
    /// ```
    /// use gritlm_rag::{Identity, Indexer, Source, Stamp, content_hash};
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let store = folder.path().join("store");
    ///
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let mut indexer = Indexer::open(&engine, &store, &Identity::of(&engine))?;
    /// let text = "chess for the desktop";
    /// let source = Source {
    ///     path: "xboard".into(),
    ///     title: String::new(),
    ///     text: text.into(),
    ///     metadata: serde_json::Value::Null,
    ///     stamp: Stamp { hash: content_hash(text.as_bytes()), ..Stamp::default() },
    /// };
    /// assert_eq!(indexer.put(vec![source.clone()], &mut |_| Ok(()))?.added, 1);
    /// assert_eq!(indexer.put(vec![source], &mut |_| Ok(()))?.unchanged, 1);
    /// # Ok::<(), gritlm_rag::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the engine or the store fails; also any error that `watch` returns. What has been
    /// embedded is stored.
    pub fn put(
        &mut self,
        sources: Vec<Source>,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Indexed> {
        let (engine, stamps) = (self.passes.engine(), self.writer.stamps()?);
        let identity = self.writer.identity().clone();
        let how = Chunking { tokens: identity.chunk, overlap: identity.overlap };
        let mut run = Run::new(self.passes, &mut self.writer, self.memory, &identity, &stamps);
        let each = &mut |found| run.take(found, watch);
        let mut group = Group { engine, how, items: Vec::new(), bytes: 0, each };
        let pushed = sources.into_iter().try_for_each(|source| {
            let path = source.path.clone();
            let same = stamps.get(&path).is_some_and(|stamp| stamp.hash == source.stamp.hash);
            group.push(
                &path,
                match same {
                    true => Item::Unchanged(path.clone(), None),
                    false => Item::Document(source),
                },
            )
        });
        let pushed = pushed.and_then(|()| group.flush());
        let embedded = pushed.and_then(|()| run.embed(1, watch));
        run.commit().and(embedded)?;
        run.finish(watch)
    }
}

/// A chunk waiting to be embedded: its text and its encoded tokens.
type Waiting = (String, Encoded);

/// The result of reading and splitting a file or a line.
enum Cut {
    Document(NewDocument, Vec<Waiting>),
    /// Path, and the file's stamp if it was read.
    Unchanged(String, Option<Stamp>),
    Problem(String, String),
    Binary,
    /// Bytes of files that have been processed.
    Read(u64),
}

fn tokens(chunks: &[Waiting]) -> u64 {
    chunks.iter().map(|(_, e)| e.tokens.len() as u64).sum()
}

/// What reading needs: the parser and the stored stamps.
#[derive(Clone, Copy)]
struct Reading<'a> {
    parser: &'a Parser,
    /// Stamps of the stored documents, by path.
    stamps: &'a HashMap<String, Stamp>,
}

/// Reads files and splits those that have changed, some documents at a time, on all threads.
fn cut_files(
    engine: &Engine,
    identity: &Identity,
    files: &[Entry],
    Reading { parser, stamps }: Reading<'_>,
    each: &mut dyn FnMut(Vec<Cut>) -> Result<()>,
) -> Result<()> {
    let how = Chunking { tokens: identity.chunk, overlap: identity.overlap };
    let mut group = Group { engine, how, items: Vec::new(), bytes: 0, each };
    for file in files {
        let same = |stamp: &Stamp| {
            stamp.modified != 0 && (stamp.modified, stamp.bytes) == (file.modified, file.bytes)
        };
        if stamps.get(&file.path).is_some_and(same) {
            group.push(&file.path, Item::Unchanged(file.path.clone(), None))?;
        } else {
            let unchanged =
                |path: &str, hash| stamps.get(path).is_some_and(|stamp| stamp.hash == hash);
            read_file(file, parser, &unchanged, &mut |item| group.push(&file.path, item))?;
        }
        group.items.push(Err(file.bytes));
    }
    group.flush()
}

/// Documents that are split together.
struct Group<'a> {
    engine: &'a Engine,
    how: Chunking,
    /// Paths with what was read of them, or bytes of files that have been processed.
    items: Vec<Result<(String, Item), u64>>,
    bytes: usize,
    each: &'a mut dyn FnMut(Vec<Cut>) -> Result<()>,
}

impl Group<'_> {
    fn push(&mut self, path: &str, item: Item) -> Result<()> {
        if let Item::Document(source) = &item {
            self.bytes += source.text.len();
        }
        self.items.push(Ok((path.into(), item)));
        if self.items.len() >= 256 || self.bytes > 1 << 18 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let (engine, how) = (self.engine, self.how);
        let cut = std::mem::take(&mut self.items).into_par_iter().map(|item| match item {
            Err(bytes) => Cut::Read(bytes),
            Ok((_, Item::Unchanged(path, stamp))) => Cut::Unchanged(path, stamp),
            Ok((path, Item::Problem(problem))) => Cut::Problem(path, problem),
            Ok((_, Item::Binary)) => Cut::Binary,
            Ok((_, Item::Document(source))) => {
                let cut = how.title(engine, &source.title).and_then(|title| {
                    let cuts = how.cut(engine, &title, &source.text)?;
                    Ok((title, cuts))
                });
                match cut {
                    Err(error) => Cut::Problem(source.path, error.to_string()),
                    Ok((title, cuts)) => {
                        let (path, stamp, metadata) = (source.path, source.stamp, source.metadata);
                        let text = &source.text;
                        let chunks =
                            cuts.into_iter().map(|c| (text[c.bytes].to_string(), c.encoded));
                        Cut::Document(
                            NewDocument { path, title, stamp, metadata },
                            chunks.collect(),
                        )
                    }
                }
            }
        });
        (self.each)(cut.collect())
    }
}

/// A document whose chunks are being embedded, in order.
struct Open {
    document: NewDocument,
    waiting: VecDeque<Waiting>,
    done: Vec<NewChunk>,
    /// Bytes of those caches in `done` that are in memory; the others are in `spill`.
    in_memory: usize,
    spill: Option<Spill>,
}

/// The state of a run.
struct Run<'a> {
    passes: &'a dyn Passes,
    writer: &'a mut Writer,
    memory: usize,
    identity: &'a Identity,
    stamps: &'a HashMap<String, Stamp>,
    queue: VecDeque<Open>,
    /// Tokens of all chunks in the queue.
    queued: usize,
    ready: Vec<Open>,
    committed: Instant,
    /// Duration of the last commit.
    took: Duration,
    seen: HashSet<String>,
    /// Files and folders that could not be read; nothing below them is removed.
    failed: Vec<String>,
    /// Unchanged documents whose files have a new time.
    restamped: Vec<(String, Stamp)>,
    done: Indexed,
    read: u64,
    total: u64,
}

impl<'a> Run<'a> {
    fn new(
        passes: &'a dyn Passes,
        writer: &'a mut Writer,
        memory: usize,
        identity: &'a Identity,
        stamps: &'a HashMap<String, Stamp>,
    ) -> Self {
        Self {
            passes,
            writer,
            memory,
            identity,
            stamps,
            queue: VecDeque::new(),
            queued: 0,
            ready: Vec::new(),
            committed: Instant::now(),
            took: Duration::ZERO,
            seen: HashSet::new(),
            failed: Vec::new(),
            restamped: Vec::new(),
            done: Indexed::default(),
            read: 0,
            total: 0,
        }
    }

    fn take(
        &mut self,
        found: Vec<Cut>,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        for cut in found {
            match cut {
                Cut::Read(bytes) => self.read += bytes,
                Cut::Binary => self.done.binary += 1,
                Cut::Problem(path, problem) => {
                    let name = path.clone();
                    self.problem(path, &name, &problem, watch)?;
                }
                Cut::Unchanged(path, stamp) => {
                    self.done.unchanged += 1;
                    if let Some(stamp) = stamp.filter(|stamp| self.stamps.get(&path) != Some(stamp))
                    {
                        self.restamped.push((path.clone(), stamp));
                    }
                    self.seen.insert(path);
                }
                Cut::Document(document, chunks) => {
                    self.seen.insert(document.path.clone());
                    self.queued += tokens(&chunks) as usize;
                    let (waiting, done) = (chunks.into(), Vec::new());
                    let open = Open { document, waiting, done, in_memory: 0, spill: None };
                    self.queue.push_back(open);
                }
            }
        }
        self.embed(self.passes.engine().options().batch_tokens, watch)?;
        self.progress(watch)
    }

    /// Reports what could not be read, under the name that the user gave it.
    fn problem(
        &mut self,
        path: String,
        name: &str,
        problem: &str,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        self.done.failed += 1;
        watch(Event::Problem { path: name, problem })?;
        self.failed.push(path);
        Ok(())
    }

    fn progress(&self, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        watch(Event::Progress { read: self.read, total: self.total, done: &self.done })
    }

    /// Runs passes while at least `least` tokens wait, and commits completed documents when due.
    fn embed(
        &mut self,
        least: usize,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        loop {
            while let Some(open) = self.queue.pop_front_if(|open| open.waiting.is_empty()) {
                self.ready.push(open);
            }
            // A commit waits for the disk; waiting ten times as long between commits limits them
            // to a tenth of the time.
            if self.committed.elapsed() >= 10 * self.took || self.in_memory() >= self.memory {
                self.commit()?;
            }
            if self.queued < least {
                return Ok(());
            }
            self.pass()?;
            self.progress(watch)?;
        }
    }

    /// Embeds as many of the next chunks as a pass holds.
    fn pass(&mut self) -> Result<()> {
        let budget = self.passes.engine().options().batch_tokens;
        let mut tokens = 0;
        let waiting = self.queue.iter().flat_map(|open| &open.waiting);
        let batch: Vec<Encoded> = waiting
            .enumerate()
            .take_while(|(i, (_, encoded))| {
                tokens += encoded.tokens.len();
                *i == 0 || tokens <= budget
            })
            .map(|(_, (_, encoded))| encoded.clone())
            .collect();
        let mut in_memory = self.in_memory();
        for Embedding { vector, tokens, kv, .. } in self.embeddings(batch)? {
            let Some(open) = self.queue.iter_mut().find(|open| !open.waiting.is_empty()) else {
                break;
            };
            let Some((text, _)) = open.waiting.pop_front() else { break };
            let kv = kv.map(|kv| match self.identity.kv {
                KvFormat::Bf16 => kv.to_bf16(),
                KvFormat::F32 | KvFormat::Int8 => kv,
            });
            let kv = match kv {
                Some(kv) if in_memory + kv.bytes() > self.memory => {
                    let spill = open.spill.take().map_or_else(|| self.writer.spill(), Ok)?;
                    Some(open.spill.insert(spill).keep(&kv)?)
                }
                kv => {
                    let bytes = kv.as_ref().map_or(0, KvSnapshot::bytes);
                    open.in_memory += bytes;
                    in_memory += bytes;
                    kv
                }
            };
            self.queued -= tokens;
            self.done.chunks += 1;
            self.done.tokens += tokens as u64;
            open.done.push(NewChunk { text, tokens: tokens as u32, vector, kv });
        }
        Ok(())
    }

    /// Embeds the next chunks. If one has no finite vector, the error names its document.
    fn embeddings(&self, batch: Vec<Encoded>) -> Result<Vec<Embedding>> {
        let keep_kv = self.identity.cache == CacheKind::Doc;
        let how = Embed::default().attn(Some(self.identity.attn)).keep_kv(keep_kv);
        let count = batch.len();
        let embedded = self.passes.embed_texts(batch, &how);
        let not_finite = |e: &Error| matches!(e, Error::Engine(gritlm::Error::NotFinite { .. }));
        if !embedded.as_ref().is_err_and(not_finite) {
            return embedded;
        }
        let chunks = self.queue.iter().flat_map(|open| {
            let numbered = open.waiting.iter().zip(open.done.len()..);
            numbered.map(move |((_, encoded), index)| (encoded, &open.document.path, index))
        });
        for (encoded, path, index) in chunks.take(count) {
            let alone = self.passes.embed_texts(vec![encoded.clone()], &how);
            if alone.as_ref().is_err_and(not_finite) {
                let what = format!("{path}, chunk {index}");
                return Err(gritlm::Error::NotFinite { what }.into());
            }
        }
        embedded
    }

    /// Updates the graph and returns what the run has done.
    fn finish(self, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<Indexed> {
        self.writer.update_graph(&mut |done, total| watch(Event::Graph { done, total }))?;
        Ok(self.done)
    }

    /// Returns the bytes of keys and values in memory.
    fn in_memory(&self) -> usize {
        self.queue.iter().chain(&self.ready).map(|open| open.in_memory).sum()
    }

    /// Stores the completed documents.
    fn commit(&mut self) -> Result<()> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let all: Vec<(&NewDocument, &[NewChunk])> =
            self.ready.iter().map(|open| (&open.document, open.done.as_slice())).collect();
        self.writer.put_all(&all)?;
        for open in self.ready.drain(..) {
            match self.stamps.contains_key(&open.document.path) {
                true => self.done.replaced += 1,
                false => self.done.added += 1,
            }
        }
        (self.took, self.committed) = (start.elapsed(), Instant::now());
        Ok(())
    }

    /// Removes documents below the given paths whose source is gone.
    fn remove_gone(&mut self, roots: &[String]) -> Result<()> {
        for path in self.stamps.keys() {
            let below = |all: &[String]| all.iter().any(|root| is_below(path, root));
            if !self.seen.contains(path) && below(roots) && !below(&self.failed) {
                self.done.removed += u64::from(self.writer.remove(path)?);
            }
        }
        Ok(())
    }
}

/// Returns whether a document is that of `path` itself, of a file below it, or of a line in it.
pub(super) fn is_below(document: &str, path: &str) -> bool {
    let Some(rest) = document.strip_prefix(path) else { return false };
    let lines = [".jsonl", ".ndjson"].iter().any(|end| path.ends_with(end));
    rest.is_empty()
        || path.ends_with(MAIN_SEPARATOR)
        || rest.starts_with(MAIN_SEPARATOR)
        || (lines && rest.starts_with('#'))
}
