//! Semantic search over the chunks of a store. The device scores all chunks exactly; if the store
//! has a graph, it scores only the candidates that the graph finds and the chunks that the graph
//! does not cover.

use super::index::is_below;
use super::read::resolve;
use super::store::{Chunk, Graph, Reader, Vectors};
use crate::{Error, Passes, Result};
use gritlm::{Corpus, Embed, Engine};
use gritlm_model::ops::Match;
use gritlm_model::prompt;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// The options of a search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Find {
    /// The most results to return.
    pub top_k: usize,
    /// The instruction that the query is embedded with; empty for none, as in the paper's runs.
    pub instruction: String,
    /// Restricts the search to documents whose metadata match all of these filters.
    pub filters: Vec<Filter>,
    /// Restricts the search to this file, or to the files in this folder.
    pub below: Option<PathBuf>,
    /// Takes the best `4 * top_k` chunks, asks the model whether each is relevant
    /// ([`Engine::rerank`]), and orders them by its answer.
    pub rerank: bool,
    /// Scores all chunks, even if the store has a graph
    /// ([`Writer::set_approximate`](super::Writer::set_approximate)).
    pub exact: bool,
}

gritlm_model::setters!(Find {
    top_k: usize,
    filters: Vec<Filter>,
    below: Option<PathBuf>,
    rerank: bool,
    exact: bool,
} into {
    instruction: String,
});

/// The fewest candidates to take from a graph and score. With 10,000 chunks, 256 candidates miss
/// one in a thousand of the true ten best and take a millisecond, less than embedding the query.
const CANDIDATES: usize = 256;

impl Default for Find {
    fn default() -> Self {
        let (instruction, filters) = (String::new(), Vec::new());
        Self { top_k: 5, instruction, filters, below: None, rerank: false, exact: false }
    }
}

/// A condition `key=value` on metadata: the field `key` is this text, number or boolean, or a
/// list that contains it.
///
/// ```
/// use gritlm_rag::Filter;
/// use serde_json::json;
/// let filter: Filter = "year=2024".parse()?;
/// assert!(filter.matches(&json!({"year": 2024})));
/// assert!(filter.matches(&json!({"year": ["2023", "2024"]})));
/// assert!(!filter.matches(&json!({"month": 2024})));
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The field's name.
    pub key: String,
    /// The field's value, written without quotes.
    pub value: String,
}

impl Filter {
    /// Returns whether `metadata` match the filter.
    pub fn matches(&self, metadata: &Value) -> bool {
        let is = |value: &Value| match value {
            Value::String(text) => *text == self.value,
            Value::Number(number) => number.to_string() == self.value,
            Value::Bool(truth) => truth.to_string() == self.value,
            _ => false,
        };
        match metadata.get(&self.key) {
            Some(Value::Array(values)) => values.iter().any(is),
            Some(value) => is(value),
            None => false,
        }
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.into(), value: value.into() })
            }
            _ => Err(gritlm::Error::Option {
                option: "filter",
                expected: "key=value".into(),
                found: text.into(),
            }
            .into()),
        }
    }
}

/// A search result.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Inner product of the chunk's vector and the query's.
    pub score: f32,
    /// The probability with which the model answers "yes", the chunk is relevant; None without
    /// reranking.
    pub probability: Option<f32>,
    /// The chunk.
    pub chunk: Chunk,
}

/// Searches a snapshot of a store, taken when it is opened.
///
/// ```
/// use gritlm_rag::{Find, Identity, Indexer, Searcher};
/// # let folder = tempfile::tempdir().unwrap();
/// # let (notes, store) = (folder.path().join("notes"), folder.path().join("store"));
/// # std::fs::create_dir(&notes).unwrap();
/// # std::fs::write(notes.join("chess.txt"), "chess for the desktop").unwrap();
///
/// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
/// Indexer::open(&engine, &store, &Identity::of(&engine))?.run(&[notes], &mut |_| Ok(()))?;
/// let searcher = Searcher::open(&engine, &store)?;
/// let found = searcher.search("a board game", &Find::default())?;
/// assert_eq!(found[0].chunk.title, "chess.txt");
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
pub struct Searcher<'a> {
    passes: &'a dyn Passes,
    snapshot: Arc<Snapshot>,
}

