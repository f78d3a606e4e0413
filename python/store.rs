//! Stores of documents: indexing, searching, answers from cached keys and values.

use crate::engine::Engine;
use crate::error::{GritLMError, raise_rag, refused, unknown};
use crate::job::Job;
use crate::sampling;
use gritlm::schedule::{Request, Work};
use gritlm_rag::{
    Ask, Event, Find, Hit, Identity, Indexer, ParseLimits, Parser, Passage, Positions, Reader,
    Searcher, Source, Stamp, ask, content_hash, verify,
};
use pyo3::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Instant;

/// A folder with documents, their vectors and, where they are kept, their keys and values.
#[pyclass(frozen, module = "gritlm_rs._native")]
pub(crate) struct Store {
    engine: Py<Engine>,
    folder: PathBuf,
    identity: Identity,
    /// How a child process is started that parses HTML and PDF.
    parser: Vec<String>,
}

/// A field whose values have names.
fn named<T: FromStr<Err = gritlm_rag::Error>>(name: &str) -> PyResult<T> {
    name.parse().map_err(raise_rag)
}

/// Keyword arguments of a search; the package's Python files always give all of them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Finding {
    top_k: usize,
    instruction: String,
    filters: Vec<String>,
    below: Option<PathBuf>,
    rerank: bool,
    exact: bool,
}

impl Finding {
    fn find(&self) -> PyResult<Find> {
        let filters = self.filters.iter().map(|filter| named(filter)).collect::<PyResult<_>>()?;
        Ok(Find::default()
            .top_k(self.top_k)
            .instruction(self.instruction.clone())
            .filters(filters)
            .below(self.below.clone())
            .rerank(self.rerank)
            .exact(self.exact))
    }
}

/// Hits as JSON.
fn told(hits: &[Hit]) -> String {
    let one = |hit: &Hit| json!({ "score": hit.score, "probability": hit.probability, "chunk": hit.chunk });
    Value::Array(hits.iter().map(one).collect()).to_string()
}

/// Lets Ctrl-C end a run, and progress be told, ten times a second.
struct Watch<'py> {
    progress: Option<Py<PyAny>>,
    last: Instant,
    raised: &'py Mutex<Option<PyErr>>,
}

impl Watch<'_> {
    fn event(&mut self, event: &Event<'_>) -> gritlm_rag::Result<()> {
        let due = self.last.elapsed() >= crate::job::TICK;
        let told = match event {
            Event::Problem { path, problem } => {
                Some(json!({ "event": "problem", "path": path, "problem": problem }))
            }
            Event::Progress { read, total, done } if due => {
                Some(json!({ "event": "progress", "read": read, "total": total, "done": done }))
            }
            Event::Graph { done, total } if due => {
                Some(json!({ "event": "graph", "done": done, "total": total }))
            }
            _ => None,
        };
        if told.is_none() && !due {
            return Ok(());
        }
        self.last = Instant::now();
        let called = Python::attach(|py| {
            py.check_signals()?;
            match (&self.progress, told) {
                (Some(progress), Some(told)) => progress.call1(py, (told.to_string(),)).map(drop),
                _ => Ok(()),
            }
        });
        called.map_err(|raised| {
            if let Ok(mut slot) = self.raised.lock() {
                *slot = Some(raised);
            }
            gritlm::Error::Cancelled.into()
        })
    }
}

