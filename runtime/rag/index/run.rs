//! The state of a run: documents whose chunks wait, those that are complete, and what was done.

use super::cut::{Cut, Waiting, tokens};
use super::{Event, Indexed, is_below};
use crate::store::{CacheKind, Identity, KvFormat, NewChunk, NewDocument, Spill, Stamp, Writer};
use crate::{Error, Passes, Result};
use gritlm::cache::KvSnapshot;
use gritlm::{Embed, Embedding, Encoded};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

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
pub(super) struct Run<'a> {
    passes: &'a dyn Passes,
    pub(super) writer: &'a mut Writer,
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
    pub(super) restamped: Vec<(String, Stamp)>,
    pub(super) done: Indexed,
    read: u64,
    pub(super) total: u64,
}

impl<'a> Run<'a> {
    pub(super) fn new(
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

    pub(super) fn take(
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
    pub(super) fn problem(
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

    pub(super) fn progress(&self, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        watch(Event::Progress { read: self.read, total: self.total, done: &self.done })
    }

    /// Runs passes while at least `least` tokens wait, and commits completed documents when due.
    pub(super) fn embed(
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
    pub(super) fn finish(self, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<Indexed> {
        self.writer.update_graph(&mut |done, total| watch(Event::Graph { done, total }))?;
        Ok(self.done)
    }

    /// Returns the bytes of keys and values in memory.
    fn in_memory(&self) -> usize {
        self.queue.iter().chain(&self.ready).map(|open| open.in_memory).sum()
    }

    /// Stores the completed documents.
    pub(super) fn commit(&mut self) -> Result<()> {
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
    pub(super) fn remove_gone(&mut self, roots: &[String]) -> Result<()> {
        for path in self.stamps.keys() {
            let below = |all: &[String]| all.iter().any(|root| is_below(path, root));
            if !self.seen.contains(path) && below(roots) && !below(&self.failed) {
                self.done.removed += u64::from(self.writer.remove(path)?);
            }
        }
        Ok(())
    }
}