/// An opened snapshot of a store, which several searches can share.
pub struct Snapshot {
    reader: Reader,
    vectors: Arc<Vectors>,
    /// All vectors on the device; created by the first search that scores all of them.
    corpus: OnceLock<Corpus>,
    graph: Option<Graph>,
}

impl Snapshot {
    /// Opens a snapshot; see [`Searcher::open`].
    ///
    /// # Errors
    /// As [`Searcher::open`].
    pub fn open(engine: &Engine, folder: &Path) -> Result<Self> {
        let reader = Reader::open(folder)?;
        reader.check(engine, reader.identity().attn)?;
        let vectors = Arc::new(reader.vectors()?);
        let graph = reader.graph()?;
        Ok(Self { reader, vectors, corpus: OnceLock::new(), graph })
    }

    /// Returns all vectors for [`Engine::search_in`] and puts them on the device on the first
    /// call.
    fn corpus(&self, engine: &Engine) -> Result<&Corpus> {
        if let Some(corpus) = self.corpus.get() {
            return Ok(corpus);
        }
        let dim = self.vectors.dim();
        let corpus = match self.vectors.to_f32() {
            Cow::Borrowed(_) => engine.corpus(dim, Mapped(Arc::clone(&self.vectors)))?,
            Cow::Owned(rows) => engine.corpus(dim, rows)?,
        };
        // If two threads create one at the same time, the first is kept.
        Ok(self.corpus.get_or_init(|| corpus))
    }

    /// Returns the reader of the snapshot.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }
}

/// Mapped vectors that are stored in f32 without gaps, so they can be used in place.
struct Mapped(Arc<Vectors>);

impl AsRef<[f32]> for Mapped {
    fn as_ref(&self) -> &[f32] {
        self.0.as_f32().unwrap_or_default()
    }
}

impl<'a> Searcher<'a> {
    /// Opens the store in `folder`, which must be made with this model. Queries are embedded with
    /// the store's `attn`.
    ///
    /// # Errors
    /// When there is no store, it is damaged, or it was made with another model.
    pub fn open(passes: &'a dyn Passes, folder: &Path) -> Result<Self> {
        Ok(Self::on(passes, Arc::new(Snapshot::open(passes.engine(), folder)?)))
    }

    /// Creates a searcher over a snapshot that was opened with this engine.
    pub fn on(passes: &'a dyn Passes, snapshot: Arc<Snapshot>) -> Self {
        Self { passes, snapshot }
    }

    /// Returns the reader of the store.
    pub fn reader(&self) -> &Reader {
        &self.snapshot.reader
    }

    /// Embeds the query and returns the nearest chunks, best first.
    ///
    /// # Errors
    /// When the query is empty or longer than the model's positions, the store is damaged, or the
    /// device fails.
    pub fn search(&self, query: &str, how: &Find) -> Result<Vec<Hit>> {
        let engine = self.passes.engine();
        let positions = engine.config().max_positions;
        let embed = Embed::with_instruction(&how.instruction)
            .attn(Some(self.snapshot.reader.identity().attn))
            .max_length(positions);
        let encoded = engine.encode_texts(&[query], &embed)?;
        let embedding = self.passes.embed_texts(encoded, &embed)?.remove(0);
        if embedding.truncated > 0 {
            let tokens = embedding.tokens + embedding.truncated;
            return Err(gritlm::Error::LongPrompt { tokens, limit: positions }.into());
        }
        self.find(query, &embedding.vector, how)
    }

    /// Same as [`Searcher::search`], with a query vector `(dim)` that is already computed.
    /// Ignores `instruction` of `how`.
    ///
    /// # Errors
    /// As [`Searcher::nearest`]; with reranking, also as [`Engine::rerank`].
    pub fn find(&self, query: &str, vector: &[f32], how: &Find) -> Result<Vec<Hit>> {
        if !how.rerank {
            return self.nearest(vector, how);
        }
        let more = Find { top_k: how.top_k.saturating_mul(4), ..how.clone() };
        let found = self.nearest(vector, &more)?;
        let passages: Vec<String> =
            found.iter().map(|h| prompt::document(&h.chunk.title, &h.chunk.text)).collect();
        let prompts = self.passes.engine().encode_passages(query, &passages)?;
        let ranked = self.passes.rank_prompts(prompts)?;
        let hits = ranked
            .into_iter()
            .take(how.top_k)
            .map(|r| Hit { probability: Some(r.probability), ..found[r.index].clone() });
        Ok(hits.collect())
    }

