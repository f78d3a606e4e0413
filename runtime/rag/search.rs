//! Chunks of a store by meaning. All are scored on the device; in a store with a graph only those
//! that the graph finds, and those that it does not cover.

use super::index::is_below;
use super::read::resolve;
use super::store::{Chunk, Graph, Reader, Vectors};
use crate::{Corpus, Embed, Engine, Error, Result};
use gritlm_model::prompt;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// What to look for, apart from the meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Find {
    /// Results, at most.
    pub top_k: usize,
    /// What the query's vector is for; empty for none, as in the paper's runs.
    pub instruction: String,
    /// Only documents whose metadata meet all of these.
    pub filters: Vec<Filter>,
    /// Only this file, or those in this folder.
    pub below: Option<PathBuf>,
    /// Ask the model of each of the best four times as many whether it is relevant
    /// ([`Engine::rerank`]), and order by that.
    pub rerank: bool,
    /// Score all chunks, also where the store has a graph
    /// ([`Writer::set_approximate`](super::Writer::set_approximate)).
    pub exact: bool,
}

/// What is taken from a graph and scored, at least: with 10,000 chunks one in a thousand of the ten
/// best is missed so, in a millisecond, which is less than embedding the query takes.
const CANDIDATES: usize = 256;

impl Default for Find {
    fn default() -> Self {
        let (instruction, filters) = (String::new(), Vec::new());
        Self { top_k: 5, instruction, filters, below: None, rerank: false, exact: false }
    }
}

/// `key=value`: a field of the metadata is this text, number or truth value, or a list with it.
///
/// ```
/// use gritlm::rag::Filter;
/// use serde_json::json;
/// let filter: Filter = "year=2024".parse()?;
/// assert!(filter.matches(&json!({"year": 2024})));
/// assert!(filter.matches(&json!({"year": ["2023", "2024"]})));
/// assert!(!filter.matches(&json!({"month": 2024})));
/// # Ok::<(), gritlm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The field's name.
    pub key: String,
    /// Its value, as it is written without quotes.
    pub value: String,
}

impl Filter {
    /// Whether metadata meet it.
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
            _ => Err(Error::Option {
                option: "--filter",
                expected: "key=value".into(),
                found: text.into(),
            }),
        }
    }
}

/// A chunk that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Inner product of its vector and the query's.
    pub score: f32,
    /// Where asked to rerank, the model's probability of "yes": it is relevant.
    pub probability: Option<f32>,
    /// The chunk.
    pub chunk: Chunk,
}

/// Searches a store, as it is when it is opened.
///
/// ```
/// use gritlm::rag::{Find, Identity, Indexer, Searcher};
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
/// # Ok::<(), gritlm::Error>(())
/// ```
pub struct Searcher<'a> {
    engine: &'a Engine,
    shelf: Arc<Shelf>,
}

/// What is searched, without the engine: several searches can share it.
pub(crate) struct Shelf {
    reader: Reader,
    vectors: Arc<Vectors>,
    /// All vectors, on the device from the first search through all of them on.
    corpus: OnceLock<Corpus>,
    graph: Option<Graph>,
}

impl Shelf {
    /// As [`Searcher::open`].
    pub(crate) fn open(engine: &Engine, folder: &Path) -> Result<Self> {
        let reader = Reader::open(folder)?;
        reader.check(engine, reader.identity().attn)?;
        let vectors = Arc::new(reader.vectors()?);
        let graph = reader.graph()?;
        Ok(Self { reader, vectors, corpus: OnceLock::new(), graph })
    }

    /// All vectors, for [`Engine::search_in`].
    fn corpus(&self, engine: &Engine) -> Result<&Corpus> {
        if let Some(corpus) = self.corpus.get() {
            return Ok(corpus);
        }
        let dim = self.vectors.dim();
        let corpus = match self.vectors.to_f32() {
            Cow::Borrowed(_) => engine.corpus(dim, Mapped(Arc::clone(&self.vectors)))?,
            Cow::Owned(rows) => engine.corpus(dim, rows)?,
        };
        // Of two at once one is enough.
        Ok(self.corpus.get_or_init(|| corpus))
    }

    /// The store.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }
}

/// Vectors whose file is in f32 and without gaps.
struct Mapped(Arc<Vectors>);

impl AsRef<[f32]> for Mapped {
    fn as_ref(&self) -> &[f32] {
        self.0.as_f32().unwrap_or_default()
    }
}

