//! Accepts connections and shuts them down in order.

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

/// File descriptors that a process needs besides its connections: the model's shards, pipes, a
/// GPU's devices.
#[cfg(unix)]
const OTHER_FILES: u64 = 128;

/// The task that accepts connections.
pub(super) struct Connections {
    task: JoinHandle<GracefulShutdown>,
    stop: oneshot::Sender<()>,
}

/// How the connections ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every answer under way was written.
    Written,
    /// The deadline passed first.
    Cut,
}

/// Serves each connection in a task of its own, at most `limit` at once; the operating system
/// queues further ones. A client has `patience` to send the head of a request, so that an idle
/// connection does not stay open. A client that reads nothing of an answer for that long is
/// disconnected, so that the answer does not stay in memory.
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
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => accepted,
            _ = &mut stopped => return graceful,
        };
        let Ok((stream, _)) = stream else {
            // The process is out of file descriptors, or the client has disconnected already. A
            // pause gives descriptors time to become free.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Tokens are small and must be sent at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        // The timeout runs only while a write waits, and restarts after each write that does not:
        // an answer that pauses between tokens does not time out.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(patience));
        let stream = TokioIo::new(Box::pin(stream));
        let connection = graceful.watch(http.serve_connection(stream, service));
        tokio::spawn(async move {
            // If a client disconnects or sends something invalid, its connection is closed. There
            // is nothing else to do.
            let _ = connection.await;
            drop(place);
        });
    }
}

impl Connections {
    /// Stops accepting, and waits until `deadline` for answers under way to be written.
    pub(super) async fn end(self, deadline: Instant) -> Ended {
        let _ = self.stop.send(());
        let Ok(graceful) = self.task.await else { return Ended::Cut };
        match tokio::time::timeout_at(deadline.into(), graceful.shutdown()).await {
            Ok(()) => Ended::Written,
            Err(_) => Ended::Cut,
        }
    }
}

/// Raises the limit of open files to its maximum, and returns as many of `limit` connections as it
/// has room for.
#[cfg(unix)]
fn most(limit: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    // If the system refuses, the old limit stays.
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
