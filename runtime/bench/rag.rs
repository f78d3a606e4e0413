//! `bench rag`: measures what reusing the KV caches of embedding passes saves, as in the table of
//! the GRIT paper: a query of one token with a long document, and a long query with a document of
//! one token.
//!
//! * `first token`: from the question to the first token of the answer: the query's embedding
//!   pass, loading caches from the store, prefilling the rest of the prompt. The search itself is
//!   left out.
//! * `after search`: the same without the embedding pass, which every mode needs.
//! * `N tokens`: from the question to the last of N tokens.
//!
//! Each figure with a cache has as its peer the same question without one, measured in the same
//! run, with the prompt in the same order. Nothing is truncated; the paper's own figures use
//! caches that end at 512 tokens, whatever the length of the text.
//!
//! `load cache` reads a document's keys and values from the store, mapped and verified against
//! their checksum. Its limit is reading as many bytes of a plain file, which are in memory (warm)
//! or on disk (cold).

use super::load::forget;
use super::model::short_name;
use super::record::{Peer, Record, Row};
use super::shape;
use super::time::{Times, repeated};
use crate::{Error, Result};
use gritlm::{Embedding, Engine, Sampling};
use gritlm_rag::{
    Ask, CacheKind, Identity, Mode, NewChunk, NewDocument, Order, Passage, Reader, Stamp, Stored,
    Usage, Writer,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct RagPlan {
    /// Tokens of the long side, without those of the prompt format.
    pub lengths: Vec<usize>,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Repeats of each figure; fewer if they would take longer than `seconds`.
    pub repeats: u32,
    /// Seconds per figure; at least one repeat is always taken.
    pub seconds: f64,
    /// Folder for the store; it is created and removed.
    pub folder: PathBuf,
}

impl RagPlan {
    /// Returns the full plan, with the paper's lengths.
    pub fn new(folder: PathBuf, repeats: u32) -> Self {
        let lengths = vec![250, 500, 1000, 2000, 4000];
        Self { lengths, tokens: 16, repeats, seconds: 20.0, folder }
    }

    /// Returns a plan with few and small figures.
    pub fn quick(folder: PathBuf, repeats: u32) -> Self {
        Self { lengths: vec![64], tokens: 4, seconds: 2.0, ..Self::new(folder, repeats) }
    }
}

/// Adds the figures of the plan for a device, named `device`, to the record, and a line for each
/// that cannot be measured. `progress` receives the number of figures done and their total; an
/// error that it returns ends the measurement.
///
/// # Errors
/// The error of `progress`; when the folder exists or cannot be written.
pub fn rag(
    engine: &Engine,
    device: &str,
    plan: &RagPlan,
    record: &mut Record,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let positions = engine.config().max_positions;
    let (lengths, long): (Vec<usize>, Vec<usize>) =
        plan.lengths.iter().partition(|&&length| length + AROUND + plan.tokens <= positions);
    record.missing.extend(long.into_iter().map(|length| {
        format!("{device} answer, {length} tokens: the model has {positions} positions")
    }));
    let plan = &RagPlan { lengths, ..plan.clone() };
    fs::create_dir(&plan.folder).map_err(Error::io(&plan.folder))?;
    let folder = Removed(&plan.folder);
    let bench = Bench::new(engine, device, plan, folder.0)?;
    let (all, mut done) = (plan.lengths.len() as u64 * 14, 0);
    for (n, &length) in plan.lengths.iter().enumerate() {
        for (query, document) in [(1, length), (length, 1)] {
            let mut plain = Vec::new();
            for mode in Mode::ALL {
                let id = if document == 1 { bench.ids[0] } else { bench.ids[n + 1] };
                match bench.ask(mode, query, document, id) {
                    Ok(figures) => bench.add(mode, (query, document), figures, &mut plain, record),
                    Err(problem) => {
                        let shape = bench.shape(mode, query, document);
                        record.missing.push(format!("{device} answer, {shape}: {problem}"));
                    }
                }
                done += 1;
                progress(done, all)?;
            }
        }
        for (heat, cold) in [("warm", false), ("cold", true)] {
            match bench.load(bench.ids[n + 1], length, heat, cold) {
                Ok(row) => record.rows.push(row),
                Err(problem) => {
                    let name = format!("{device} load cache {heat}, {length} tokens");
                    record.missing.push(format!("{name}: {problem}"));
                }
            }
            done += 1;
            progress(done, all)?;
        }
    }
    Ok(())
}

/// Upper bound of the tokens of a prompt besides its long side; the formats of the demo model and
/// of Mistral take about 100.
const AROUND: usize = 128;

/// A folder that is removed when this is dropped.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // A failure is ignored: whoever cleans the parent folder removes the rest.
        let _ = fs::remove_dir_all(self.0);
    }
}

