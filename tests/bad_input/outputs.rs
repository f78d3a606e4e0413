//! Outputs that cannot be written: folders, full disks, readers that go away.

use crate::cli::{Ran, run};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[test]
fn outputs_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(path("folder.npy")).unwrap();
    fs::write(path("file"), "").unwrap();
    let embed = |output: &str| run(&["embed", "x", "--output", output], "");
    embed(&path("none/v.npy")).fails(1, &["none/v.npy", "No such file"]);
    embed(&path("file/v.npy")).fails(1, &["file/v.npy"]);
    embed(&path("folder.npy")).fails(1, &["folder.npy", "directory"]);
    embed(&path("v.txt")).fails(2, &["--output", "v.txt"]);
    embed(&path(".npy")).fails(2, &["--output", ".npy"]);
    // What goes wrong after the file was opened leaves nothing, and the old one as it was.
    fs::write(path("old.npy"), "old").unwrap();
    for output in ["new.npy", "old.npy"] {
        run(&["embed", "--output", &path(output), ""], "").fails(1, &["empty"]);
        run(&["embed", "x", "--output", &path(output), "--dimensions", "999"], "").fails(2, &[]);
        run(&["embed", "x", "--output", &path(output), "--model", "no/../such"], "").fails(1, &[]);
    }
    assert_eq!(fs::read_to_string(path("old.npy")).unwrap(), "old");
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "folder.npy", "old.npy"]);
}

/// A kept file that cannot be written costs a note, not the search.
#[test]
fn search_without_a_place_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "chess").unwrap();
    fs::create_dir(folder.path().join(".gritlm-search.safetensors")).unwrap();
    let ran = run(&["search", "chess", folder.path().to_str().unwrap()], "");
    assert!(ran.stderr.contains("note: embeddings are not kept: "), "{}", ran.stderr);
    assert!(ran.ok().contains("chess"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// The program with its own pipes, for what a reader or a full disk does to it.
fn spawn(args: &[&str], stdout: Stdio, stderr: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args).env_remove("GRITLM_MODEL");
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap()
}

/// `| head -1`: the reader has seen enough, and that is no failure.
#[test]
fn a_reader_that_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts");
    // Ten times what a pipe holds.
    fs::write(&texts, "a text\n".repeat(300)).unwrap();
    let input = ["--input", texts.to_str().unwrap()];
    let cases = [
        [&["embed"], &input[..]].concat(),
        [&["embed", "--format", "json"], &input[..]].concat(),
        [&["similarity"], &input[..]].concat(),
        vec!["generate", "--prompt", "Describe a package.", "--max-tokens", "200", "--raw"],
        vec!["inspect", "--tensors"],
        vec!["completions", "bash"],
        vec!["--help"],
        vec!["demo"],
    ];
    for args in cases {
        let mut child = spawn(&args, Stdio::piped(), Stdio::piped());
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{args:?}");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

/// `/dev/full` takes nothing: a disk that is full.
fn full() -> Option<Stdio> {
    let full = Path::new("/dev/full");
    if !full.exists() {
        crate::support::say("SKIPPED bad_input: there is no /dev/full here");
        return None;
    }
    Some(fs::OpenOptions::new().write(true).open(full).unwrap().into())
}

#[test]
fn a_full_disk_below_stdout() {
    let cases: [&[&str]; 6] = [
        &["embed", "x"],
        &["generate", "--prompt", "x", "--max-tokens", "3"],
        &["similarity", "x", "y"],
        &["inspect"],
        &["devices"],
        &["completions", "bash"],
    ];
    for args in cases {
        let Some(stdout) = full() else { return };
        let output = spawn(args, stdout, Stdio::piped()).wait_with_output().unwrap();
        let ran = Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        ran.fails(1, &["standard output", "No space left"]);
    }
}

/// Notes that nobody can take cost nothing; nor do error lines, but for the exit code.
#[test]
fn a_full_disk_below_stderr() {
    for (args, code) in [
        (["embed", "x", "--max-length=9"], 0),
        (["embed", "x", "--max-length=1"], 1),
        (["embed", "x", "--no-such-flag"], 2),
    ] {
        let Some(stderr) = full() else { return };
        let output = spawn(&args, Stdio::piped(), stderr).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(output.stdout.is_empty(), code != 0);
    }
}
