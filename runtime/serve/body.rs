//! Extractors of the handlers: the loaded model, and a JSON body.

use super::budget::{Charge, Held};
use super::failure::Failure;
use super::rag::Store;
use super::workers::SHORT;
use super::{App, Serving, decode, objects};
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request};
use axum::http::Extensions;
use axum::http::header;
use axum::http::request::Parts;
use futures_util::TryStreamExt;
use gritlm::Engine;
use gritlm::schedule::Scheduler;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;
use serde_path_to_error::Segment;
use std::sync::Arc;

/// The loaded model. Rejects with 503 while the model is loading or the server is draining.
/// Handlers take it before [`Body`], so that no body is read for a request that is going to be
/// rejected.
pub(super) struct Loaded {
    pub(super) app: Arc<App>,
    pub(super) scheduler: Scheduler,
    pub(super) store: Option<Arc<Store>>,
    /// Method and path, as they appear in the log.
    pub(super) route: String,
    /// The charge for the request's results until they are rendered or sent.
    pub(super) results: Arc<Charge>,
}

impl Loaded {
    pub(super) fn engine(&self) -> &Engine {
        self.scheduler.engine()
    }

    /// Checks that a request's `model`, if it has one, is the model that is served.
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), Failure> {
        match model {
            Some(found) if found != self.app.settings.name => {
                Err(Failure::no_such_model(found, &self.app.settings.name))
            }
            _ => Ok(()),
        }
    }

    /// Runs work that would block a handler for too long, mainly tokenizing.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.blocking_of(0, work).await
    }

    /// Does the same as [`Loaded::blocking`], for work on `bytes` bytes of text. Short texts do not
    /// wait behind long ones, which run one at a time.
    pub(super) async fn blocking_of<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let scheduler = self.scheduler.clone();
        self.app.workers.run(bytes, move || work(scheduler.engine())).await
    }
}

impl FromRequestParts<Arc<App>> for Loaded {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let Serving { scheduler, store } = app.open()?;
        let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let route = format!("{} {path}", parts.method);
        let results = held(&parts.extensions, app).results;
        Ok(Self { app: Arc::clone(app), scheduler, store, route, results })
    }
}

/// Returns the request's charges.
fn held(extensions: &Extensions, app: &App) -> Held {
    extensions.get().cloned().unwrap_or_else(|| Held::new(&app.budget))
}

/// A JSON body within the server's limits.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        // Browsers let pages of other origins send some other types without a preflight request.
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::no_json(kind));
        }
        let coding = decode::Coding::of(request.headers())?;
        let limit = app.settings.max_body_bytes;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let patience = app.settings.patience;
        if length.is_some_and(|length| length > limit as u64) {
            // A client that waits for "100 Continue" has sent nothing yet.
            if !request.headers().contains_key(header::EXPECT) {
                let rest = discard(request.into_body().into_data_stream(), limit);
                let _ = tokio::time::timeout(patience, rest).await;
            }
            return Err(Failure::large_body(limit));
        }
        let charge = held(request.extensions(), app).body;
        let bytes = tokio::time::timeout(patience, read(request.into_body(), limit, &charge));
        let bytes = bytes.await.map_err(|_| Failure::slow_body(patience))??;
        let bytes = match coding {
            None => bytes,
            Some(coding) => {
                let compressed = bytes.len();
                let bytes = coding.decode(bytes, limit, Arc::clone(&charge)).await?;
                charge.shrink(compressed);
                bytes
            }
        };
        let size = bytes.len();
        if size <= SHORT {
            return parse(&bytes).map(Self);
        }
        // The parsed values need more memory than the text: a two-byte number becomes a whole
        // `Value`.
        let values = bytes.iter().filter(|&&byte| byte == b',').count();
        charge.grow(values * size_of::<Value>())?;
        app.workers.run(size, move || parse(&bytes)).await.map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = objects::deserialize(&mut json).map_err(|e| {
        let (path, error) = (e.path(), e.inner());
        // If the JSON itself is malformed or truncated, the error is not about a field.
        let whole = error.classify() != Category::Data
            || path.iter().next().is_none()
            || path.iter().any(|segment| matches!(segment, Segment::Unknown));
        match whole {
            true => Failure::malformed(format!("body: {error}")),
            false => Failure::field(path.to_string(), error),
        }
    })?;
    json.end().map_err(|e| Failure::malformed(format!("body: {e}")))?;
    Ok(value)
}

/// Reads the rest of a body that is refused, up to `limit` bytes. A connection that is closed with
/// bytes unread is reset, and the client may lose the answer that it has not read yet.
async fn discard(mut stream: axum::body::BodyDataStream, limit: usize) {
    let mut length = 0;
    while let Ok(Some(part)) = stream.try_next().await {
        length += part.len();
        if length > limit {
            return;
        }
    }
}

async fn read(body: axum::body::Body, limit: usize, charge: &Charge) -> Result<Vec<u8>, Failure> {
    let (mut bytes, mut length, mut full) = (Vec::new(), 0, None);
    let mut stream = body.into_data_stream();
    let broken = |e| Failure::malformed(format!("body: it ended too early: {e}"));
    while let Some(part) = stream.try_next().await.map_err(broken)? {
        length += part.len();
        if length > limit {
            charge.shrink(bytes.len());
            drop(bytes);
            discard(stream, limit).await;
            return Err(Failure::large_body(limit));
        }
        // If the body exceeds the budget, its rest is read and dropped: a client that gets an
        // answer while it is still sending may not see that answer.
        if full.is_some() {
            continue;
        }
        if let Err(failure) = charge.grow(part.len()) {
            charge.shrink(bytes.len());
            bytes = Vec::new();
            full = Some(failure);
            continue;
        }
        bytes.extend_from_slice(&part);
    }
    match full {
        None => Ok(bytes),
        Some(failure) => Err(failure),
    }
}
