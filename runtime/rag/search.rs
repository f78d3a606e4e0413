//! Chunks of a store by meaning: exact, on the device.

use super::index::is_below;
use super::read::resolve;
use super::store::{Chunk, Reader, Vectors};
use crate::{Embed, Engine, Error, Result};
use gritlm_model::prompt;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

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
}

impl Default for Find {
    fn default() -> Self {
        let (instruction, filters) = (String::new(), Vec::new());
        Self { top_k: 5, instruction, filters, below: None, rerank: false }
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
    vectors: Vectors,
    /// The vectors in f32, where they are stored otherwise.
    rows: Option<Vec<f32>>,
}

impl Shelf {
    /// As [`Searcher::open`].
    pub(crate) fn open(engine: &Engine, folder: &Path) -> Result<Self> {
        let reader = Reader::open(folder)?;
        reader.check(engine, reader.identity().attn)?;
        let vectors = reader.vectors()?;
        let rows = match vectors.to_f32() {
            Cow::Borrowed(_) => None,
            Cow::Owned(rows) => Some(rows),
        };
        Ok(Self { reader, vectors, rows })
    }

    /// The store.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
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

    /// The chunks whose vectors have the largest inner product with `vector (dim)`, best first.
    /// `instruction` and `rerank` of `how` mean nothing here.
    ///
    /// # Errors
    /// When the vector has another width, the store is damaged, or the device refuses.
    pub fn nearest(&self, vector: &[f32], how: &Find) -> Result<Vec<Hit>> {
        let (dim, ids) = (self.shelf.vectors.dim(), self.shelf.vectors.ids());
        if vector.len() != dim {
            let problem = format!("expected {dim} numbers, found {}", vector.len());
            return Err(Error::Input { what: "vector to search".into(), problem });
        }
        let all = match &self.shelf.rows {
            Some(rows) => Cow::Borrowed(rows.as_slice()),
            None => self.shelf.vectors.to_f32(),
        };
        // A few rows are copied sooner than all are searched; of many, the copy is the least.
        let chosen = self.chosen(how)?;
        let rows: Cow<'_, [f32]> = match &chosen {
            None => all,
            Some(chosen) => chosen.iter().flat_map(|&r| &all[r * dim..][..dim]).copied().collect(),
        };
        if rows.is_empty() || how.top_k == 0 {
            return Ok(Vec::new());
        }
        let best = self.engine.search(dim, vector, &rows, how.top_k)?.remove(0);
        let hits = best.into_iter().map(|(row, score)| {
            let row = chosen.as_ref().map_or(row as usize, |chosen| chosen[row as usize]);
            Ok(Hit { score, probability: None, chunk: self.reader().chunk(ids[row])? })
        });
        hits.collect()
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