    /// Returns the chunks whose vectors have the largest inner product with `vector (dim)`, best
    /// first, among all chunks or those that match the filters. If the store has a graph and no
    /// filter is given, the search may miss some chunks; the scores are always exact. Ignores
    /// `instruction` and `rerank` of `how`.
    ///
    /// # Errors
    /// When the vector has another width, the store is damaged, or the device fails.
    pub fn nearest(&self, vector: &[f32], how: &Find) -> Result<Vec<Hit>> {
        let (dim, ids) = (self.snapshot.vectors.dim(), self.snapshot.vectors.ids());
        if vector.len() != dim {
            let problem = format!("expected {dim} numbers, found {}", vector.len());
            return Err(gritlm::Error::Input { what: "vector to search".into(), problem }.into());
        }
        self.snapshot.vectors.check()?;
        let chosen = match self.chosen(how)? {
            None => self.candidates(vector, how)?,
            chosen => chosen,
        };
        if chosen.as_ref().map_or(ids.len(), Vec::len) == 0 || how.top_k == 0 {
            return Ok(Vec::new());
        }
        // Copying a few rows is faster than searching all of them; with many rows the copy is the
        // smallest part of the work.
        let engine = self.passes.engine();
        let best = match &chosen {
            None => engine.search_in(self.snapshot.corpus(engine)?, vector, how.top_k)?,
            Some(rows) => {
                let rows = engine.corpus(dim, self.snapshot.vectors.rows(rows))?;
                engine.search_in(&rows, vector, how.top_k)?
            }
        }
        .remove(0);
        let hits = best.into_iter().map(|Match { index, score }| {
            let row = chosen.as_ref().map_or(index as usize, |chosen| chosen[index as usize]);
            Ok(Hit { score, probability: None, chunk: self.reader().chunk(ids[row])? })
        });
        hits.collect()
    }

    /// Returns the rows that the graph finds and those that it does not cover, in ascending order
    /// as in exact search; None means all rows.
    fn candidates(&self, vector: &[f32], how: &Find) -> Result<Option<Vec<usize>>> {
        let Some(graph) = &self.snapshot.graph else { return Ok(None) };
        let ids = self.snapshot.vectors.ids();
        let row = |id: u64| ids.binary_search(&id).ok();
        let covered = ids.partition_point(|&id| id <= graph.file().through());
        let count = how.top_k.saturating_mul(4).max(CANDIDATES);
        if how.exact || count >= covered {
            return Ok(None);
        }
        let found = graph.nearest(vector, count, |id| row(id).is_some())?;
        let rows = found.into_iter().filter_map(row);
        let mut rows: Vec<usize> = rows.chain(covered..ids.len()).collect();
        rows.sort_unstable();
        Ok(Some(rows))
    }

    /// Returns the rows that match the filters; None means all rows.
    fn chosen(&self, how: &Find) -> Result<Option<Vec<usize>>> {
        if how.filters.is_empty() && how.below.is_none() {
            return Ok(None);
        }
        let below = how.below.as_deref().map(|path| resolve(path).display().to_string());
        let fits = |path: &str, metadata: &Value| {
            below.as_deref().is_none_or(|below| is_below(path, below))
                && how.filters.iter().all(|filter| filter.matches(metadata))
        };
        let documents = self.reader().documents()?.into_iter();
        let ids: HashSet<u64> =
            documents.filter(|d| fits(&d.path, &d.metadata)).flat_map(|d| d.chunks).collect();
        let rows = self.snapshot.vectors.ids().iter().enumerate();
        Ok(Some(rows.filter(|(_, id)| ids.contains(id)).map(|(row, _)| row).collect()))
    }
}
