//! Counts and times for Prometheus.

use super::App;
use crate::schedule::{Event, Work};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// What is counted beside the scheduler's own [`crate::schedule::Stats`].
#[derive(Default)]
pub(super) struct Metrics {}

/// A request under observation.
pub(super) struct Watch {}

impl Metrics {
    /// Begins to observe a request.
    pub(super) fn watch(&self, _work: &Work) -> Watch {
        Watch {}
    }
}

impl Watch {
    /// Counts an event.
    pub(super) fn see(&mut self, _event: &Event) {}
}

/// Counts answers by path and status.
pub(super) async fn count(
    State(_app): State<Arc<App>>,
    _path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    next.run(request).await
}

/// Counts and times in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(_app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], "")
}
