//! The store of `--store`, and `/v1/rag/index`.
//!
//! Requests to the store run past the scheduler, in passes of their own: the model's mutex puts
//! them between its steps. So each slows down all others by its passes, and there are few at once:
//! [`ASKING`] questions and one that indexes. More wait their turn, each kind at most as many as may
//! wait for the scheduler. Their KV pages are the scheduler's; prompts kept for later give way to
//! them, requests under way do not. Where that leaves too few, the answer is 429 at once.
//!
//! The store is locked only while documents are being added: `gritlm index` can be used beside the
//! server, and what it commits is seen by the next question.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use crate::rag::{Event, Indexer, Shelf, Source, Stamp, content_hash};
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

/// Bytes of a document's path, and of its title.
const MOST_NAME: usize = 4096;
/// Questions at once: while one is at the disk or the search, another computes.
const ASKING: usize = 2;

/// The store, and who may use it.
pub(super) struct Store {
    folder: PathBuf,
    shelf: Mutex<Arc<Shelf>>,
    pub(super) asking: Turns,
    indexing: Turns,
}

impl Store {
    /// Opens it; `waiting` requests of each kind may wait.
    pub(super) fn open(engine: &Engine, folder: PathBuf, waiting: usize) -> Result<Self> {
        let shelf = Mutex::new(Arc::new(Shelf::open(engine, &folder)?));
        let (asking, indexing) = (Turns::new(ASKING, waiting), Turns::new(1, waiting));
        Ok(Self { folder, shelf, asking, indexing })
    }

    /// The store as it is now.
    pub(super) fn shelf(&self, engine: &Engine) -> Result<Arc<Shelf>> {
        // Held while it is opened anew: the next question would only do the same. What it guards is
        // whole at any time.
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.reader().is_stale() {
            *shelf = Arc::new(Shelf::open(engine, &self.folder)?);
        }
        Ok(Arc::clone(&shelf))
    }
}

/// Few at once, and not too many that wait.
pub(super) struct Turns {
    at_once: Arc<Semaphore>,
    all: Arc<Semaphore>,
    waiting: usize,
}

/// A turn, and a place among all.
pub(super) type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Turns {
    fn new(at_once: usize, waiting: usize) -> Self {
        let all = at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        let [at_once, all] = [at_once, all].map(|n| Arc::new(Semaphore::new(n)));
        Self { at_once, all, waiting }
    }

    /// Waits for a turn; dropped meanwhile, it gives up its place.
    pub(super) async fn next(&self) -> Result<Turn, Failure> {
        let place = Arc::clone(&self.all).try_acquire_owned();
        let place = place.map_err(|_| Failure::many_wait(self.waiting))?;
        // Neither is ever closed.
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
    /// The model's name, as `/v1/models` tells it.
    model: Option<String>,
    documents: Vec<NewDocument>,
}

/// A document.
#[derive(Deserialize, Serialize, ToSchema)]
pub(super) struct NewDocument {
    /// What tells it from all others; what is stored under it is replaced where anything differs.
    /// `gritlm index` removes it if it is below a path that it is given. At most 4096 bytes.
    #[schema(min_length = 1)]
    path: String,
    /// What it says; it is cut into chunks as the store is.
    text: String,
    /// Goes in front of each chunk. At most 4096 bytes.
    #[serde(default)]
    title: String,
    /// What filters look at.
    metadata: Option<Map<String, Value>>,
}

/// What has been stored. What fails on the way has stored the documents before; the same request
/// once more skips them.
#[derive(Serialize, ToSchema)]
pub(super) struct IndexResponse {
    /// Documents that are new or have changed.
    indexed: u64,
    /// Documents that were as before.
    unchanged: u64,
    /// Chunks embedded.
    chunks: u64,
    /// Tokens embedded.
    tokens: u64,
    /// Documents that could not be cut; what was stored under their paths stays.
    failed: Vec<Failed>,
}

/// A document that is not stored.
#[derive(Serialize, ToSchema)]
struct Failed {
    path: String,
    /// What is wrong with it.
    problem: String,
}

/// Adds documents to the store of `--store`.
///
/// They are durable when the answer comes, and the next question finds them. Without a store the
/// answer is 404; while another process writes to it, 503.
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
            if text.len() > MOST_NAME {
                let problem = format!("expected at most {MOST_NAME} bytes, found {}", text.len());
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
    // Its other end is dropped with this handler.
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
    // Of the pages that a chunk takes; more make passes larger.
    let pages = identity.chunk.max(engine.options().batch_tokens).div_ceil(PAGE);
    let pages = pages.min(engine.pool().pages());
    let room = || {
        // Where there is less, passes are smaller, down to one chunk.
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
        // What can be parsed can be written.
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        let stamp = Stamp { modified: 0, bytes: bytes.len() as u64, hash: content_hash(&bytes) };
        let NewDocument { path, text, title, metadata } = document;
        let metadata = metadata.map_or(Value::Null, Value::Object);
        Self { path, title, text, metadata, stamp }
    }
}
