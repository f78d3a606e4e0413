//! What a server says on stderr: why requests failed for a reason of its own, which clients are not
//! told.

use crate::faulty::faulty;
use crate::serve::Server;
use crate::serve_rag::store_of;
use gritlm::{Device, Engine, Options};
use gritlm_rag::CacheKind;
use gritlm_serve::Settings;
use serde_json::json;
use std::path::Path;
use std::sync::Mutex;

fn engine() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

/// The lines so far, once there are so many: a client has its answer a moment before.
fn lines(file: &Path, count: usize) -> Vec<String> {
    for _ in 0..1000 {
        let text = std::fs::read_to_string(file).unwrap();
        let errors = text.lines().filter(|line| line.starts_with("error: "));
        let errors: Vec<String> = errors.map(Into::into).collect();
        if errors.len() >= count {
            return errors;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never {count} lines: {}", std::fs::read_to_string(file).unwrap());
}

#[test]
fn the_stores_failures_are_logged_with_their_reasons() {
    let (_kept, at) = store_of(&engine(), CacheKind::None);
    let folder = at.to_str().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let server = Server::spawn_with(&["--store", folder], stderr.into()).ready();
    let ask = json!({"query": "Which tool?", "max_tokens": 1});
    let index = json!({"documents": [{"path": "a", "text": "A text."}]});
    server.post("/v1/rag/ask", &ask).ok();
    // A client's own mistakes are its own business.
    server.post("/v1/rag/ask", &json!({})).fails(400, &[]);
    server.post("/v1/nothing", &json!({})).fails(404, &[]);
    let mut stream = ask.clone();
    stream["stream"] = json!(true);
    std::fs::File::options()
        .write(true)
        .open(at.join("vectors-0.bin"))
        .unwrap()
        .set_len(0)
        .unwrap();
    std::fs::write(at.join("store.sqlite"), "no database").unwrap();
    let failed = [
        ("POST /v1/rag/ask", server.post("/v1/rag/ask", &ask)),
        ("POST /v1/rag/ask", server.post("/v1/rag/ask", &stream)),
        ("POST /v1/rag/index", server.post("/v1/rag/index", &index)),
    ];
    failed.iter().for_each(|(_, answer)| answer.fails(500, &["the store cannot be used"]));
    let lines = lines(log.path(), 3);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for ((route, answer), line) in failed.iter().zip(&lines) {
        assert!(!answer.text.contains(folder), "{}", answer.text);
        assert!(line.starts_with(&format!("error: {route}: ")), "{line}");
        assert!(line.contains(folder), "{line}");
    }
}

/// A stream that has begun has its status; what ends it is in an event, and in the log.
#[test]
fn streams_that_fail_are_logged() {
    static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
    // Every pass but a prompt's.
    fn fault(tokens: &[u32]) -> bool {
        tokens.len() == 1
    }
    let log = |line: &str| LOG.lock().unwrap().push(line.into());
    let settings = Settings::default().log(log);
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let engine = || faulty("demo", fault);
    let run = move || server.run(engine, async { drop(stopped.await) });
    let thread = std::thread::spawn(run);
    let server = Server::at(&url).ready();
    let chat = json!([{"role": "user", "content": "Tell a story."}]);
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": "a long story"})),
        ("/v1/completions", json!({"prompt": ["a long story", "another one"]})),
        ("/v1/chat/completions", json!({"messages": chat})),
    ] {
        body["max_tokens"] = json!(8);
        body["ignore_eos"] = json!(true);
        server.post(path, &body).fails(500, &[]);
        body["stream"] = json!(true);
        let last = server.stream(path, &body).last().unwrap();
        assert!(last.contains("\"error\""), "{last}");
        let log = std::mem::take(&mut *LOG.lock().unwrap());
        assert_eq!(log.len(), 2, "{log:?}");
        for line in log {
            assert!(line.starts_with(&format!("POST {path}: failed: ")), "{line}");
        }
    }
    stop.send(()).unwrap();
    thread.join().unwrap().unwrap();
}
