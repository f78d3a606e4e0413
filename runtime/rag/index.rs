//! Indexes files into a store: reads, splits, embeds and stores what has changed, and removes
//! what is gone.
//!
//! One thread reads files and splits them into chunks while the calling thread embeds. Passes
//! take chunks in the order of the documents, so documents are completed one after the other. A
//! run that ends early therefore loses little: what is stored stays stored, and the next run
//! continues from there.

mod cut;
mod run;

use super::chunk::Chunking;
use super::read::{Item, Links, Parser, Source, Unread, Walk, resolve, walk};
use super::store::{CacheKind, Identity, Writer};
use crate::{Error, Passes, Result};
use cut::{Cut, Group, Reading, cut_files, tokens};
use run::Run;
use serde::Serialize;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
use std::sync::mpsc::sync_channel;

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

/// Returns whether a document is that of `path` itself, of a file below it, or of a line in it.
pub(super) fn is_below(document: &str, path: &str) -> bool {
    let Some(rest) = document.strip_prefix(path) else { return false };
    let lines = [".jsonl", ".ndjson"].iter().any(|end| path.ends_with(end));
    rest.is_empty()
        || path.ends_with(MAIN_SEPARATOR)
        || rest.starts_with(MAIN_SEPARATOR)
        || (lines && rest.starts_with('#'))
}
