//! Nothing that a document says is taken by a terminal for a command.

use std::process::Command;

/// Sets the window's title, colours what follows (with the one-byte introducer), deletes, turns the
/// direction of writing.
const ACTS: [char; 6] = ['\u{1b}', '\u{7}', '\u{9b}', '\u{7f}', '\u{202e}', '\u{2066}'];
const TEXT: &str = "\u{1b}]0;owned\u{7} a\u{9b}31m b\u{7f} c\u{202e}d\u{2066}";

/// What the program writes to stdout and stderr.
fn output(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    let out = command.args(args).args(["--device", "cpu"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap()
}

#[track_caller]
fn is_harmless(text: &str) {
    assert!(!text.contains(ACTS), "{text:?}");
    assert!(text.contains("owned"), "{text:?}");
}

#[test]
fn texts_and_paths_are_shown_with_escapes() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines.txt");
    std::fs::write(&lines, format!("{TEXT}\nanother line\n")).unwrap();
    let lines = lines.to_str().unwrap();
    is_harmless(&output(&["search", "a line", lines]));
    let documents = folder.path().join("documents.jsonl");
    let document = serde_json::json!({"id": TEXT, "title": TEXT, "text": format!("{TEXT} text")});
    std::fs::write(&documents, format!("{document}\n")).unwrap();
    let store = folder.path().join("store");
    let store = store.to_str().unwrap();
    output(&["index", documents.to_str().unwrap(), "--store", store]);
    is_harmless(&output(&["search", "a line", "--store", store]));
    is_harmless(&output(&["ask", "what?", "--store", store, "--max-tokens", "1", "--explain"]));
    // For programs everything is as it was.
    let json = output(&["search", "a line", lines, "--format", "json"]);
    let first = json.lines().map(|l| serde_json::from_str(l).unwrap_or_default());
    let texts: Vec<String> = first
        .filter_map(|line: serde_json::Value| Some(line["text"].as_str()?.to_string()))
        .collect();
    assert!(texts.iter().any(|text| text == TEXT), "{texts:?}");
}
