//! The store given by `--store`, and `/v1/rag/index`.
//!
//! Requests to the store are work for the scheduler like all others: embedding passes, judged
//! passages, and answers that continue from the keys and values of embedding passes. Reading from
//! disk and joining caches run on threads that may block.
//!
//! The store is locked only while documents are being added. `gritlm index` can therefore be used
//! beside the server, and the next question sees what it commits.

use super::body::{Body, Loaded};
use super::error::Result;
use super::failure::{Failure, Failures};
use axum::Json;
use gritlm::Engine;
use gritlm::schedule::{Cancel, Ticket};
use gritlm_rag::{
    Event, Indexer, MAX_NAME, Passes, Scheduled, Snapshot, Source, Stamp, content_hash,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use utoipa::ToSchema;

/// Maximum number of questions whose joined caches are in memory at once, before they are in KV
/// pages. A cache of 512 tokens of GritLM-7B takes 128 MB there.
const LOADING: usize = 4;

/// The store given by `--store`.
pub(super) struct Store {
    folder: PathBuf,
    snapshot: Mutex<Arc<Snapshot>>,
    /// A permit for each question that may load caches.
    pub(super) loading: Arc<Semaphore>,
    /// One permit: a store has one writer.
    writing: Arc<Semaphore>,
}

impl Store {
    /// Opens the store.
    pub(super) fn open(engine: &Engine, folder: PathBuf) -> Result<Self> {
        let snapshot = Mutex::new(Arc::new(Snapshot::open(engine, &folder)?));
        let [loading, writing] = [LOADING, 1].map(|n| Arc::new(Semaphore::new(n)));
        Ok(Self { folder, snapshot, loading, writing })
    }

    /// Returns the current state of the store, which is reopened if it has changed on disk.
    pub(super) fn snapshot(&self, engine: &Engine) -> gritlm_rag::Result<Arc<Snapshot>> {
        // The lock is held while the store is reopened, as the next question would only do the
        // same. The guarded value is consistent at any time, so a poisoned lock can be used.
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshot.reader().is_stale() {
            *snapshot = Arc::new(Snapshot::open(engine, &self.folder)?);
        }
        Ok(Arc::clone(&snapshot))
    }
}

impl Loaded {
    pub(super) fn store(&self) -> Result<Arc<Store>, Failure> {
        self.store.clone().ok_or_else(Failure::no_store)
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
    // The semaphore is never closed. A request that is dropped while it waits gives up its place.
    let permit = Arc::clone(&store.writing).acquire_owned().await.map_err(|_| Failure::lost())?;
    let scheduler = loaded.scheduler.clone();
    let cancel = Cancel::default();
    // Dropped with this handler, when the client has left.
    let _ticket = Ticket::new(cancel.clone());
    let task = tokio::task::spawn_blocking(move || {
        let (priority, deadline) = (0, None);
        let passes = Scheduled { scheduler: &scheduler, priority, deadline, cancel };
        let done = add(&passes, &store, request.documents);
        drop(permit);
        done
    });
    Ok(Json(task.await.map_err(|_| Failure::lost())??))
}

fn add(
    passes: &Scheduled<'_>,
    store: &Store,
    documents: Vec<NewDocument>,
) -> gritlm_rag::Result<IndexResponse> {
    let identity = store.snapshot(passes.engine())?.reader().identity().clone();
    let mut indexer = Indexer::open(passes, &store.folder, &identity)?;
    let sources: Vec<Source> = documents.into_iter().map(Source::from).collect();
    let mut failed = Vec::new();
    let done = indexer.put(sources, &mut |event| {
        if let Event::Problem { path, problem } = event {
            failed.push(Failed { path: path.into(), problem: problem.into() });
        }
        if passes.cancel.is_cancelled() { Err(gritlm::Error::Cancelled.into()) } else { Ok(()) }
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
