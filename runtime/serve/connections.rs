//! Accepts connections and ends them in good order.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_io_timeout::TimeoutStream;

/// Files that a process needs besides its connections: the model's shards, pipes, a GPU's devices.
#[cfg(unix)]
const OTHER_FILES: u64 = 128;

/// The task that accepts.
pub(super) struct Connections {
    task: JoinHandle<GracefulShutdown>,
    stop: oneshot::Sender<()>,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every answer that was begun is written.
    Written,
    /// The time was over before.
    Cut,
}

/// Serves each connection in a task of its own, at most `limit` at once: beyond it, the system
/// keeps them waiting. A client has `patience` for the head of a request, so that a connection on
/// which nothing comes does not stay; and one that takes nothing of an answer for as long is cut
/// off, so that the answer does not stay.
pub(super) fn serve(
    listener: TcpListener,
    router: Router,
    limit: usize,
    patience: Duration,
) -> Connections {
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept(listener, router, most(limit), patience, stopped));
    Connections { task, stop }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    limit: usize,
    patience: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limit));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    loop {
        let accepted = async {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => accepted,
            _ = &mut stopped => return graceful,
        };
        let Ok((stream, _)) = stream else {
            // No more files, or a client that went away at once. A pause lets files come back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Tokens are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        // It counts while a write waits, and from anew after each that does not: an answer that
        // pauses between tokens is not late.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(patience));
        let stream = TokioIo::new(Box::pin(stream));
        let connection = graceful.watch(http.serve_connection(stream, service));
        tokio::spawn(async move {
            // A client that goes away or sends nonsense has its connection closed; no more to do.
            let _ = connection.await;
            drop(place);
        });
    }
}

impl Connections {
    /// Accepts no more, and waits for answers under way to be written, until `deadline`.
    pub(super) async fn end(self, deadline: Instant) -> Ended {
        let _ = self.stop.send(());
        let Ok(graceful) = self.task.await else { return Ended::Cut };
        match tokio::time::timeout_at(deadline.into(), graceful.shutdown()).await {
            Ok(()) => Ended::Written,
            Err(_) => Ended::Cut,
        }
    }
}

/// As many of `limit` connections as the system has files for, after asking it for as many as it
/// gives.
#[cfg(unix)]
fn most(limit: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    // Where it refuses, the old limit stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    match getrlimit(Resource::Nofile).current {
        Some(files) => limit.min(files.saturating_sub(OTHER_FILES).max(1) as usize),
        None => limit,
    }
}

#[cfg(not(unix))]
fn most(limit: usize) -> usize {
    limit
}