impl<'a> Searcher<'a> {
    /// Opens the store in `folder`, made with this model; queries are embedded with the store's
    /// `attn`.
    ///
    /// # Errors
    /// When there is no store, it is damaged, or it is another model's.
    pub fn open(engine: &'a Engine, folder: &Path) -> Result<Self> {
        Ok(Self::on(engine, Arc::new(Shelf::open(engine, folder)?)))
    }

    /// Searches what was opened with this engine.
    pub(crate) fn on(engine: &'a Engine, shelf: Arc<Shelf>) -> Self {
        Self { engine, shelf }
    }

    /// The store.
    pub fn reader(&self) -> &Reader {
        &self.shelf.reader
    }

    /// The chunks whose meaning is nearest to the query's, best first.
    ///
    /// # Errors
    /// When the query is empty or longer than the model's positions, the store is damaged, or the
    /// device refuses.
    pub fn search(&self, query: &str, how: &Find) -> Result<Vec<Hit>> {
        let positions = self.engine.config().max_positions;
        let embed = Embed {
            attn: Some(self.shelf.reader.identity().attn),
            max_length: positions,
            ..Embed::with_instruction(&how.instruction)
        };
        let embedding = self.engine.embed(&[query], &embed)?.remove(0);
        if embedding.truncated > 0 {
            let tokens = embedding.tokens + embedding.truncated;
            return Err(Error::LongPrompt { tokens, limit: positions });
        }
        self.find(query, &embedding.vector, how)
    }

    /// [`Searcher::search`] of a query whose vector `(dim)` is known. `instruction` of `how` means
    /// nothing here.
    ///
    /// # Errors
    /// As [`Searcher::nearest`]; to rerank, also as [`Engine::rerank`].
    pub fn find(&self, query: &str, vector: &[f32], how: &Find) -> Result<Vec<Hit>> {
        if !how.rerank {
            return self.nearest(vector, how);
        }
        let more = Find { top_k: how.top_k.saturating_mul(4), ..how.clone() };
        let found = self.nearest(vector, &more)?;
        let passages: Vec<String> =
            found.iter().map(|h| prompt::document(&h.chunk.title, &h.chunk.text)).collect();
        let ranked = self.engine.rerank(query, &passages)?;
        let hits = ranked
            .into_iter()
            .take(how.top_k)
            .map(|r| Hit { probability: Some(r.probability), ..found[r.index].clone() });
        Ok(hits.collect())
    }

    /// The chunks whose vectors have the largest inner product with `vector (dim)`, best first: of
    /// all chunks, or of those that filters leave. Where the store has a graph, and there is no
    /// filter, it may miss some; scores are those of exact search all the same. `instruction` and
    /// `rerank` of `how` mean nothing here.
    ///
    /// # Errors
    /// When the vector has another width, the store is damaged, or the device refuses.
    pub fn nearest(&self, vector: &[f32], how: &Find) -> Result<Vec<Hit>> {
        let (dim, ids) = (self.shelf.vectors.dim(), self.shelf.vectors.ids());
        if vector.len() != dim {
            let problem = format!("expected {dim} numbers, found {}", vector.len());
            return Err(Error::Input { what: "vector to search".into(), problem });
        }
        self.shelf.vectors.check()?;
        let chosen = match self.chosen(how)? {
            None => self.candidates(vector, how)?,
            chosen => chosen,
        };
        if chosen.as_ref().map_or(ids.len(), Vec::len) == 0 || how.top_k == 0 {
            return Ok(Vec::new());
        }
        // A few rows are copied sooner than all are searched; of many, the copy is the least.
        let best = match &chosen {
            None => self.engine.search_in(self.shelf.corpus(self.engine)?, vector, how.top_k)?,
            Some(rows) => {
                let rows = self.engine.corpus(dim, self.shelf.vectors.rows(rows))?;
                self.engine.search_in(&rows, vector, how.top_k)?
            }
        }
        .remove(0);
        let hits = best.into_iter().map(|(row, score)| {
            let row = chosen.as_ref().map_or(row as usize, |chosen| chosen[row as usize]);
            Ok(Hit { score, probability: None, chunk: self.reader().chunk(ids[row])? })
        });
        hits.collect()
    }

    /// The rows that the graph finds and those that are not in it, ascending, as exact search has
    /// them; None for all.
    fn candidates(&self, vector: &[f32], how: &Find) -> Result<Option<Vec<usize>>> {
        let Some(graph) = &self.shelf.graph else { return Ok(None) };
        let ids = self.shelf.vectors.ids();
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

    /// The rows that filters leave; None for all.
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
        let rows = self.shelf.vectors.ids().iter().enumerate();
        Ok(Some(rows.filter(|(_, id)| ids.contains(id)).map(|(row, _)| row).collect()))
    }
}