struct Bench<'a> {
    engine: &'a Engine,
    device: &'a str,
    plan: &'a RagPlan,
    folder: PathBuf,
    name: String,
    /// The document of one token, then those of each length.
    ids: Vec<u64>,
}

/// Times of every repeat, and the token counts of one of them.
struct Figures {
    first: Times,
    after: Times,
    total: Times,
    usage: Usage,
}

impl<'a> Bench<'a> {
    /// Indexes a document of each length.
    fn new(engine: &'a Engine, device: &'a str, plan: &'a RagPlan, at: &Path) -> Result<Self> {
        let folder = at.join("store");
        let identity = Identity { cache: CacheKind::Doc, ..Identity::of(engine) };
        let mut writer = Writer::open(&folder, &identity)?;
        for tokens in [1].iter().chain(&plan.lengths) {
            let text = text(engine, *tokens)?;
            let Embedding { vector, tokens, kv, .. } = Ask::default().document(engine, &text)?;
            let tokens = tokens as u32;
            let document = NewDocument {
                path: tokens.to_string(),
                title: String::new(),
                stamp: Stamp::default(),
                metadata: serde_json::Value::Null,
            };
            writer.put(&document, &[NewChunk { text, tokens, vector, kv }])?;
        }
        drop(writer);
        // Ids ascend in the order of writing.
        let ids = Reader::open(&folder)?.vectors()?.ids().to_vec();
        let name = short_name(engine.name());
        Ok(Self { engine, device, plan, folder, name, ids })
    }

    /// Opens the store anew: the system does not drop pages that are still mapped.
    fn store(&self) -> Result<Reader> {
        Ok(Reader::open(&self.folder)?)
    }

    fn shape(&self, mode: Mode, query: usize, document: usize) -> String {
        let cache = match mode {
            Mode::Plain(Order::QueryDoc) => "none (query-doc)".into(),
            Mode::Plain(Order::DocQuery) => "none (doc-query)".into(),
            cached => cached.to_string(),
        };
        shape::of(&shape::answer(&cache, query as u64, document as u64), &self.name)
    }

    /// Asks and answers repeatedly.
    fn ask(&self, mode: Mode, query: usize, document: usize, id: u64) -> Result<Figures> {
        let (query, text) = (text(self.engine, query)?, text(self.engine, document)?);
        let how = Ask::default().mode(mode);
        let sampling = Sampling::greedy()
            .max_tokens(self.plan.tokens)
            // Random weights may end an answer at once.
            .ignore_eos(true);
        let (mut first, mut after, mut usage) = (Vec::new(), Vec::new(), Usage::default());
        let (store, warm) = (self.store()?, u32::from(self.plan.repeats > 1));
        let total = repeated(self.plan.repeats, warm, self.plan.seconds, || {
            let asked = gritlm_rag::ask(self.engine, &query, &how)?;
            let mut passage = Passage { text: text.clone(), ..Passage::default() };
            if mode.reuses_documents() {
                passage.kv = Stored::read(&store, id)?;
            }
            let mut answer = asked.answer(self.engine, &[passage], &sampling)?;
            for piece in &mut answer {
                piece?;
            }
            usage = answer.usage().clone();
            first.push(usage.times.first_token.as_secs_f64() * 1e6);
            after.push((usage.times.load + usage.times.prefill).as_secs_f64() * 1e6);
            Ok(usage.times.total().as_secs_f64())
        })?;
        let counted = |mut all: Vec<f64>| Times::new(all.split_off(warm as usize));
        Ok(Figures { first: counted(first), after: counted(after), total, usage })
    }

