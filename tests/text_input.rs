//! Texts from files and stdin as editors write them: byte-order marks, UTF-16, blank lines.

use crate::cli::{objects, run};
use crate::support::with_a_yes;
use gritlm_rag::read;
use serde_json::Value;
use std::fs;
use std::path::Path;

const LINES: &str = "chess for the desktop\ncapture network packets\nedit größe ☃ 𝄞\n";
const OBJECTS: &str = "{\"text\":\"chess for the desktop\"}\n\
                       {\"text\":\"capture network packets\"}\n{\"text\":\"edit größe ☃ 𝄞\"}\n";

/// A text as editors save it, with a mark.
fn marked(text: &str) -> [(&'static str, Vec<u8>); 3] {
    let units = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
        "\u{FEFF}".encode_utf16().chain(text.encode_utf16()).flat_map(order).collect()
    };
    [
        ("UTF-8", format!("\u{FEFF}{text}").into_bytes()),
        ("UTF-16LE", units(u16::to_le_bytes)),
        ("UTF-16BE", units(u16::to_be_bytes)),
    ]
}

/// Runs `args` with the text as `--input` and on stdin, plain and marked: the same comes out.
#[track_caller]
fn same_however_marked(args: &[&str], text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts");
    let expected = run(args, text).ok();
    for (mark, bytes) in marked(text) {
        assert_eq!(run(args, bytes.clone()).ok(), expected, "{args:?}, {mark} on stdin");
        fs::write(&file, bytes).unwrap();
        let args = [args, &["--input", file.to_str().unwrap()]].concat();
        assert_eq!(run(&args, "").ok(), expected, "{args:?}, {mark} in a file");
    }
}

#[test]
fn marks_do_not_change_embeddings() {
    for text in [LINES, OBJECTS, &LINES.replace('\n', "\r\n")] {
        same_however_marked(&["embed", "--format", "json"], text);
    }
}

#[test]
fn marks_do_not_change_similarities_and_ranks() {
    let model = with_a_yes();
    let model = model.path().to_str().unwrap();
    for text in [LINES, OBJECTS] {
        same_however_marked(&["similarity"], text);
        same_however_marked(&["rerank", "chess", "--model", model], text);
    }
}

#[test]
fn files_one_after_the_other_may_each_have_a_mark() {
    let whole = run(&["embed"], LINES).ok();
    assert_eq!(
        run(&["embed"], format!("\u{FEFF}{}", LINES.replace("\ne", "\n\u{FEFF}e"))).ok(),
        whole
    );
    assert_eq!(run(&["embed"], OBJECTS.replace('{', "\u{FEFF}{")).ok(), whole);
    // As "$(cat FILE)" gives it.
    let lines: Vec<String> = LINES.lines().map(|line| format!("\u{FEFF}{line}")).collect();
    assert_eq!(run(&[&["embed".to_string()][..], &lines].concat(), "").ok(), whole);
}

/// Score and text of what is found.
fn found(path: &Path) -> Vec<(Value, Value)> {
    let args = ["search", "capture packets", path.to_str().unwrap(), "--format", "json"];
    let found = objects(&run(&args, "").ok());
    found.iter().map(|line| (line["score"].clone(), line["text"].clone())).collect()
}

#[test]
fn marks_do_not_change_what_search_finds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    let below = folder.path().join("folder");
    fs::create_dir(&below).unwrap();
    for text in [LINES, OBJECTS] {
        fs::write(&file, text).unwrap();
        fs::write(below.join("file"), text).unwrap();
        let expected = (found(&file), found(&below));
        for (mark, bytes) in marked(text) {
            fs::write(&file, &bytes).unwrap();
            fs::write(below.join("file"), &bytes).unwrap();
            assert_eq!((found(&file), found(&below)), expected, "{mark}");
        }
    }
}

#[test]
fn marks_do_not_change_prompts_and_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    let prompt = "Describe the package größe.";
    let generate = ["generate", "--max-tokens", "5", "--format", "json"];
    let expected = run(&generate, prompt).ok();
    let chat = ["chat", "--max-tokens", "5"];
    let turns = "Describe pdfgrep.\nAnd xboard?\n";
    let talked = run(&chat, turns).ok();
    let schema = "{\"enum\": [\"größe\", \"pdfgrep\"]}";
    fs::write(&file, schema).unwrap();
    let by_schema = ["generate", "--prompt", prompt, "--json-schema", file.to_str().unwrap()];
    let bound = run(&by_schema, "").ok();
    for (mark, bytes) in marked(prompt) {
        assert_eq!(run(&generate, bytes).ok(), expected, "{mark}");
    }
    for (mark, bytes) in marked(turns) {
        assert_eq!(run(&chat, bytes).ok(), talked, "{mark}");
    }
    for (mark, bytes) in marked(schema) {
        fs::write(&file, bytes).unwrap();
        assert_eq!(run(&by_schema, "").ok(), bound, "{mark}");
    }
}

#[test]
fn marks_do_not_change_what_is_indexed() {
    let files = [
        ("a.txt", "größe ☃\nof things"),
        ("Makefile", "all:\n\techo 𝄞"),
        ("a.md", "# Größe\n\nof things"),
        ("a.html", "<title>Größe</title><p>of <b>things</b>"),
        ("a.jsonl", "{\"text\":\"größe\",\"title\":\"𝄞\",\"id\":7}\n{\"text\":\"things\"}\n"),
    ];
    for (name, text) in files {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        let documents = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let (sources, problems) = read(folder.path());
            assert_eq!(problems, [""; 0], "{name}");
            let parts = sources.into_iter().map(|s| (s.path, s.title, s.text, s.metadata));
            parts.collect::<Vec<_>>()
        };
        let expected = documents(text.as_bytes());
        assert!(!expected.is_empty());
        for (mark, bytes) in marked(text) {
            assert_eq!(documents(&bytes), expected, "{name}, {mark}");
        }
    }
}

/// Half a character, and half of a pair of units.
#[test]
fn broken_utf16_is_named() {
    let [_, (_, little), (_, big)] = marked("fine\nthen 𝄞\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    for bytes in [&little[..little.len() - 1], &little[..little.len() - 4], &big[..big.len() - 4]] {
        fs::write(&file, bytes).unwrap();
        let name = file.to_str().unwrap();
        run(&["embed", "--input", name], "").fails(1, &[name, "UTF-16"]);
        run(&["embed"], bytes).fails(1, &["standard input", "UTF-16"]);
        run(&["search", "x", name], "").fails(1, &[name, "UTF-16"]);
        let (sources, problems) = read(folder.path());
        assert!(sources.is_empty());
        assert!(problems[0].contains("a.txt: not UTF-16"), "{problems:?}");
    }
}

#[test]
fn a_blank_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.txt");
    let name = file.to_str().unwrap();
    let objects = "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"\"}\n";
    for (text, line) in [
        ("a\n\nb\n", "line 2"),
        ("a\nb\r\n\r\n", "line 3"),
        ("\na\n", "line 1"),
        (objects, "line 3"),
    ] {
        fs::write(&file, text).unwrap();
        for command in ["embed", "similarity"] {
            run(&[command, "--input", name], "").fails(1, &[name, line, "empty"]);
            run(&[command], text).fails(1, &["standard input", line, "empty"]);
        }
    }
    run(&["embed", "a", ""], "").fails(1, &["text 1", "empty"]);
    // Without a blank line at the end, too.
    fs::write(&file, "a\nb").unwrap();
    run(&["embed", "--input", name], "").ok();
}
