//! One budget of bytes for everything that requests hold in memory at the same time: bodies from
//! their first byte until their handlers are done, results until they are rendered, and answers
//! until they are written.
//!
//! [`hold`] gives every request its [`Held`], which the extractors [`super::body::Body`] and
//! [`super::body::Loaded`] pick up, so that no handler has to count bytes. A [`Charge`] returns its
//! bytes when it is dropped: with the handler, with the stream, or with the last byte of an answer,
//! even if the client has disconnected.

use super::App;
use super::failure::Failure;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// Bytes that each charge may hold even if the budget is spent. They count towards the budget, but
/// are never refused, so that a client that fills the budget does not block requests of ordinary
/// size.
const SMALL: usize = 64 << 10;

/// The limit in bytes, and the bytes in use.
pub(super) struct Budget {
    most: usize,
    under_way: AtomicUsize,
    returned: AtomicU64,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, under_way: AtomicUsize::new(0), returned: AtomicU64::new(0) })
    }

    /// Returns the bytes that requests hold now.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Returns how many bytes requests have held and given back since the start.
    pub(super) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    fn give_back(&self, bytes: usize) {
        self.under_way.fetch_sub(bytes, Ordering::Relaxed);
        self.returned.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A share of the budget, which is returned when it is dropped.
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Charge {
    /// Returns an empty charge.
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: AtomicUsize::new(0) }
    }

    /// Adds bytes to the charge; fails with 503 if the budget has too few left.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Failure> {
        let Budget { most, under_way, .. } = &*self.budget;
        let own = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let small = bytes == 0 || own <= SMALL;
        let room = |now: usize| {
            let then = now.saturating_add(bytes);
            (small || then <= *most).then_some(then)
        };
        if under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            return Ok(());
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(Failure::no_bytes(*most))
    }

    /// Returns bytes of the charge to the budget.
    pub(super) fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(bytes);
    }

    /// Moves `data.len()` bytes of the charge to the returned bytes, which give them back when
    /// their last owner drops them. If the charge holds fewer, the rest is added without checking
    /// the limit.
    fn pay(&mut self, data: Bytes) -> Bytes {
        let bytes = data.len();
        let own = self.bytes.get_mut();
        let had = (*own).min(bytes);
        *own -= had;
        self.budget.under_way.fetch_add(bytes - had, Ordering::Relaxed);
        let charge = Self { budget: Arc::clone(&self.budget), bytes: AtomicUsize::new(bytes) };
        Bytes::from_owner(Paid { data, _charge: charge })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

/// The charges that a request holds until its handler or its stream is done.
#[derive(Clone)]
pub(super) struct Held {
    /// The body, and what it is decoded to.
    pub(super) body: Arc<Charge>,
    /// Vectors and pieces of text that are not rendered or sent yet.
    pub(super) results: Arc<Charge>,
}

impl Held {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        let [body, results] = [(); 2].map(|()| Arc::new(Charge::new(budget)));
        Self { body, results }
    }
}

/// Passes a request on with its charges, and charges the answer.
pub(super) async fn hold(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let held = Held::new(&app.budget);
    request.extensions_mut().insert(held.clone());
    let response = next.run(request).await;
    drop(held);
    let charge = Charge::new(&app.budget);
    // The size of a stream is unknown; its events are charged while they wait.
    let bytes = response.body().size_hint().exact().unwrap_or(0);
    match charge.grow(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        Ok(()) => response.map(|inner| Body::new(Answer { inner, charge })),
        Err(full) => full.into_response(),
    }
}

/// Bytes and their charge, which hyper keeps until they are written.
struct Paid {
    data: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Paid {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A body that hands its charge on to its frames.
struct Answer {
    inner: Body,
    charge: Charge,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        frame.map_ok(|frame| frame.map_data(|data| self.charge.pay(data)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
