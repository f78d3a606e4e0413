//! Indexing and the program with a graph.

use super::{engine, identity};
use crate::cli::{objects, run};
use gritlm_rag::{Indexer, Reader, Source, Stamp, VectorFormat};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// `n` texts, a line of JSON each.
fn lines(n: usize) -> String {
    (0..n)
        .map(|n| json!({"id": n, "text": format!("text number {n}")}).to_string() + "\n")
        .collect()
}

#[test]
fn indexing_keeps_the_graph_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("in.jsonl"), folder.path().join("store"));
    fs::write(&file, lines(80)).unwrap();
    let mut indexer = Indexer::open(engine(), &store, &identity(VectorFormat::F32)).unwrap();
    indexer.writer().set_approximate(Some(70)).unwrap();
    let covered = |store: &Path| Reader::open(store).unwrap().status().unwrap().graph_chunks;
    let mut told = Vec::new();
    indexer
        .run(&[file], &mut |event| {
            if let gritlm_rag::Event::Graph { done, total } = event {
                told.push((done, total));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((covered(&store), told), (80, vec![(0, 80), (80, 80)]));
    let source = |n: usize| Source {
        path: n.to_string(),
        title: String::new(),
        text: format!("another text, {n}"),
        metadata: Value::Null,
        stamp: Stamp { hash: n as u64 + 1, ..Stamp::default() },
    };
    // Five of 80 are a sixteenth, and six are more.
    for (n, expected) in [(5, 80), (1, 86)] {
        let before = Reader::open(&store).unwrap().len();
        indexer.put((before..before + n).map(source).collect(), &mut |_| Ok(())).unwrap();
        assert_eq!(covered(&store), expected);
    }
}

#[test]
fn the_program_sets_and_tells_when_search_is_approximate() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("in.jsonl"), folder.path().join("store"));
    fs::write(&file, lines(300)).unwrap();
    let (file, store) = (file.to_str().unwrap(), store.to_str().unwrap());
    let with = |args: &[&str]| run(&[args, &["--store", store, "--format", "json"]].concat(), "");
    let one = |args: &[&str]| objects(&with(args).ok()).remove(0);
    assert_eq!(one(&["index", file, "--approximate-above", "290"])["added"], 300);
    let status = one(&["index", "--status"]);
    assert_eq!((&status["approximate_above"], &status["graph_chunks"]), (&json!(290), &json!(300)));
    assert!(status["graph_bytes"].as_u64().unwrap() > 300 * 192);
    let text = run(&["index", "--store", store, "--status"], "").ok();
    assert!(text.contains("approximate above   290\n"), "{text}");
    let query = ["text number 7", "--top-k", "3"];
    let search = |more: &[&str]| with(&[&["search"], &query[..], more].concat());
    // Most of all are scored: the best are among them.
    assert_eq!(search(&[]).ok(), search(&["--exact"]).ok());
    let ask = ["ask", "what is number 7?", "--max-tokens", "1"];
    assert_eq!(one(&ask)["documents"], one(&[&ask[..], &["--exact"]].concat())["documents"]);
    // A damaged graph is named; indexing heals it, and the setting stays.
    let graph = Path::new(store).join("graph-1.usearch");
    fs::write(&graph, "no").unwrap();
    search(&[]).fails(1, &["graph-1.usearch", "expected", "found 2", "gritlm index"]);
    with(&["index", file]).ok();
    assert_eq!(search(&[]).ok(), search(&["--exact"]).ok());
    for wrong in ["some", "-1", "1.5"] {
        let option = format!("--approximate-above={wrong}");
        with(&["index", file, &option]).fails(2, &["--approximate-above", "none", wrong]);
    }
    with(&["index", file, "--approximate-above", "none"]).ok();
    let status = one(&["index", "--status"]);
    assert_eq!((&status["approximate_above"], &status["graph_bytes"]), (&Value::Null, &json!(0)));
}
