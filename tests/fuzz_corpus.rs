//! Every file of `fuzz/corpus`, through what its fuzz target calls: seeds, and what was found.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// Gives a target all files of its corpus; names those that fail.
#[track_caller]
fn replay(target: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    assert!(files.len() > 2, "{target}: {} files", files.len());
    let failed: Vec<_> = files
        .iter()
        .filter(|file| {
            let input = fs::read(file).unwrap();
            catch_unwind(|| targets::run(target, &input)).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{target}: {failed:?}");
}

#[test]
fn adapter() {
    replay("adapter");
}

#[test]
fn chat_request() {
    replay("chat_request");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn documents() {
    replay("documents");
}

#[test]
fn gguf() {
    replay("gguf");
}

#[test]
fn safetensors() {
    replay("safetensors");
}

#[test]
fn store() {
    replay("store");
}

#[test]
fn tokenizer() {
    replay("tokenizer");
}

#[test]
fn training() {
    replay("training");
}

/// A corpus without a target would never be read.
#[test]
fn each_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut corpora: Vec<String> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    corpora.sort();
    assert_eq!(corpora, targets::TARGETS.map(|(name, _)| name));
}
