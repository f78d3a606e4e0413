//! What handlers take: the loaded model, and a body of JSON.

use super::App;
use super::failure::Failure;
use super::{decode, objects};
use crate::Engine;
use crate::schedule::Scheduler;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header;
use axum::http::request::Parts;
use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_path_to_error::Segment;
use std::sync::Arc;

/// The loaded model; 503 while there is none, or no more work is taken. Stands before [`Body`], so
/// that no body is read in vain.
pub(super) struct Loaded {
    pub(super) app: Arc<App>,
    pub(super) scheduler: Scheduler,
}

/// Bytes of text that are tokenized within some 10 ms.
const SHORT: usize = 64 << 10;

impl Loaded {
    pub(super) fn engine(&self) -> &Engine {
        self.scheduler.engine()
    }

    /// Whether a request's `model` is this one; a request may leave it out.
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), Failure> {
        match model {
            Some(found) if found != self.app.settings.name => {
                Err(Failure::no_such_model(found, &self.app.settings.name))
            }
            _ => Ok(()),
        }
    }

    /// Runs what takes longer than a handler may: tokenizing, above all.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.blocking_of(0, work).await
    }

    /// [`Loaded::blocking`], on so many bytes of text. Short texts do not wait behind long ones,
    /// which run one at a time.
    pub(super) async fn blocking_of<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let scheduler = self.scheduler.clone();
        let places = if bytes > SHORT { &self.app.long_places } else { &self.app.places };
        // Never closed. The task has the place until its end, also when its client is gone.
        let place = Arc::clone(places).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let done = work(scheduler.engine());
            drop(place);
            done
        });
        // A panic there is a bug; this request's client is told, and the others are served.
        task.await.map_err(|_| Failure::lost())?
    }
}

impl FromRequestParts<Arc<App>> for Loaded {
    type Rejection = Failure;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let scheduler = app.scheduler()?.clone();
        Ok(Self { app: Arc::clone(app), scheduler })
    }
}

/// A body of JSON within the server's limits.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        // Pages of other origins can send other types without asking first.
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
        if length.is_some_and(|length| length > limit as u64) {
            return Err(Failure::large_body(limit));
        }
        let patience = app.settings.patience;
        let bytes = tokio::time::timeout(patience, read(request.into_body(), limit));
        let bytes = bytes.await.map_err(|_| Failure::slow_body(patience))??;
        let bytes = match coding {
            None => bytes,
            Some(coding) => coding.decode(bytes, limit).await?,
        };
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = objects::deserialize(&mut json).map_err(|e| {
            let (path, error) = (e.path(), e.inner());
            // Where the JSON itself is broken or cut, no field is wrong.
            let whole = error.classify() != Category::Data
                || path.iter().next().is_none()
                || path.iter().any(|segment| matches!(segment, Segment::Unknown));
            match whole {
                true => Failure::malformed(format!("body: {error}")),
                false => Failure::field(path.to_string(), error),
            }
        })?;
        json.end().map_err(|e| Failure::malformed(format!("body: {e}")))?;
        Ok(Self(value))
    }
}

async fn read(body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut stream = body.into_data_stream();
    let broken = |e| Failure::malformed(format!("body: it ended too early: {e}"));
    while let Some(part) = stream.try_next().await.map_err(broken)? {
        if bytes.len() + part.len() > limit {
            return Err(Failure::large_body(limit));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
