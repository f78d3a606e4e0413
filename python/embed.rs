//! Texts in, one array of vectors out.

use crate::cache::Cache;
use crate::error::{ended, raise, refused, unknown};
use crate::job::TICK;
use gritlm::schedule::{Event, Refused, Scheduler, Ticket, Work};
use gritlm::{Embed, Encoded, Engine, Error, Pooling};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

/// Tokens of one request to the scheduler. Two are under way at a time, so that a step always finds
/// texts, and other callers' requests come in between.
const REQUEST_TOKENS: usize = 16 << 10;

/// Texts that are tokenized between two looks at Python's signals: some tens of milliseconds.
const SLICE: usize = 4096;

/// Keyword arguments of embedding; the package's Python files always give all of them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    instruction: String,
    pooling: String,
    normalize: bool,
    max_length: usize,
    attn: Option<String>,
    dimensions: Option<usize>,
    keep_cache: bool,
    /// The original's way to make a sequence, in place of GritLM's prompt.
    verbatim: Option<Verbatim>,
}

/// A sequence is the instruction, the text and an end, one string, as the original makes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Verbatim {
    end: String,
    /// Whether `<s>` is put in front.
    special: bool,
    /// Whether the instruction is pooled, too.
    pool_instruction: bool,
}

pub(crate) fn pooling(name: &str) -> PyResult<Pooling> {
    match name {
        "mean" => Ok(Pooling::Mean),
        "weightedmean" => Ok(Pooling::WeightedMean),
        "cls" => Ok(Pooling::Cls),
        "lasttoken" => Ok(Pooling::LastToken),
        _ => Err(unknown("pooling", "mean, weightedmean, cls or lasttoken", name)),
    }
}

impl Options {
    /// Returns the options of the engine, and the tokens of all texts.
    pub(crate) fn encode(
        self,
        py: Python<'_>,
        engine: &Engine,
        texts: &[PyBackedStr],
    ) -> PyResult<(Embed, Vec<Encoded>)> {
        let attn = self.attn.map(|attn| attn.parse().map_err(raise)).transpose()?;
        let verbatim = self.verbatim;
        let instruction = if verbatim.is_some() { String::new() } else { self.instruction.clone() };
        let how = Embed::with_instruction(instruction)
            .pooling(pooling(&self.pooling)?)
            .normalize(self.normalize)
            .max_length(self.max_length)
            .attn(attn)
            .dimensions(self.dimensions)
            .keep_kv(self.keep_cache);
        let mut encoded = Vec::with_capacity(texts.len());
        for (slice, part) in texts.chunks(SLICE).enumerate() {
            let found = py.detach(|| match &verbatim {
                None => engine.encode_texts(part, &how),
                Some(verbatim) => verbatim.encode(engine, &self.instruction, part, &how),
            });
            encoded.extend(found.map_err(|error| match error {
                Error::EmptyText { index } => {
                    raise(Error::EmptyText { index: slice * SLICE + index })
                }
                error => raise(error),
            })?);
            py.check_signals()?;
        }
        Ok((how, encoded))
    }
}

impl Verbatim {
    /// Instruction, text and end are tokenized in one piece and cut at the maximum length. The
    /// instruction is left out of a mean, and counted as the original counts it: tokenized alone.
    fn encode(
        &self,
        engine: &Engine,
        instruction: &str,
        texts: &[PyBackedStr],
        how: &Embed,
    ) -> gritlm::Result<Vec<Encoded>> {
        let tokenizer = engine.tokenizer();
        let ids = |text: &str| match self.special {
            true => tokenizer.encode(text),
            false => tokenizer.encode_continued(text),
        };
        let is_mean = matches!(how.pooling, Pooling::Mean | Pooling::WeightedMean);
        let skip = match instruction.is_empty() || self.pool_instruction || !is_mean {
            true => 0,
            false => ids(instruction)?.len(),
        };
        if skip >= how.max_length {
            return Err(Error::LongInstruction { tokens: skip, limit: how.max_length });
        }
        let one = |(index, text): (usize, &PyBackedStr)| {
            let text = tokenizer.beginning(text, how.max_length);
            let mut tokens = ids(&format!("{instruction}{text}{}", self.end))?;
            let length = tokens.len();
            tokens.truncate(how.max_length);
            match tokens.len() > skip {
                true => Ok(Encoded { truncated: length - tokens.len(), tokens, skip }),
                false => Err(Error::EmptyText { index }),
            }
        };
        texts.par_iter().enumerate().map(one).collect()
    }
}

