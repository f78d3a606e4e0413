//! One budget of bytes for what requests hold in memory at the same time: bodies from their first
//! byte until their handlers are done, results until they are rendered, answers until they are
//! written.
//!
//! [`hold`] gives every request its [`Held`], which the extractors [`super::body::Body`] and
//! [`super::body::Loaded`] take up, so that no handler has to count. A [`Charge`] gives back when it
//! is dropped: with the handler, with the stream, or with the last byte of an answer, also where the
//! client has gone.

use super::App;
use super::failure::Failure;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// Bytes that each charge has in any case. They count, and yet nobody is refused because of them:
/// whoever fills the budget does not stop requests of ordinary size.
const SMALL: usize = 64 << 10;

/// How many bytes there may be, and how many there are.
pub(super) struct Budget {
    most: usize,
    under_way: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, under_way: AtomicUsize::new(0) })
    }

    /// Bytes that requests hold now.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }
}

/// A part of the budget that somebody has, which is given back when it is dropped.
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Charge {
    /// Of nothing yet.
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: AtomicUsize::new(0) }
    }

    /// Adds to it; 503 where the budget does not have as much.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Failure> {
        let Budget { most, under_way } = &*self.budget;
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

    /// Gives back so much of it.
    pub(super) fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.under_way.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The same bytes with as much of the charge as they are; what it lacks is added without
    /// asking. They give it back when nobody has them any more.
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
        self.budget.under_way.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// What a request holds until its handler is done, or its stream.
#[derive(Clone)]
pub(super) struct Held {
    /// Its body, and what that decodes to.
    pub(super) body: Arc<Charge>,
    /// Vectors and pieces of text that are not rendered, or not sent.
    pub(super) results: Arc<Charge>,
}

impl Held {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        let [body, results] = [(); 2].map(|()| Arc::new(Charge::new(budget)));
        Self { body, results }
    }
}

/// Passes a request on with its charges, and charges what is answered.
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
    // Of a stream the size is not known; its events are charged while they wait.
    let bytes = response.body().size_hint().exact().unwrap_or(0);
    match charge.grow(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        Ok(()) => response.map(|inner| Body::new(Answer { inner, charge })),
        Err(full) => full.into_response(),
    }
}

/// Bytes and their charge: hyper keeps them until they are written.
struct Paid {
    data: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Paid {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A body whose charge goes along with its frames.
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
