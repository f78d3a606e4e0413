//! The programs of `examples/`, run as a newcomer would.

use assert_cmd::Command;
use std::path::Path;
use std::time::Duration;

/// What an example prints. `cargo test` builds all of them beside the tests.
#[track_caller]
fn prints(name: &str) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_gritlm")).with_file_name("examples");
    let mut command = Command::new(folder.join(name));
    let output = command.timeout(Duration::from_secs(300)).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_does_what_it_says() {
    let found = prints("embed_and_search");
    assert!(found.contains("best: capture and analyze network packets (0."), "{found}");
    let answers = prints("generate");
    assert!(answers.contains("Is it a game? "), "{answers}");
    let batch = prints("one_batch");
    assert!(batch.contains("an embedding of 192 numbers"), "{batch}");
    // The batch by hand draws what the engine draws for the same prompt.
    let (_, answer) = batch.split_once("an answer: ").unwrap();
    assert!(answer.len() > 10 && answers.starts_with(answer.trim_end()), "{batch}{answers}");
    let scheduled = prints("scheduler");
    assert_eq!(scheduled.matches("tokens in").count(), 16, "{scheduled}");
    assert_eq!(scheduled.matches("192 numbers").count(), 8, "{scheduled}");
    let rag = prints("rag_cache");
    assert!(rag.contains("from tcpdump"), "{rag}");
    let reused = rag.lines().last().and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
    assert!(reused.is_some_and(|tokens| tokens > 0), "{rag}");
}
