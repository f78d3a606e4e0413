//! Worker threads for parsing bodies and tokenizing texts. Neither a step of the engine nor
//! another connection waits for this work, and short work does not wait for long work.
//!
//! The engine's products run in the process-wide rayon pool. A body of two thousand long texts
//! would fill that pool for seconds and delay every step meanwhile.

use super::failure::Failure;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The most bytes of short work: this many are tokenized within about 10 ms.
pub(super) const SHORT: usize = 64 << 10;

/// Permits and threads for short and for long work.
pub(super) struct Workers {
    short: Lane,
    /// Runs one at a time, on half of the cores: tokenizing a large text takes a hundred times its
    /// bytes of memory.
    long: Lane,
}

struct Lane {
    places: Arc<Semaphore>,
    threads: Arc<ThreadPool>,
}

impl Lane {
    fn new(
        name: &'static str,
        places: usize,
        threads: usize,
    ) -> Result<Self, ThreadPoolBuildError> {
        let threads = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |i| format!("gritlm-{name}-{i}"))
            .build()?;
        Ok(Self { places: Arc::new(Semaphore::new(places)), threads: Arc::new(threads) })
    }
}

impl Workers {
    pub(super) fn new() -> Result<Self, ThreadPoolBuildError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            short: Lane::new("short", cores.max(2), cores)?,
            long: Lane::new("long", 1, (cores / 2).max(1))?,
        })
    }

    /// Runs work on `bytes` bytes as soon as its lane has a free place.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let lane = if bytes > SHORT { &self.long } else { &self.short };
        let threads = Arc::clone(&lane.threads);
        // The semaphore is never closed. The task keeps its place until it ends, even if its
        // client has gone.
        let place = Arc::clone(&lane.places).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let done = threads.install(work);
            drop(place);
            done
        });
        // A panic in the task is a bug: this request's client gets an error, and the others are
        // still served.
        task.await.map_err(|_| Failure::lost())?
    }
}
