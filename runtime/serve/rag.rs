//! The store given by `--store`, and `/v1/rag/index`.
//!
//! Requests to the store bypass the scheduler and run passes of their own, which the model's mutex
//! places between the scheduler's steps. Each of these passes delays all other requests, so few
//! requests to the store run at once: [`ASKING`] questions and one that indexes. Further ones
//! wait, of each kind at most as many as may wait for the scheduler. They take KV pages from the
//! scheduler's pool. Prefixes that the scheduler keeps for later prompts are evicted for them;
//! requests under way are not. If that frees too few pages, the answer is 429 at once.
//!
//! The store is locked only while documents are being added. `gritlm index` can therefore be used
//! beside the server, and the next question sees what it commits.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use crate::rag::{Event, Indexer, MAX_NAME, Shelf, Source, Stamp, content_hash};
use crate::schedule::Scheduler;
use crate::{Engine, Error, Result};
use axum::Json;
use gritlm_model::ops::PAGE;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;

/// Questions answered at once: while one reads from disk or searches, another computes.
const ASKING: usize = 2;

/// The store, and the queues for its use.
pub(super) struct Store {
    folder: PathBuf,
    shelf: Mutex<Arc<Shelf>>,
    pub(super) asking: Turns,
    indexing: Turns,
}

impl Store {
    /// Opens the store; `waiting` requests of each kind may wait.
    pub(super) fn open(engine: &Engine, folder: PathBuf, waiting: usize) -> Result<Self> {
        let shelf = Mutex::new(Arc::new(Shelf::open(engine, &folder)?));
        let (asking, indexing) = (Turns::new(ASKING, waiting), Turns::new(1, waiting));
        Ok(Self { folder, shelf, asking, indexing })
    }

    /// Returns the store as it is now.
    pub(super) fn shelf(&self, engine: &Engine) -> Result<Arc<Shelf>> {
        // The lock is held while the store is reopened, as the next question would only do the
        // same. The guarded value is consistent at any time, so a poisoned lock can be used.
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.reader().is_stale() {
            *shelf = Arc::new(Shelf::open(engine, &self.folder)?);
        }
        Ok(Arc::clone(&shelf))
    }
}

/// Limits how many requests run at once, and how many wait.
pub(super) struct Turns {
    at_once: Arc<Semaphore>,
    all: Arc<Semaphore>,
    waiting: usize,
}

/// A permit to run, and a place among all that run or wait.
pub(super) type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Turns {
    fn new(at_once: usize, waiting: usize) -> Self {
        let all = at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        let [at_once, all] = [at_once, all].map(|n| Arc::new(Semaphore::new(n)));
        Self { at_once, all, waiting }
    }

    /// Waits for a turn. If the future is dropped meanwhile, the place is given up.
    pub(super) async fn next(&self) -> Result<Turn, Failure> {
        let place = Arc::clone(&self.all).try_acquire_owned();
        let place = place.map_err(|_| Failure::many_wait(self.waiting))?;
        // Neither semaphore is ever closed.
        let turn = Arc::clone(&self.at_once).acquire_owned().await;
        Ok((turn.map_err(|_| Failure::lost())?, place))
    }
}

impl Loaded {
    pub(super) fn store(&self) -> Result<Arc<Store>, Failure> {
        self.app.store.get().cloned().ok_or_else(Failure::no_store)
    }
}

/// Documents to add to the store.
#[derive(Deserialize, ToSchema)]
pub(super) struct IndexRequest {
    /// The model's name, as in `/v1/models`.
    model: Option<String>,
    documents: Vec<NewDocument>,
}

/// A document.
#[derive(Deserialize, Serialize, ToSchema)]
pub(super) struct NewDocument {
    /// Identifies the document. A stored document with this path is replaced if anything differs.
    /// `gritlm index` removes the document if its path is below one that the command is given. At
    /// most 4096 bytes.
    #[schema(min_length = 1)]
    path: String,
    /// The document's text; it is cut into chunks with the store's settings.
    text: String,
    /// Put in front of each chunk. At most 4096 bytes.
    #[serde(default)]
    title: String,
    /// The fields that filters are compared with.
    metadata: Option<Map<String, Value>>,
}

