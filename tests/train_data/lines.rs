//! Formats, bad lines, samples that are left out.

use super::{encoder, engine, folder, open, pairs, texts};
use gritlm_train::{Data, Encoder, Error, Lengths, MAX_LINE, Passage, Spoken};
use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::process::Command;

const PAIR: &str = r#"{"query": "a", "pos": ["b"], "neg": ["c"]}"#;

/// The message of a folder with one file, without the folder's name.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let folder = folder(&[]);
    fs::write(folder.path().join("f.jsonl"), bytes).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.len() < 500, "{error}");
    error.strip_prefix(&format!("{}/", folder.path().display())).unwrap_or(&error).to_string()
}

#[test]
fn plain_texts_and_instructions_go_anywhere() {
    let line =
        r#"{"query": ["\t Find it: \n", "a"], "pos": ["b", ["", "c"]], "neg": [["Say:", ":d "]],
        "task_name": {"ignored": [1]}}"#
            .replace('\n', "");
    let folder = folder(&[
        ("a.jsonl", &format!("\u{FEFF}{line}\r\n\n  \n{PAIR}\n\u{FEFF}{PAIR}")),
        ("b.jsonl", "{\"text\": \"All of it.\"}\n{\"text\": [\"Hi\", \"Ho\"]}\n"),
        ("c.jsonl", r#"{"document": ["Keep it", "d"], "text": ["Hi", "Ho", "And?", ""]}"#),
        (".hidden.jsonl", "no JSON"),
        ("notes.txt", "no JSON"),
    ]);
    let data = open(folder.path()).unwrap();
    assert_eq!((data.pairs(), data.generative()), (3, 3));
    let passage = |instruction: &str, text: &str| Passage {
        instruction: instruction.into(),
        text: text.into(),
    };
    let pair = data.pair(0).unwrap();
    assert_eq!(pair.query, passage("Find it", "a"));
    assert_eq!(pair.positives, [passage("", "b"), passage("", "c")]);
    assert_eq!(pair.negatives, [passage("Say", ":d ")]);
    assert_eq!([1, 2].map(|i| data.pair(i).unwrap().place.line), [4, 5]);
    assert_eq!(data.text(0).unwrap().spoken, Spoken::Text("All of it.".into()));
    let text = data.text(2).unwrap();
    assert_eq!(text.document, Some(passage("Keep it", "d")));
    let turn = |user: &str, answer: &str| (user.to_string(), answer.to_string());
    assert_eq!(text.spoken, Spoken::Turns(vec![turn("Hi", "Ho"), turn("And?", "")]));

    // One file alone, whatever its name.
    fs::write(folder.path().join("notes.txt"), PAIR).unwrap();
    assert_eq!(open(&folder.path().join("notes.txt")).unwrap().pairs(), 1);
}

