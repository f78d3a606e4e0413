//! Who runs the steps: a thread of the scheduler's own, or a future that the caller polls, where a
//! thread cannot be had or must not block (a browser).

use super::Shared;
use crate::batch::{Output, Sequence};
use crate::cache::{KvCache, KvSnapshot};
use crate::{Engine, Result};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// How the steps run passes and wait.
pub(super) trait Drive {
    /// Runs a pass.
    fn run(
        &self,
        engine: &Engine,
        sequences: &mut [Sequence<'_>],
    ) -> impl Future<Output = Result<Vec<Output>>>;

    /// Copies keys and values off the device.
    fn export(&self, engine: &Engine, cache: &KvCache) -> impl Future<Output = Result<KvSnapshot>>;

    /// Waits until a request arrives or the scheduler is closed; where the steps are `stuck`, until
    /// pages may have been freed.
    fn wait(&self, engine: &Engine, shared: &Shared, stuck: bool) -> impl Future<Output = ()>;
}

/// A thread of its own, which may block.
pub(super) struct Thread;

impl Drive for Thread {
    async fn run(&self, engine: &Engine, sequences: &mut [Sequence<'_>]) -> Result<Vec<Output>> {
        engine.run(sequences)
    }

    async fn export(&self, engine: &Engine, cache: &KvCache) -> Result<KvSnapshot> {
        engine.export(cache)
    }

    async fn wait(&self, _: &Engine, shared: &Shared, stuck: bool) {
        match stuck {
            // Deadlines go on meanwhile, and clients may leave.
            true => std::thread::sleep(Duration::from_millis(10)),
            false => shared.wake.notified().await,
        }
    }
}

/// A future that the caller polls. It awaits the caller's `turn` after each pass.
pub(super) struct Polled<T>(pub(super) T);

impl<T: AsyncFn()> Drive for Polled<T> {
    async fn run(&self, engine: &Engine, sequences: &mut [Sequence<'_>]) -> Result<Vec<Output>> {
        let outputs = engine.run_async(sequences).await;
        (self.0)().await;
        outputs
    }

    async fn export(&self, engine: &Engine, cache: &KvCache) -> Result<KvSnapshot> {
        engine.export_async(cache).await
    }

    async fn wait(&self, engine: &Engine, shared: &Shared, stuck: bool) {
        let (mut wake, mut freed) =
            (pin!(shared.wake.notified()), pin!(engine.pool().freed().notified()));
        poll_fn(|context| {
            let woken = wake.as_mut().poll(context).is_ready();
            let freed = stuck && freed.as_mut().poll(context).is_ready();
            if woken || freed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