impl Store {
    /// Opens the store for writing and does `work` with it.
    fn write<T: Send>(
        &self,
        py: Python<'_>,
        progress: Option<Py<PyAny>>,
        work: impl FnOnce(
            &mut Indexer<'_>,
            &mut dyn FnMut(Event<'_>) -> gritlm_rag::Result<()>,
        ) -> gritlm_rag::Result<T>
        + Send,
    ) -> PyResult<T> {
        let raised = Mutex::new(None);
        let passes = self.engine.get().passes()?;
        let done = py.detach(|| {
            let mut indexer = Indexer::open(&passes, &self.folder, &self.identity)?;
            if let Some((program, arguments)) = self.parser.split_first() {
                let mut command = Command::new(program);
                command.args(arguments);
                indexer.set_parser(Parser::in_child(command, ParseLimits::default()));
            }
            let mut watch = Watch { progress, last: Instant::now(), raised: &raised };
            work(&mut indexer, &mut |event| watch.event(&event))
        });
        match raised.into_inner().ok().flatten() {
            Some(raised) => Err(raised),
            None => done.map_err(raise_rag),
        }
    }
}

fn text<T: serde::Serialize>(of: &T) -> PyResult<String> {
    serde_json::to_string(of).map_err(|e| GritLMError::new_err(e.to_string()))
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (engine, folder, chunk, overlap, cache, vectors, kv, parser))]
    #[expect(clippy::too_many_arguments, reason = "as many as a store has properties")]
    fn new(
        engine: Py<Engine>,
        folder: PathBuf,
        chunk: usize,
        overlap: usize,
        cache: &str,
        vectors: &str,
        kv: &str,
        parser: Vec<String>,
    ) -> PyResult<Self> {
        let identity = Identity {
            chunk,
            overlap,
            cache: named(cache)?,
            vectors: named(vectors)?,
            kv: named(kv)?,
            ..Identity::of(engine.get().engine())
        };
        Ok(Self { engine, folder, identity, parser })
    }

    /// Brings the store up to date with files and folders; returns what was done as JSON.
    fn index(
        &self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        text(&self.write(py, progress, |indexer, watch| indexer.run(&paths, watch))?)
    }

    /// Stores documents `(id, title, text, metadata as JSON)` that are new or have changed.
    fn put(
        &self,
        py: Python<'_>,
        documents: Vec<(String, String, String, String)>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let source = |(path, title, text, metadata): (String, String, String, String)| {
            let metadata: Value = serde_json::from_str(&metadata)
                .map_err(|e| unknown("metadata", "JSON", &e.to_string()))?;
            let all = format!("{title}\0{text}\0{metadata}");
            let stamp = Stamp { hash: content_hash(all.as_bytes()), ..Stamp::default() };
            Ok(Source { path, title, text, metadata, stamp })
        };
        let sources = documents.into_iter().map(source).collect::<PyResult<Vec<Source>>>()?;
        text(&self.write(py, progress, |indexer, watch| indexer.put(sources, watch))?)
    }

    /// Removes a document; returns whether it was there.
    fn remove(&self, py: Python<'_>, path: &str) -> PyResult<bool> {
        self.write(py, None, |indexer, _| indexer.writer().remove(path))
    }

    /// Chunks nearest to a query as JSON.
    fn search(&self, py: Python<'_>, query: &str, finding: Finding) -> PyResult<String> {
        let find = finding.find()?;
        let passes = self.engine.get().passes()?;
        let hits = py.detach(|| Searcher::open(&passes, &self.folder)?.search(query, &find));
        Ok(told(&hits.map_err(raise_rag)?))
    }

    /// Finds documents and queues the answer from them. Returns the job, the hits and what was
    /// computed and reused as JSON.
    #[expect(clippy::too_many_arguments, reason = "as many as an answer has options")]
    fn ask(
        &self,
        py: Python<'_>,
        query: &str,
        finding: Finding,
        mode: &str,
        as_published: bool,
        answer_prefix: &str,
        options: sampling::Options,
    ) -> PyResult<(Job, String, String)> {
        let engine = self.engine.get();
        let passes = engine.passes()?;
        let sampling = options.sampling(py, engine.engine())?;
        let find = finding.find()?;
        let positions = if as_published { Positions::AsPublished } else { Positions::Turned };
        let how = Ask::default()
            .mode(named(mode)?)
            .positions(positions)
            .instruction(finding.instruction.clone())
            .answer_prefix(answer_prefix);
        let (prepared, hits) = py
            .detach(|| {
                let searcher = Searcher::open(&passes, &self.folder)?;
                how.mode.check(searcher.reader().identity())?;
                let asked = ask(&passes, query, &how)?;
                let hits = searcher.find(query, asked.vector(), &find)?;
                let passage = |hit: &Hit| Passage::of(searcher.reader(), &hit.chunk, how.mode);
                let passages = hits.iter().map(passage).collect::<gritlm_rag::Result<Vec<_>>>()?;
                gritlm_rag::Result::Ok((asked.prepare(&passes, &passages)?, hits))
            })
            .map_err(raise_rag)?;
        let usage = json!({
            "tokens_computed": prepared.usage.tokens_computed,
            "tokens_reused": prepared.usage.tokens_reused,
            "bytes_read": prepared.usage.bytes_read,
            "recomputed": prepared.usage.recomputed,
        });
        let count = prepared.prompt.len();
        let work = Work::Generate { prompt: prepared.prompt, sampling, past: prepared.past };
        let job = Job::submit(passes.scheduler, Request::from(work), count).map_err(refused)?;
        Ok((job, told(&hits), usage.to_string()))
    }

    /// What the store holds as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = py.detach(|| Reader::open(&self.folder)?.status());
        text(&status.map_err(raise_rag)?)
    }

    /// Problems that a check of every record has found.
    fn verify(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let report = py.detach(|| verify(&self.folder)).map_err(raise_rag)?;
        Ok(report.problems.iter().map(ToString::to_string).collect())
    }

    /// Keys and values of a chunk, if they are kept.
    fn cache(&self, py: Python<'_>, chunk: u64) -> PyResult<Option<crate::cache::Cache>> {
        let found = py.detach(|| Reader::open(&self.folder)?.kv(chunk)).map_err(raise_rag)?;
        Ok(found.map(|snapshot| crate::cache::Cache { snapshot, tokens: Vec::new() }))
    }
}

/// Parses documents for another process, which asks on stdin, until that closes it.
#[pyfunction]
pub(crate) fn serve_parser(py: Python<'_>) -> PyResult<()> {
    #[cfg(unix)]
    return py.detach(gritlm_rag::serve_parser).map_err(raise_rag);
    #[cfg(not(unix))]
    {
        let _ = py;
        Err(GritLMError::new_err("documents are parsed in the process itself on this system"))
    }
}
