//! Where bodies are parsed and texts tokenized: on threads of their own, so that neither a step of the
//! engine nor another connection waits for them, and what is short waits for nothing long.
//!
//! The engine's products run in rayon's pool of the whole process. A body of two thousand long texts
//! would fill that pool for seconds, and every step of everybody else would stand behind it.

use super::failure::Failure;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Bytes that are tokenized within some 10 ms.
pub(super) const SHORT: usize = 64 << 10;

/// Places and threads for each kind of work.
pub(super) struct Workers {
    short: Lane,
    /// One at a time, on half of the cores: a large text takes a hundred times its bytes.
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

    /// Does work on so many bytes when there is a place for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let lane = if bytes > SHORT { &self.long } else { &self.short };
        let threads = Arc::clone(&lane.threads);
        // Never closed. The task has the place until its end, also when its client is gone.
        let place = Arc::clone(&lane.places).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let done = threads.install(work);
            drop(place);
            done
        });
        // A panic there is a bug; this request's client is told, and the others are served.
        task.await.map_err(|_| Failure::lost())?
    }
}
