//! Stores made by somebody else, whose checksums are right: nothing in one ends the program, makes it
//! wait, or leads it to a file outside the store. All is done through the program, so that a crash
//! fails a test and does not end the others.

use crate::cli::run;
use crate::rag_graph::store;
use crate::serve::Server;
use gritlm_rag::{VectorFormat, content_hash};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A store with a graph, and nobody at work on it.
fn made() -> TempDir {
    store(VectorFormat::F32).0
}

fn named(folder: &Path, start: &str) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).unwrap()
}

fn meta(folder: &Path, key: &str) -> Value {
    let db = Connection::open(folder.join("store.sqlite")).unwrap();
    let value = "SELECT value FROM meta WHERE key = ?1";
    let value: String = db.query_row(value, [key], |row| row.get(0)).unwrap();
    serde_json::from_str(&value).unwrap()
}

/// Writes a row of `meta` with its checksum.
fn set_meta(folder: &Path, key: &str, value: &Value) {
    let value = value.to_string();
    let mut content = Vec::new();
    for text in ["meta", key, &value] {
        content.extend((text.len() as u64).to_le_bytes());
        content.extend(text.as_bytes());
    }
    let db = Connection::open(folder.join("store.sqlite")).unwrap();
    let checksum = content_hash(&content).cast_signed();
    let put = "UPDATE meta SET value = ?2, checksum = ?3 WHERE key = ?1";
    assert_eq!(db.execute(put, (key, &value, checksum)).unwrap(), 1);
}

fn text(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

/// `gritlm index --verify`: exit code, and what it says.
fn verify(folder: &Path) -> (i32, String) {
    let ran = run(&["index", "--verify", "--store", text(folder), "--device", "cpu"], "");
    (ran.code, ran.stdout + &ran.stderr)
}

fn search(folder: &Path) -> (i32, String) {
    let search = ["search", "a board game", "--store", text(folder), "--device", "cpu"];
    let ran = run(&search, "");
    (ran.code, ran.stdout + &ran.stderr)
}

/// Both say that something is wrong with what has this name; none of them crashes.
#[track_caller]
fn is_refused(folder: &Path, about: &[&str]) {
    for (code, said) in [verify(folder), search(folder)] {
        assert_eq!(code, 1, "{about:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        for about in about {
            assert!(said.contains(about), "expected {about:?} in: {said}");
        }
    }
}

/// A graph's bytes, with the right checksum in the state.
fn set_graph(folder: &Path, bytes: &[u8]) {
    fs::write(named(folder, "graph-"), bytes).unwrap();
    let mut state = meta(folder, "state");
    state["graph"]["bytes"] = bytes.len().into();
    state["graph"]["checksum"] = content_hash(bytes).into();
    set_meta(folder, "state", &state);
}

/// Where a graph's parts begin: its header, and its nodes.
fn parts(bytes: &[u8]) -> (usize, usize) {
    let n = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
    let header = 8 + n(0) * n(4);
    (header, header + 64 + 40 + 2 * n(0))
}

#[test]
fn graphs_that_lead_beyond_their_memory_are_refused() {
    let folder = made();
    let sound = fs::read(named(folder.path(), "graph-")).unwrap();
    assert_eq!(verify(folder.path()).0, 0);
    let (header, nodes) = parts(&sound);
    // Each place, and the number that is written to it.
    for (what, at, number) in [
        ("vectors", 0, &[255, 255, 255, 0][..]),
        ("bytes of a vector", 4, &[255, 255, 0, 0]),
        ("found something else", header, b"U"),
        ("numbers of a vector", header + 33, &[0, 0, 1]),
        ("nodes", header + 64, &[1]),
        ("neighbours", header + 72, &[255, 255]),
        ("highest layer", header + 88, &[9]),
        ("found node", header + 96, &[255, 255, 255, 127]),
        ("layer", header + 104, &[200, 1]),
        ("layer of a node", nodes + 8, &[77]),
        ("neighbours", nodes + 10, &[255, 255]),
        ("neighbour", nodes + 14, &[255, 255, 255, 127]),
    ] {
        let mut bytes = sound.clone();
        bytes[at..at + number.len()].copy_from_slice(number);
        set_graph(folder.path(), &bytes);
        is_refused(folder.path(), &[what]);
    }
    for cut in [4, header + 10, nodes + 5, sound.len() - 1] {
        set_graph(folder.path(), &sound[..cut]);
        is_refused(folder.path(), &["graph-"]);
    }
    // Indexing makes it anew.
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("a.txt"), "chess").unwrap();
    let index = ["index", text(empty.path()), "--store", text(folder.path()), "--device", "cpu"];
    run(&index, "").ok();
    assert_eq!((verify(folder.path()).0, search(folder.path()).0), (0, 0));
}