    /// Adds three rows; a cached mode gets as peers the times of its prompt order without cache.
    fn add(
        &self,
        mode: Mode,
        (query, document): (usize, usize),
        figures: Figures,
        plain: &mut Vec<(Order, [f64; 3])>,
        record: &mut Record,
    ) {
        let Figures { first, after, total, usage } = figures;
        let medians = [&first, &after, &total].map(Times::median);
        let order = match mode {
            Mode::Plain(order) => {
                plain.push((order, medians));
                None
            }
            Mode::Query | Mode::QueryDoc => Some(Order::QueryDoc),
            Mode::Doc | Mode::DocQuery => Some(Order::DocQuery),
        };
        let plain = order.and_then(|order| plain.iter().find(|(o, _)| *o == order));
        let tokens = format!("{} tokens", self.plan.tokens);
        let ops = ["first token", "after search", &tokens];
        let note = format!(
            "{} computed, {} reused, {:.2} MB read",
            usage.tokens_computed,
            usage.tokens_reused,
            usage.bytes_read as f64 / 1e6
        );
        for (i, (op, times)) in ops.into_iter().zip([first, after, total]).enumerate() {
            let (op, shape) = (op.to_string(), self.shape(mode, query, document));
            record.peers.extend(plain.map(|(_, us)| Peer {
                peer: "without cache".into(),
                device: self.device.into(),
                op: op.clone(),
                shape: shape.clone(),
                us: us[i],
            }));
            let note = if i == 0 { note.clone() } else { String::new() };
            record.rows.push(Row { note, ..self.row(op, shape, &times) });
        }
    }

    /// Times loading and verifying a document's keys and values, against reading a plain file of
    /// as many bytes.
    fn load(&self, id: u64, length: usize, heat: &str, cold: bool) -> Result<Row> {
        let plain = self.folder.with_file_name("plain");
        let bytes = Stored::read(&self.store()?, id)?.map_or(0, |kv| kv.bytes);
        let file = vec![1u8; bytes as usize];
        fs::write(&plain, file).map_err(Error::io(&plain))?;
        let repeat = |files: &[PathBuf], run: &mut dyn FnMut(&Reader) -> Result<()>| {
            repeated(self.plan.repeats, u32::from(!cold), self.plan.seconds, || {
                let store = self.store()?;
                if cold {
                    files.iter().try_for_each(|path| forget(path))?;
                }
                let started = Instant::now();
                run(&store)?;
                Ok(started.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
            })
        };
        let limit = repeat(std::slice::from_ref(&plain), &mut |_| {
            fs::read(&plain).map(drop).map_err(Error::io(&plain))
        })?;
        let times = repeat(&self.segments()?, &mut |store| Ok(Stored::read(store, id).map(drop)?))?;
        let shape = shape::of(&format!("{length} tokens"), &self.name);
        Ok(Row {
            bytes: bytes as f64,
            limit: "reading".into(),
            share: limit.best() / times.median(),
            ..self.row(format!("load cache {heat}"), shape, &times)
        })
    }

    /// Returns the store's large files, which hold the caches.
    fn segments(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
                let path = entry.map_err(Error::io(&folder))?.path();
                let about = path.metadata().map_err(Error::io(&path))?;
                match about.is_dir() {
                    true => folders.push(path),
                    false if about.len() > 1 << 20 => all.push(path),
                    false => {}
                }
            }
        }
        Ok(all)
    }

    fn row(&self, op: String, shape: String, times: &Times) -> Row {
        Row {
            device: self.device.into(),
            suite: "rag".into(),
            op,
            shape,
            us: times.median(),
            spread: times.spread(),
            repeats: times.count(),
            ..Row::default()
        }
    }
}

/// Returns a text of `tokens` tokens, as nearly as the tokenizer allows.
fn text(engine: &Engine, tokens: usize) -> Result<String> {
    let mut text = "a".to_string();
    let count = |text: &str| Ok::<_, Error>(engine.tokenizer().encode_continued(text)?.len());
    let (one, two) = (count("a")?, count("a a")?);
    // How many tokens a further word takes depends on the tokenizer.
    let words = tokens.saturating_sub(one) / (two - one).max(1);
    text += &" a".repeat(words);
    Ok(text)
}