/// What an embedding of texts has led to.
pub(crate) struct Embedded {
    /// `(texts, dim)`.
    pub(crate) vectors: Vec<f32>,
    pub(crate) dim: usize,
    /// Of each text, where they are kept.
    pub(crate) caches: Vec<Option<Cache>>,
}

/// A run over texts, and what has come of it.
struct Run<'a> {
    scheduler: &'a Scheduler,
    how: &'a Embed,
    texts: Vec<Encoded>,
    /// Texts in the order in which they run.
    order: Vec<usize>,
    /// Texts that are submitted, of `order`.
    submitted: usize,
    /// Requests under way, the oldest first.
    under_way: VecDeque<UnderWay>,
    found: Embedded,
    done: usize,
}

/// A request under way.
struct UnderWay {
    /// The place of its first text in the order.
    first: usize,
    events: Receiver<Event>,
    _ticket: Ticket,
}

/// Embeds texts through the scheduler, so that they share steps with all other work. `progress` is
/// called with the number of texts done so far.
pub(crate) fn embed(
    py: Python<'_>,
    scheduler: &Scheduler,
    texts: Vec<Encoded>,
    how: &Embed,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Embedded> {
    let count = texts.len();
    let dim = how.dimensions.unwrap_or(scheduler.engine().config().dim);
    let mut order: Vec<usize> = (0..count).collect();
    // Texts of one length keep the threads evenly busy; the longest first, so that memory use peaks
    // at the start.
    order.sort_by_key(|&i| Reverse(texts[i].tokens.len()));
    let vectors = vec![0.0; count * dim];
    let caches = std::iter::repeat_with(|| None).take(count).collect();
    let found = Embedded { vectors, dim, caches };
    let (submitted, under_way, done) = (0, VecDeque::new(), 0);
    let mut run = Run { scheduler, how, texts, order, submitted, under_way, found, done };
    let mut told = 0;
    while run.done < count {
        py.detach(|| run.advance())?;
        py.check_signals()?;
        if let Some(progress) = progress.filter(|_| run.done > told) {
            told = run.done;
            progress.call1((told,))?;
        }
    }
    Ok(run.found)
}

impl Run<'_> {
    /// Submits and takes in what comes, until all is done or a tick is over.
    fn advance(&mut self) -> PyResult<()> {
        let until = Instant::now() + TICK;
        while self.done < self.texts.len() {
            while self.under_way.len() < 2 && self.submitted < self.order.len() {
                if !self.submit()? {
                    break;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let Some(oldest) = self.under_way.front() else {
                // The queue is full of others' requests.
                std::thread::sleep(left);
                break;
            };
            let first = oldest.first;
            match oldest.events.recv_timeout(left) {
                Ok(event) => self.take(first, event)?,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            }
        }
        Ok(())
    }

    /// Submits the next texts. Returns whether the queue had room for them.
    fn submit(&mut self) -> PyResult<bool> {
        let (first, mut end, mut tokens) = (self.submitted, self.submitted, 0);
        while end < self.order.len() && (end == first || tokens < REQUEST_TOKENS) {
            tokens += self.texts[self.order[end]].tokens.len();
            end += 1;
        }
        let texts = self.order[first..end].iter().map(|&i| self.texts[i].clone()).collect();
        let work = Work::Embed { texts, options: self.how.clone() };
        let (sender, events) = channel();
        let sink = move |event| {
            // Whoever has gone has dropped the ticket, too.
            let _ = sender.send(event);
        };
        match self.scheduler.submit_to(work.into(), sink) {
            Ok(ticket) => {
                self.under_way.push_back(UnderWay { first, events, _ticket: ticket });
                self.submitted = end;
                Ok(true)
            }
            Err(Refused::QueueFull { .. }) => Ok(false),
            Err(why) => Err(refused(why)),
        }
    }

    fn take(&mut self, first: usize, event: Event) -> PyResult<()> {
        match event {
            Event::Embedding { index, embedding } => {
                let at = self.order[first + index];
                let dim = self.found.dim;
                self.found.vectors[at * dim..][..dim].copy_from_slice(&embedding.vector);
                self.found.caches[at] = embedding.kv.map(|snapshot| Cache {
                    snapshot,
                    tokens: std::mem::take(&mut self.texts[at].tokens),
                });
                self.done += 1;
            }
            Event::Finished(_) => drop(self.under_way.pop_front()),
            Event::Failed(error) => return Err(raise(error)),
            Event::Prompt(_) | Event::Piece(_) | Event::Ranked(_) => {}
        }
        Ok(())
    }
}
