//! Error scopes: what the driver says about one call. Natively the answer is there at once. In a
//! browser, whose driver is another process, it comes later; it is then collected by the next read.

use super::lock;
use gritlm_model::ops::DeviceError;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

/// An answer that has yet to come.
type Answer = Pin<Box<dyn Future<Output = Option<DeviceError>> + Send>>;

/// The scopes that have no answer yet.
#[derive(Default)]
pub(crate) struct Scopes(Mutex<Vec<Answer>>);

impl Scopes {
    /// Returns the error of a scope that has ended, if its answer is there, and otherwise keeps the
    /// scope.
    pub(crate) fn look(
        &self,
        answer: impl Future<Output = Option<DeviceError>> + Send + 'static,
    ) -> Option<DeviceError> {
        let mut answer: Answer = Box::pin(answer);
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(error) => error,
            Poll::Pending => {
                lock(&self.0).push(answer);
                None
            }
        }
    }

    /// Waits for all answers, and returns the errors among them.
    pub(crate) async fn settle(&self) -> Vec<DeviceError> {
        let open = std::mem::take(&mut *lock(&self.0));
        let mut errors = Vec::new();
        for answer in open {
            errors.extend(answer.await);
        }
        errors
    }
}
