//! A server whose device is lost, as after a reset by its driver: the requests under way fail with one
//! line, `/ready` with them, and the model is opened again; or the server ends.

use crate::faulty::losing;
use crate::serve::Server;
use gritlm::{Engine, Error, Options};
use gritlm_serve::Settings;
use serde_json::json;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Any text that holds a token three times in a row.
fn fault(tokens: &[u32]) -> bool {
    tokens.windows(3).any(|w| w[0] == w[1] && w[1] == w[2])
}

type Thread = JoinHandle<gritlm_serve::Result<()>>;

/// Serves what `load` opens, the n-th time for n from 1; ends once something is sent.
fn serve(
    mut load: impl FnMut(usize) -> gritlm::Result<Engine> + Send + 'static,
) -> (Server, tokio::sync::oneshot::Sender<()>, Thread) {
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, Settings::default()).unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut times = 0;
    let open = move || {
        times += 1;
        load(times)
    };
    let run = move || server.run(open, async { drop(stopped.await) });
    let thread = std::thread::spawn(run);
    (Server::at(&url).ready(), stop, thread)
}

#[test]
fn the_model_is_opened_again() {
    let (go, wait) = mpsc::channel::<()>();
    let (server, stop, thread) = serve(move |n| {
        if n > 1 {
            wait.recv().unwrap();
        }
        losing("demo", fault)
    });
    let good = json!({"input": [[5, 6, 7], [5, 8]]});
    let bad = json!({"input": [[9, 9, 9]]});
    let chat = json!({
        "messages": [{"role": "user", "content": "Describe the package pdfgrep."}],
        "temperature": 0,
        "max_tokens": 2000,
        "ignore_eos": true,
        "stream": true,
    });
    let before = server.post("/v1/embeddings", &good).ok();
    for _ in 0..2 {
        let mut under_way = server.stream("/v1/chat/completions", &chat);
        under_way.next().unwrap();
        server.post("/v1/embeddings", &bad).fails(500, &["the pass failed"]);
        // The answer beside it ends in one line that says so, without its rest.
        let last = under_way.last().unwrap();
        assert!(last.contains("the pass failed") && !last.contains('\n'), "{last}");
        while server.get("/ready").status == 200 {
            std::thread::yield_now();
        }
        server.get("/ready").fails(503, &["being loaded"]);
        server.post("/v1/embeddings", &good).fails(503, &["being loaded"]);
        assert_eq!(server.get("/health").status, 200);
        go.send(()).unwrap();
        let server = Server::at(&format!("http://{}", server.address())).ready();
        assert_eq!(server.post("/v1/embeddings", &good).ok()["data"], before["data"]);
    }
    stop.send(()).unwrap();
    thread.join().unwrap().unwrap();
}

/// A device that cannot be opened again ends the server with its error, so that a supervisor can start
/// it anew.
#[test]
fn a_server_without_its_device_ends() {
    let (server, _stop, thread) = serve(|n| match n {
        1 => losing("demo", fault),
        _ => Engine::open("no-such-model", &Options::default()),
    });
    server.post("/v1/embeddings", &json!({"input": [[9, 9, 9]]})).fails(500, &["the pass failed"]);
    let problem = thread.join().unwrap().unwrap_err();
    let is_missing = |problem: &gritlm_serve::Error| {
        matches!(problem, gritlm_serve::Error::Engine(Error::NoModel { .. }))
    };
    assert!(is_missing(&problem), "{problem}");
}
