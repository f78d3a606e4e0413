//! Ctrl-C: every command ends with 130, the shells' code for it, and says what it has interrupted.

#![cfg(unix)]

use crate::support::with_a_yes;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

fn spawn(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args).args(["--device", "cpu"]).env_remove("GRITLM_MODEL");
    command.env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

/// Hours of work, interrupted as soon as the model is there.
#[track_caller]
fn ends(args: &[&str]) {
    let mut child = spawn(args);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(" on cpu (") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    interrupt(&child);
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}: {said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("interrupted"), "{said}");
    assert!(last.contains(args[0]), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn work_that_is_interrupted_ends_with_130() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let text = "The program shows packets that pass by, and who sent them. ".repeat(9);
    let lines: String = (0..20_000).map(|i| format!("{i}: {text}\n")).collect();
    fs::write(path("lines"), lines).unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("folder/long.txt"), text.repeat(5_000)).unwrap();

    ends(&["embed", "--input", &path("lines"), "--output", &path("out.npy")]);
    ends(&["similarity", "--input", &path("lines")]);
    ends(&["search", "packets", &path("lines")]);
    ends(&["index", &path("folder"), "--store", &path("store")]);
    let model = with_a_yes();
    let model = model.path().to_str().unwrap();
    ends(&["rerank", "packets", "--input", &path("lines"), "--model", model]);
    // No file is half written.
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["folder", "lines", "store"]);
}

/// Answers that cannot end before they have filled a pipe that nobody reads.
#[test]
#[cfg(target_os = "linux")]
fn an_answer_that_is_interrupted_ends_with_130() {
    let endless = r#"{"type": "array", "minItems": 9999, "items": {"enum": ["pdfgrep", "chess"]}}"#;
    for more in [&["--raw"][..], &["--temperature", "1"], &["--temperature", "1", "--seed", "2"]] {
        let generate = ["generate", "--prompt", "List.", "--json-schema", endless];
        let mut child = spawn(&[&generate[..], &["--max-tokens", "2000"], more].concat());
        let mut stdout = child.stdout.take().unwrap();
        rustix::pipe::fcntl_setpipe_size(&stdout, 4096).unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        interrupt(&child);
        stdout.read_to_end(&mut Vec::new()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{more:?}: {said}");
        assert!(said.contains("generate was interrupted"), "{said}");
    }
}

/// The first Ctrl-C lets a server finish what is under way, the second ends it.
#[test]
fn a_server_that_is_interrupted_twice_ends_with_130() {
    for signals in [["-INT", "-INT"], ["-TERM", "-INT"], ["-INT", "-TERM"]] {
        let mut child = spawn(&["serve", "--port", "0", "--grace", "600"]);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut url = String::new();
        stdout.read_line(&mut url).unwrap();
        assert!(stderr.any(|line| line.contains(" on cpu (")));
        let server = crate::serve::Server::at(url.trim_end()).ready();
        let pid = child.id().to_string();
        let kill = |signal: &str| Command::new("kill").args([signal, &pid]).status().unwrap();
        let code = std::thread::scope(|scope| {
            // An answer that takes minutes.
            let body = serde_json::json!({
                "prompt": "x", "n": 100, "max_tokens": 1900, "temperature": 1,
            });
            let server = &server;
            scope.spawn(move || server.try_post("/v1/completions", &body));
            while server.get("/stats").ok()["stats"]["running"] == 0 {}
            kill(signals[0]);
            assert!(stderr.any(|line| line.contains("finishing what is under way")));
            kill(signals[1]);
            child.wait().unwrap().code()
        });
        // 143 is what SIGTERM is told by.
        let expected = if signals[1] == "-INT" { 130 } else { 143 };
        assert_eq!(code, Some(expected), "{signals:?}");
    }
}