/// Any bytes but those of vectors, changed at random: either both say so, or neither.
#[test]
fn graphs_changed_at_random_do_not_crash() {
    let folder = made();
    let sound = fs::read(named(folder.path(), "graph-")).unwrap();
    let (header, nodes) = parts(&sound);
    let mut random = fastrand::Rng::with_seed(14);
    let mut refused = 0;
    for _ in 0..60 {
        let mut bytes = sound.clone();
        for _ in 0..40 {
            let at = match random.u8(..4) {
                0 => random.usize(header..nodes),
                _ => random.usize(nodes..bytes.len()),
            };
            bytes[at] = random.u8(..);
        }
        set_graph(folder.path(), &bytes);
        let (verified, said) = verify(folder.path());
        assert!(matches!(verified, 0 | 1), "{verified}: {said}");
        let (searched, said) = search(folder.path());
        assert_eq!(searched, verified, "{said}");
        refused += verified;
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let folder = made();
    let (state, identity) = (meta(folder.path(), "state"), meta(folder.path(), "identity"));
    let cases = [
        ("state", "slots", json!(1_u64 << 62), "rows"),
        ("state", "slots", json!(u64::MAX), "rows"),
        ("state", "slots", json!(1), "row"),
        ("state", "next_chunk", json!(u64::MAX), "chunks"),
        ("state", "next_chunk", json!(0), "chunks"),
        ("state", "next_document", json!(u64::MAX), "documents"),
        ("state", "commit", json!(u64::MAX), "commits"),
        ("state", "kv_bytes", json!(5), "records"),
        ("identity", "dim", json!(1_u64 << 40), "dim"),
        ("identity", "dim", json!(1_u64 << 62), "dim"),
        ("identity", "dim", json!(0), "dim"),
        ("identity", "kv_shape", json!([1_u64 << 62, 4, 64]), "KV shape"),
    ];
    for (row, field, value, about) in cases {
        let mut wrong = if row == "state" { state.clone() } else { identity.clone() };
        wrong[field] = value;
        set_meta(folder.path(), row, &wrong);
        is_refused(folder.path(), &["damaged", about]);
        set_meta(folder.path(), "state", &state);
        set_meta(folder.path(), "identity", &identity);
    }
    assert_eq!(verify(folder.path()).0, 0);
}

#[test]
#[cfg(unix)]
fn links_and_pipes_in_a_store_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("a.txt"), "chess").unwrap();
    let folder = made();
    let at = folder.path();
    let index = |parts: &[&str]| {
        let ran = run(&["index", text(outside.path()), "--store", text(at), "--device", "cpu"], "");
        ran.fails(1, parts);
    };
    let target = outside.path().join("target");
    let copy = outside.path().join("copy");
    for name in ["head", "lock", "store.sqlite"] {
        let file = at.join(name);
        fs::rename(&file, &copy).unwrap();
        // To a file, to none, and a pipe.
        fs::copy(&copy, &target).unwrap();
        symlink(&target, &file).unwrap();
        index(&[name, "expected a regular file, found a symbolic link"]);
        assert_eq!(fs::read(&target).unwrap(), fs::read(&copy).unwrap(), "{name}");
        fs::remove_file(&target).unwrap();
        index(&[name, "symbolic link"]);
        assert!(!target.exists(), "{name}");
        fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        index(&[name, "expected a regular file, found a pipe"]);
        let (code, said) = verify(at);
        assert!(code == 1 || name == "lock", "{name}: {said}");
        fs::remove_file(&file).unwrap();
        fs::rename(&copy, &file).unwrap();
    }
    for name in ["store.sqlite-wal", "store.sqlite-journal", "store.sqlite-shm"] {
        let _ = fs::remove_file(at.join(name));
        symlink(&target, at.join(name)).unwrap();
        index(&[name, "symbolic link"]);
        assert!(!target.exists(), "{name}");
        fs::remove_file(at.join(name)).unwrap();
    }
    for start in ["vectors-", "graph-"] {
        let file = named(at, start);
        fs::rename(&file, &copy).unwrap();
        symlink(&copy, &file).unwrap();
        is_refused(at, &[start, "no regular file"]);
        fs::remove_file(&file).unwrap();
        fs::rename(&copy, &file).unwrap();
    }
    assert_eq!((verify(at).0, search(at).0), (0, 0));
}