#[test]
fn bad_lines_are_named() {
    let lines: &[(&str, &str)] = &[
        ("chess", "expected a JSON object, found none: expected value, column 1"),
        (
            r#"{"query": "a"#,
            "expected a JSON object, found none: EOF while parsing a string, column 12",
        ),
        ("[1]", "expected a JSON object, found a list"),
        ("{}", r#"expected a key "query" or "text", found neither"#),
        (r#"{"pos": ["b"]}"#, r#"expected a key "query" or "text", found neither"#),
        (
            r#"{"query": "a", "text": "b"}"#,
            r#"expected "query" alone, found "document" or "text" too"#,
        ),
        (r#"{"document": "a"}"#, r#"expected a key "text" beside "document", found none"#),
        (r#"{"query": "a"}"#, r#""pos": expected a list of texts, found no such key"#),
        (r#"{"query": "a", "pos": "b"}"#, r#""pos": expected a list of texts, found a text"#),
        (
            r#"{"query": "a", "pos": [], "neg": ["c"]}"#,
            r#""pos": expected at least one text, found an empty list"#,
        ),
        (
            r#"{"query": "a", "pos": ["b"]}"#,
            r#""neg": expected a list of texts, found no such key"#,
        ),
        (
            r#"{"query": "a", "pos": ["b"], "neg": []}"#,
            r#""neg": expected at least one text for a group of 2 passages, found an empty list"#,
        ),
        (
            r#"{"query": 1, "pos": ["b"], "neg": ["c"]}"#,
            r#""query": expected a text or [instruction, text], found a number"#,
        ),
        (
            r#"{"query": "a", "pos": ["b", ["i", "b", "c"]], "neg": ["c"]}"#,
            r#""pos"[1]: expected a text or [instruction, text], found a list of 3"#,
        ),
        (
            r#"{"query": "a", "pos": ["b"], "neg": [["i", null]]}"#,
            r#""neg"[0]: expected a text or [instruction, text], found null in the list"#,
        ),
        (
            r#"{"query": ["a"], "pos": ["b"], "neg": ["c"]}"#,
            r#""query": expected a text or [instruction, text], found a list of 1"#,
        ),
        (r#"{"text": true}"#, r#""text": expected a text or a list of texts, found a boolean"#),
        (r#"{"text": ["a", {}]}"#, r#""text"[1]: expected a text, found an object"#),
        (
            r#"{"text": []}"#,
            r#""text": expected the user's texts, each with the assistant's answer, found an empty list"#,
        ),
        (
            r#"{"text": ["a", "b", "c"]}"#,
            r#""text": expected the user's texts, each with the assistant's answer, found 3 texts: the last has no answer"#,
        ),
        (
            r#"{"document": "a", "text": "b"}"#,
            r#""text": expected a list of texts beside "document", found a text"#,
        ),
    ];
    for (line, problem) in lines {
        assert_eq!(refused(line.as_bytes()), format!("f.jsonl:1: {problem}"), "{line}");
    }
    // The first bad line of many, blank ones counted.
    let many = format!("{PAIR}\n\n{}null\n1\n", pairs("a", 5000));
    assert_eq!(refused(many.as_bytes()), "f.jsonl:5003: expected a JSON object, found null");
    assert_eq!(
        refused(format!("{PAIR}\n{}", texts(1)).as_bytes()),
        "f.jsonl:2: expected \"query\", as in the lines before, found \"text\"; a file holds \
         samples of one kind"
    );
}

#[test]
fn bytes_that_are_no_text_are_named() {
    assert_eq!(
        refused(b"{\"text\": \"a\xFFb\"}"),
        "f.jsonl:1: expected UTF-8, found 0xff at byte 11 (counted from 0)"
    );
    let cut = "{\"text\": \"größ".as_bytes();
    assert_eq!(
        refused(&cut[..cut.len() - 1]),
        "f.jsonl:1: expected UTF-8, found an unfinished character at byte 14 (counted from 0)"
    );
    assert_eq!(
        refused(b"\xFF\xFE{\0}\0"),
        "f.jsonl:1: expected UTF-8, found 0xff at byte 0 (counted from 0)"
    );
    let long = format!("{PAIR}\n{{\"text\": \"{}\"}}\n", "a".repeat(MAX_LINE));
    assert_eq!(
        refused(long.as_bytes()),
        "f.jsonl:2: expected a line of at most 16777216 bytes, found a longer one"
    );
    // Brackets without end do not end the program.
    let deep = refused("[".repeat(1 << 20).as_bytes());
    assert!(deep.starts_with("f.jsonl:1: expected a JSON object, found none: recursion"), "{deep}");
}

#[test]
fn folders_without_samples_are_named() {
    for empty in ["", "\n \n\r\n", "\u{FEFF}\n"] {
        let expected = "f.jsonl: expected a sample in each line, found an empty file";
        assert_eq!(refused(empty.as_bytes()), expected);
    }
    let folder = folder(&[("a.json", PAIR)]);
    let path = folder.path().display();
    assert_eq!(
        open(folder.path()).unwrap_err().to_string(),
        format!("{path}: expected files that end in .jsonl, found none in this folder")
    );
    #[cfg(unix)]
    {
        // Opening a pipe would wait for its writer.
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(
            open(&pipe).unwrap_err().to_string(),
            format!("{path}/pipe: expected a file or a folder, found a pipe or a device")
        );
    }
    let error = open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("{path}/none: ")), "{error}");
}

#[test]
fn samples_without_room_are_left_out_and_counted() {
    let long = "word ".repeat(100);
    let question = "why ".repeat(100);
    let lengths = Lengths::default().query_max_len(16).passage_max_len(24).generative_max_len(32);
    let encoder = encoder(lengths);
    let folder = folder(&[
        (
            "a.jsonl",
            &format!(
                "{PAIR}\n{{\"query\": [\"{long}\", \"a\"], \"pos\": [\"b\"], \"neg\": [\"c\"]}}\n\
                 {{\"query\": \"a\", \"pos\": [\"b\"], \"neg\": [[\"{long}\", \"c\"]]}}\n\
                 {{\"query\": \"a\", \"pos\": [\" \"], \"neg\": [\"c\"]}}\n{PAIR}\n"
            ),
        ),
        (
            "b.jsonl",
            &format!("{}{{\"text\": [\"{question}\", \"a\"]}}\n{{\"text\": \"\"}}\n", texts(1)),
        ),
        ("c.jsonl", &format!("{{\"document\": \"{long}\", \"text\": [\"a\", \"b\"]}}\n")),
    ]);
    let data = Data::open(folder.path(), &encoder, 2).unwrap();
    assert_eq!((data.pairs(), data.generative()), (2, 2));
    assert_eq!(data.pair(1).unwrap().place.line, 5);
    let start = format!("{}/", folder.path().display());
    let notes: Vec<String> = data.notes().map(|n| n.replace(&start, "")).collect();
    assert_eq!(
        notes,
        [
            "a.jsonl: 3 of 5 samples left out, the first in line 2: an instruction fills \
             `query_max_len` 16",
            "b.jsonl: 2 of 3 samples left out, the first in line 2: the user's first text fills \
             `generative_max_len` 32",
        ]
    );
    // Nothing that is left has an empty vector or no token to learn.
    for i in 0..2 {
        assert!(encoder.answer(&data.text(i).unwrap()).unwrap().learned() > 0);
        let text = encoder.query(&data.pair(i).unwrap().query).unwrap();
        assert!(text.skip < text.tokens.len());
    }
    let none = refused(b"{\"text\": \"\"}\n{\"text\": \" \"}\n");
    assert_eq!(
        none,
        "f.jsonl: expected samples, found 2 of 2 samples left out, the first in line 1: the text \
         is empty"
    );
}

#[test]
fn documents_that_fill_the_model_are_left_out() {
    let word = |n: usize| "chess ".repeat(n);
    let line = |n| format!("{{\"document\": \"{}\", \"text\": [\"Is it?\", \"Yes.\"]}}\n", word(n));
    let folder = folder(&[("a.jsonl", &[line(10), line(4000)].concat())]);
    let encoder = encoder(Lengths::default());
    let data = Data::open(folder.path(), &encoder, 2).unwrap();
    assert_eq!(data.generative(), 1);
    assert!(
        data.notes().next().unwrap().ends_with(
            "1 of 2 samples left out, the first in line 2: document and question fill the model's \
             2048 positions"
        ),
        "{:?}",
        data.notes().next()
    );
}

#[test]
fn texts_are_cut_between_characters() {
    let lengths = Lengths::default().query_max_len(10).passage_max_len(20).generative_max_len(10);
    let text = "ß☃𝄞".repeat(200);
    let folder = folder(&[(
        "a.jsonl",
        &format!("{{\"query\": \"{text}\", \"pos\": [\"b\"], \"neg\": [\"c\"]}}\n"),
    )]);
    let data = Data::open(folder.path(), &encoder(lengths), 2).unwrap();
    let query = data.pair(0).unwrap().query.text;
    assert_eq!(query.chars().count(), 200);
    assert!(text.starts_with(&query) && query.ends_with('☃'));
}

#[test]
fn changed_files_are_named() {
    let folder = folder(&[("a.jsonl", &pairs("a", 3))]);
    let file = folder.path().join("a.jsonl");
    let data = open(folder.path()).unwrap();
    let changed =
        format!("{}: expected the file as it was opened; found it changed", file.display());
    for text in [pairs("a", 1), texts(9), "x".repeat(400)] {
        fs::write(&file, text).unwrap();
        assert_eq!(data.pair(2).unwrap_err().to_string(), changed);
    }
    // The hash of all samples sees a change that leaves every line valid, and no other.
    fs::write(&file, pairs("a", 3)).unwrap();
    assert_eq!(open(folder.path()).unwrap().fingerprint(), data.fingerprint());
    fs::write(&file, pairs("a", 3).replace('\n', "\r\n\n")).unwrap();
    assert_eq!(open(folder.path()).unwrap().fingerprint(), data.fingerprint());
    fs::write(&file, pairs("b", 3)).unwrap();
    assert_ne!(open(folder.path()).unwrap().fingerprint(), data.fingerprint());
}

#[test]
fn invalid_options_are_named() {
    let new = |lengths| Encoder::new(engine().tokenizer(), engine().config(), lengths).err();
    let error = new(Lengths::default().query_max_len(0)).unwrap().to_string();
    assert_eq!(error, "query_max_len: expected 1 to 2048, the positions of the model, found 0");
    let long = Lengths::default().generative_max_len(4096);
    let error = new(long).unwrap().to_string();
    assert!(error.ends_with("the positions of the model, found 4096"), "{error}");
    assert!(new(long.within(engine().config())).is_none());
    let error = Data::open(Path::new("none"), &encoder(Lengths::default()), 0).unwrap_err();
    assert_eq!(error.to_string(), "group: expected 1 or more, found 0");
    // A group of a positive passage alone needs no negative ones.
    let folder = folder(&[("a.jsonl", r#"{"query": "a", "pos": ["b"]}"#)]);
    assert_eq!(Data::open(folder.path(), &encoder(Lengths::default()), 1).unwrap().pairs(), 1);
}
