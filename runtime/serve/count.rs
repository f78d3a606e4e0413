//! Counts answers by path and status, measures the time until their last byte, and logs the reasons
//! of failures.

use super::App;
use super::failure::Reason;
use super::metrics::Metrics;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// Passes a request on and counts its answer. The path is the route's, or `other` if no route
/// matches, so that clients cannot add paths to the metrics.
pub(super) async fn count(
    State(app): State<Arc<App>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let response = next.run(request).await;
    let path = path.map_or("other".into(), |path| path.as_str().to_string());
    if let Some(reason) = response.extensions().get() {
        app.log(&format!("{method} {path}"), reason);
    }
    app.metrics.answered(&path, response.status());
    let left = Some(Left { app, path, start });
    response.map(|inner| Body::new(Timed { inner, left }))
}

impl App {
    /// Logs why a request of this route failed.
    pub(super) fn log(&self, route: &str, Reason(reason): &Reason) {
        (self.settings.log)(&format!("{route}: {reason}"));
    }
}

/// A body that records when it ends.
struct Timed {
    inner: Body,
    left: Option<Left>,
}

/// Records the time when it is dropped: at the end of the body, or when the client has
/// disconnected.
struct Left {
    app: Arc<App>,
    path: String,
    start: Instant,
}

impl Drop for Left {
    fn drop(&mut self) {
        let metrics: &Metrics = &self.app.metrics;
        metrics.took(&self.path, self.start.elapsed());
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        // The time is recorded before the last frame is sent, so that a client that has the answer
        // finds it in the metrics.
        if frame.is_none() || self.inner.is_end_stream() {
            self.left = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
