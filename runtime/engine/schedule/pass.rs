//! One pass of the scheduler: grammars are prepared while it runs, and a failure is its own.

use super::drive::Drive;
use crate::batch::{Output, Sequence};
use crate::grammar::Guide;
use crate::{Engine, Result};
use gritlm_model::ops::DeviceError;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

/// States of grammars, one for each running answer that has one.
pub(super) type Guides = Arc<Mutex<Vec<Option<Guide>>>>;

/// Lets a second thread compute the tokens that grammars allow, which do not depend on logits,
/// while the device runs. Where there is no second thread, or it is late, settling computes them.
pub(super) fn prepared(guides: Vec<Option<Guide>>) -> Guides {
    let some = guides.iter().any(Option::is_some);
    let guides = Arc::new(Mutex::new(guides));
    if some {
        let theirs = Arc::clone(&guides);
        let prepare = move || locked(&theirs).iter_mut().flatten().for_each(Guide::prepare);
        let _ = std::thread::Builder::new().spawn(prepare);
    }
    guides
}

pub(super) fn locked(guides: &Guides) -> MutexGuard<'_, Vec<Option<Guide>>> {
    // A thread that panicked has left each state as it was or prepared.
    guides.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a pass. If it fails, each sequence runs again alone, to find the one at fault. A failed
/// pass has advanced no cache.
pub(super) async fn outcomes(
    drive: &impl Drive,
    engine: &Engine,
    sequences: &mut [Sequence<'_>],
) -> Vec<Result<Output>> {
    match attempt(drive, engine, sequences).await {
        Ok(outputs) => return outputs.into_iter().map(Ok).collect(),
        Err(error) if sequences.len() == 1 => return vec![Err(error)],
        Err(_) => {}
    }
    let mut results = Vec::with_capacity(sequences.len());
    for one in sequences.chunks_mut(1) {
        results.extend(attempt(drive, engine, one).await.map(|mut all| all.pop()).transpose());
    }
    results
}

/// Runs a pass and returns a panic as an error, so that the server survives it.
async fn attempt(
    drive: &impl Drive,
    engine: &Engine,
    sequences: &mut [Sequence<'_>],
) -> Result<Vec<Output>> {
    let mut pass = pin!(drive.run(engine, sequences));
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| pass.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            let problem = format!("the pass panicked: {}", said.unwrap_or_default());
            Poll::Ready(Err(DeviceError(problem).into()))
        })
    })
    .await
}