/// The result of indexing. A request that fails midway has stored the documents before the
/// failure; if it is repeated, it skips them.
#[derive(Serialize, ToSchema)]
pub(super) struct IndexResponse {
    /// Documents that are new or have changed.
    indexed: u64,
    /// Documents that have not changed.
    unchanged: u64,
    /// Chunks embedded.
    chunks: u64,
    /// Tokens embedded.
    tokens: u64,
    /// Documents that could not be cut into chunks; what was stored under their paths stays.
    failed: Vec<Failed>,
}

/// A document that was not stored.
#[derive(Serialize, ToSchema)]
struct Failed {
    path: String,
    /// What is wrong with it.
    problem: String,
}

/// Adds documents to the store given by `--store`.
///
/// The documents are durable when the answer comes, and the next question finds them. Without a
/// store the answer is 404; while another process writes to the store, it is 503.
#[utoipa::path(post, path = "/v1/rag/index", tag = "rag", request_body = IndexRequest,
    responses((status = 200, body = IndexResponse), Failures))]
pub(super) async fn index(
    loaded: Loaded,
    Body(request): Body<IndexRequest>,
) -> Result<Json<IndexResponse>, Failure> {
    loaded.check_model(request.model.as_deref())?;
    let store = loaded.store()?;
    let limit = loaded.app.settings.max_inputs;
    Failure::check_inputs("documents", request.documents.len(), limit)?;
    let mut paths = HashSet::new();
    for (i, document) in request.documents.iter().enumerate() {
        let NewDocument { path, title, .. } = document;
        for (field, text) in [("path", path), ("title", title)] {
            if text.len() > MAX_NAME {
                let problem = format!("expected at most {MAX_NAME} bytes, found {}", text.len());
                return Err(Failure::field(format!("documents[{i}].{field}"), problem));
            }
        }
        let problem = match path.as_str() {
            "" => "expected a text, found an empty one",
            path if !paths.insert(path) => "expected each path once, found it again",
            _ => continue,
        };
        return Err(Failure::field(format!("documents[{i}].path"), problem));
    }
    let turn = store.indexing.next().await?;
    let scheduler = loaded.scheduler.clone();
    // The receiver is dropped with this handler.
    let (client, _receiver) = unbounded_channel();
    let task = tokio::task::spawn_blocking(move || {
        let done = add(&scheduler, &store, request.documents, &client);
        drop(turn);
        done
    });
    Ok(Json(task.await.map_err(|_| Failure::lost())??))
}

fn add(
    scheduler: &Scheduler,
    store: &Store,
    documents: Vec<NewDocument>,
    client: &UnboundedSender<()>,
) -> Result<IndexResponse> {
    let engine = scheduler.engine();
    let identity = store.shelf(engine)?.reader().identity().clone();
    let mut indexer = Indexer::open(engine, &store.folder, &identity)?;
    let sources: Vec<Source> = documents.into_iter().map(Source::from).collect();
    // At least the pages of one chunk; with more, passes are larger.
    let pages = identity.chunk.max(engine.options().batch_tokens).div_ceil(PAGE);
    let pages = pages.min(engine.pool().pages());
    let room = || {
        // With fewer free pages, passes are smaller, down to one chunk.
        let _ = engine.pool().free_pages() >= pages || scheduler.make_room(pages);
    };
    room();
    let mut failed = Vec::new();
    let done = indexer.put(sources, &mut |event| {
        match event {
            Event::Problem { path, problem } => {
                failed.push(Failed { path: path.into(), problem: problem.into() });
            }
            Event::Progress { .. } => room(),
            Event::Graph { .. } => {}
        }
        if client.is_closed() { Err(Error::Interrupted) } else { Ok(()) }
    })?;
    Ok(IndexResponse {
        indexed: done.added + done.replaced,
        unchanged: done.unchanged,
        chunks: done.chunks,
        tokens: done.tokens,
        failed,
    })
}

impl From<NewDocument> for Source {
    fn from(document: NewDocument) -> Self {
        // A parsed document can always be serialized.
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        let stamp = Stamp { modified: 0, bytes: bytes.len() as u64, hash: content_hash(&bytes) };
        let NewDocument { path, text, title, metadata } = document;
        let metadata = metadata.map_or(Value::Null, Value::Object);
        Self { path, title, text, metadata, stamp }
    }
}
