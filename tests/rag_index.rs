//! From files to an index, with the demo model: what the modules share, and the program.

mod chunks; // how texts are cut
mod formats; // formats of documents
mod runs; // what a run stores, skips and removes
mod search; // exact search and reranking

use crate::cli::{objects, run};
use crate::support::data;
use gritlm::{Device, Engine, Options};
use gritlm_rag::{Find, Identity, Indexed, Indexer, Reader, Searcher};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The demo model on the CPU.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = Options::default().device(Device::Cpu).batch_tokens(256);
        Engine::open("demo", &options).unwrap()
    })
}

/// A folder with files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn identity() -> Identity {
    Identity { chunk: 64, ..Identity::of(engine()) }
}

#[track_caller]
fn index(identity: &Identity, store: &Path, paths: &[&Path]) -> Indexed {
    let paths: Vec<PathBuf> = paths.iter().map(|p| p.to_path_buf()).collect();
    Indexer::open(engine(), store, identity).unwrap().run(&paths, &mut |_| Ok(())).unwrap()
}

/// Everything in a store that does not depend on the order in which it came there: by document,
/// the title, metadata, and of each chunk text, tokens, vector, keys and values.
type Content = HashMap<String, (String, Value, Vec<(String, u32, Vec<f32>, Option<Vec<f32>>)>)>;

fn content(store: &Path) -> Content {
    let reader = Reader::open(store).unwrap();
    let vectors = reader.vectors().unwrap();
    let (dim, rows) = (vectors.dim(), vectors.to_f32());
    let row = |id| vectors.ids().iter().position(|&i| i == id).unwrap() * dim;
    let documents = reader.documents().unwrap().into_iter().map(|d| {
        let chunks = d.chunks.iter().map(|&id| {
            let chunk = reader.chunk(id).unwrap();
            let kv = reader.kv(id).unwrap().map(|kv| kv.to_f32());
            (chunk.text, chunk.tokens, rows[row(id)..][..dim].to_vec(), kv)
        });
        (d.path, (d.title, d.metadata, chunks.collect()))
    });
    documents.collect()
}

fn corpus() -> Vec<u8> {
    gritlm::model::demo::CORPUS
        .lines()
        .take(40)
        .flat_map(|l| [l, "\n"].concat().into_bytes())
        .collect()
}

fn long_text() -> String {
    (0..60).map(|i| format!("Sentence number {i} is about packets. ")).collect()
}

#[test]
fn the_program_indexes_searches_and_looks_after_a_store() {
    let pdf = fs::read(data("rag/packets.pdf")).unwrap();
    let files = folder(&[
        ("in/a.pdf", &pdf),
        ("in/b.html", b"<title>Games</title><p>chess for the desktop"),
        ("in/c.jsonl", &corpus()),
        ("in/photo.png", b"\x89PNG\0"),
    ]);
    let (inside, store) = (files.path().join("in"), files.path().join("store"));
    let (inside, store) = (inside.to_str().unwrap(), store.to_str().unwrap());
    let with = |args: &[&str]| run(&[args, &["--store", store, "--format", "json"]].concat(), "");
    let one = |args: &[&str]| objects(&with(args).ok()).remove(0);

    let args = ["index", inside, "--cache", "doc", "--chunk", "64", "--kv-format", "f32"];
    let first = with(&args);
    assert!(first.stderr.contains("note: to embed: 42 documents"), "{}", first.stderr);
    let done = objects(&first.ok()).remove(0);
    assert_eq!(
        (&done["added"], &done["binary"], &done["failed"]),
        (&json!(42), &json!(1), &json!(0))
    );
    assert!(done["seconds"].as_f64().unwrap() > 0.0);
    // The store says how it is made; what was given then need not be given again.
    let again = one(&["index", inside]);
    assert_eq!((&again["unchanged"], &again["chunks"]), (&json!(42), &json!(0)));
    with(&["index", inside, "--chunk", "128"]).fails(1, &["chunk 64", "128"]);
    with(&["index", inside, "--attn", "cccc"]).fails(1, &["attn", "bbcc", "cccc"]);

    let status = one(&["index", "--status"]);
    assert_eq!((&status["documents"], &status["identity"]["cache"]), (&json!(42), &json!("doc")));
    assert_eq!(status["chunks"], status["cached"]);
    let report = one(&["index", "--verify"]);
    assert_eq!((&report["sound"], &report["documents"]), (&json!(true), &json!(42)));
    fs::remove_file(Path::new(inside).join("c.jsonl")).unwrap();
    assert_eq!(one(&["index", inside])["removed"], 40);
    let freed = one(&["index", "--compact"]);
    assert!(freed["after"].as_u64() < freed["before"].as_u64(), "{freed}");

    let found = objects(&with(&["search", "capture packets", "--top-k", "2"]).ok());
    let library = Searcher::open(engine(), Path::new(store)).unwrap();
    let instruction = "Given a query, find the text that answers it.";
    let find = Find::default().top_k(2).instruction(instruction);
    let expected = library.search("capture packets", &find).unwrap();
    assert_eq!(found.len(), 2);
    for (line, hit) in found.iter().zip(&expected) {
        assert_eq!(
            (&line["path"], &line["text"]),
            (&json!(hit.chunk.document), &json!(hit.chunk.text))
        );
        assert!((line["score"].as_f64().unwrap() - f64::from(hit.score)).abs() < 1e-5);
    }
    let text = run(&["search", "games", "--store", store, "--below", inside], "").ok();
    assert!(text.contains("b.html (0): chess for the desktop"), "{text}");
    let text = run(&["index", "--store", store, "--status"], "").ok();
    assert!(text.contains("documents           2"), "{text}");

    // Broken files are named, the rest is indexed, and the exit code says so.
    fs::write(Path::new(inside).join("bad.pdf"), "no").unwrap();
    fs::write(Path::new(inside).join("new.txt"), "maps").unwrap();
    let ran = run(&["index", inside, "--store", store], "");
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("1 added, 0 replaced, 2 unchanged"), "{}", ran.stdout);
    let problems = ran.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("bad.pdf: not a PDF"), "{problems:?}");
    assert!(problems[1].starts_with("error: "), "{problems:?}");
    // A budget that the caches of one run do not fit into is refused, with what they need.
    fs::remove_file(Path::new(inside).join("bad.pdf")).unwrap();
    fs::write(Path::new(inside).join("long.txt"), long_text()).unwrap();
    with(&["index", inside, "--kv-budget", "10kB"])
        .fails(2, &["--kv-budget", "at least", "9.8 KiB"]);
    assert_eq!(one(&["index", inside, "--kv-budget", "1GB"])["added"], 1);
    assert_eq!(one(&["index", "--status"])["kv_budget"], 1_000_000_000);
    with(&["index", inside, "--kv-budget", "much"]).fails(2, &["--kv-budget", "20GB"]);
    with(&["index"]).fails(2, &["PATH"]);
    with(&["search", "x", "--filter", "y"]).fails(2, &["--filter", "key=value"]);
    let nowhere = files.path().join("nowhere");
    run(&["search", "x", "--store", nowhere.to_str().unwrap()], "").fails(1, &["nowhere"]);
}
