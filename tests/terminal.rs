//! Nothing that a document or a model says is taken by a terminal for a command.

use crate::support::data;
use serde_json::{Value, json};
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

/// A model that says this text at each step.
#[cfg(unix)]
fn saying(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data("mistral-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = std::fs::read(data("mistral-tiny/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    tokenizer["decoder"] =
        json!({"type": "Replace", "pattern": {"Regex": "(?s).+"}, "content": text});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// What a program writes to a terminal, with these lines as its input.
#[cfg(unix)]
fn on_a_terminal(args: &[&str], input: &str) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::{Read, Write};
    use std::process::Stdio;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let screen = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args).args(["--device", "cpu"]);
    command.stdin(Stdio::piped()).stdout(screen).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It holds the terminal open.
    drop(command);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let mut written = Vec::new();
    // Its end is an error where nobody has it open any more.
    let _ = std::fs::File::from(terminal).read_to_end(&mut written);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(written).unwrap()
}

/// Through a pipe, as `on_a_terminal`.
#[cfg(unix)]
fn through_a_pipe(args: &[&str], input: &str) -> String {
    let ran = crate::cli::run(&[args, &["--device", "cpu"]].concat(), input);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

#[test]
#[cfg(unix)]
fn what_a_model_says_is_shown_with_escapes_and_piped_as_it_is() {
    for (says, shown) in [
        ("\u{1b}]0;owned\u{7}", "\\u{1b}]0;owned\\u{7}"),
        ("\u{1b}[2J\u{1b}[31mowned\r", "\\u{1b}[2J\\u{1b}[31mowned\\r"),
        ("\u{9d}0;owned\u{9c}\u{9b}31m\u{7f}", "\\u{9d}0;owned\\u{9c}\\u{9b}31m\\u{7f}"),
        ("\u{202e}owned\u{2066}\u{8}", "\\u{202e}owned\\u{2066}\\u{8}"),
    ] {
        let model = saying(says);
        let folder = tempfile::tempdir().unwrap();
        let (document, store) = (folder.path().join("a.txt"), folder.path().join("store"));
        std::fs::write(&document, "chess").unwrap();
        let [model, document, store] =
            [model.path(), &document, &store].map(|path| path.to_str().unwrap());
        through_a_pipe(&["index", document, "--store", store, "--model", model], "");
        for (args, input) in [
            (&["generate", "--prompt", "a"][..], ""),
            (&["chat"], "a\n\n"),
            (&["ask", "a", "--store", store], ""),
        ] {
            let args = [args, &["--model", model, "--max-tokens", "2"]].concat();
            let screen = on_a_terminal(&args, input);
            is_harmless(&screen);
            assert!(screen.contains(shown), "{screen:?}");
            let piped = through_a_pipe(&args, input);
            assert!(piped.contains(says) && !piped.contains(shown), "{piped:?}");
        }
        let args = ["generate", "--prompt", "a", "--model", model, "--max-tokens", "1"];
        let args = [&args[..], &["--format", "json"]].concat();
        let screen = on_a_terminal(&args, "");
        is_harmless(&screen);
        let object: Value = serde_json::from_str(screen.trim()).unwrap();
        assert_eq!(object["text"], says);
    }
}

/// New lines and tabs stay what they are.
#[test]
#[cfg(unix)]
fn lines_of_an_answer_stay_lines() {
    for (says, shown) in [("a\nb", "a\r\nb"), ("a\tb\n", "a\tb\r\n"), ("é漢\n\n", "é漢\r\n\r\n")]
    {
        let model = saying(says);
        let model = model.path().to_str().unwrap();
        let args = ["generate", "--prompt", "a", "--max-tokens", "1", "--model", model];
        let screen = on_a_terminal(&args, "");
        assert_eq!(screen, format!("{shown}\r\n"));
    }
}