#[test]
fn vectors_cut_off_under_a_server_are_an_error() {
    let folder = made();
    let server = Server::start(&["--store", text(folder.path())]);
    let ask = json!({"query": "chess", "max_tokens": 1, "cache": "none", "exact": true});
    server.post("/v1/rag/ask", &ask).ok();
    let vectors = named(folder.path(), "vectors-");
    let whole = fs::metadata(&vectors).unwrap().len();
    for len in [whole - 1, 4096, 0] {
        fs::OpenOptions::new().write(true).open(&vectors).unwrap().set_len(len).unwrap();
        let refused = server.post("/v1/rag/ask", &ask);
        refused.fails(500, &["the store cannot be used"]);
        assert_eq!(server.get("/health").status, 200);
    }
}

#[test]
fn who_may_write() {
    let folder = made();
    let document = json!({"documents": [{"path": "a", "text": "chess"}]}).to_string();
    let index = |server: &Server, key: &str| {
        let key = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", &key)];
        server.post_with("/v1/rag/index", &headers, document.clone())
    };
    let models = |server: &Server, key: &str| {
        server.get_with("/v1/models", &[("authorization", &format!("Bearer {key}"))]).status
    };
    let store = ["--store", text(folder.path())];
    let server = Server::start(&[&store[..], &["--store-read-only"]].concat());
    index(&server, "").fails(403, &["read only"]);
    let keys = ["--api-key", "ask", "--write-key", "write,more"];
    let server = Server::start(&[&store[..], &keys].concat());
    index(&server, "ask").fails(403, &["may write"]);
    index(&server, "other").fails(401, &["key"]);
    assert_eq!([models(&server, "ask"), models(&server, "write")], [200, 200]);
    assert_eq!(models(&server, ""), 401);
    index(&server, "write").ok();
    index(&server, "more").ok();
    drop(server);
    // As before where there is no such key; and for everybody's questions only where there is no other.
    index(&Server::start(&[&store[..], &["--api-key", "ask"]].concat()), "ask").ok();
    let server = Server::start(&[&store[..], &["--write-key", "write"]].concat());
    index(&server, "").fails(403, &["may write"]);
    assert_eq!(models(&server, ""), 200);
    index(&server, "write").ok();
}

#[test]
fn clients_are_not_told_where_a_busy_store_is() {
    let (folder, writer) = store(VectorFormat::F32);
    let server = Server::start(&["--store", text(folder.path())]);
    let body = json!({"documents": [{"path": "a", "text": "chess"}]});
    for _ in 0..3 {
        let refused = server.post("/v1/rag/index", &body);
        assert_eq!(refused.header("retry-after"), "1");
        let said = refused.text.clone();
        refused.fails(503, &["another writer"]);
        assert!(!said.contains(text(folder.path())) && !said.contains("process"), "{said}");
    }
    drop(writer);
    server.post("/v1/rag/index", &body).ok();
}
