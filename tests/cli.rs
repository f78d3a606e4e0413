//! The command line, through the program itself: every command, flag and format that is a contract.

mod devices; // `gritlm devices`, `--device`, `--profile`, `--tune`
mod embed; // `gritlm embed`
mod generate; // `gritlm generate` and `gritlm chat`
mod search; // `gritlm similarity`, `search` and `rerank`

use crate::support::data;
use assert_cmd::Command;
use gritlm::{Embed, Engine, Options};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const CORPUS: &str = "chess for the desktop\ncapture network packets\nedit XML documents\n";

/// What a run of the program left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program with bytes on stdin.
pub(crate) fn run<A: AsRef<str>>(args: &[A], stdin: impl Into<Vec<u8>>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args.iter().map(AsRef::as_ref)).write_stdin(stdin);
    // No setting of whoever runs the tests; and a program that hangs fails instead.
    command.env_remove("GRITLM_MODEL").env("HF_HUB_OFFLINE", "1").env("COLUMNS", "100");
    let output = command.timeout(Duration::from_secs(300)).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// It worked; returns stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert!(self.problems().is_empty(), "{}", self.stderr);
        self.stdout
    }

    /// It failed as it should: this exit code, nothing on stdout, one line that says all `parts`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let [problem] = self.problems()[..] else {
            panic!("expected one line, found:\n{}", self.stderr);
        };
        assert!(problem.starts_with("error: "), "{problem}");
        assert!(!problem.contains(char::is_control), "{problem:?}");
        for part in parts {
            assert!(problem.contains(part), "expected {part:?} in: {problem}");
        }
    }

    /// The lines on stderr that are neither the device's nor notes nor the course of training.
    pub(crate) fn problems(&self) -> Vec<&str> {
        let fine = |line: &&str| {
            !["note: ", "memory: ", "step "].iter().any(|start| line.starts_with(start))
                && !line.contains(" on cpu (")
                && !line.contains(" on wgpu (")
        };
        self.stderr.lines().filter(fine).collect()
    }
}

/// One JSON object a line.
pub(crate) fn objects(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The embeddings that `embed --format json` prints with more arguments.
#[track_caller]
fn vectors(args: &[&str], stdin: &str) -> Vec<Vec<f32>> {
    let stdout = run(&[&["embed", "--format", "json"], args].concat(), stdin).ok();
    objects(&stdout).iter().map(|line| numbers(&line["embedding"])).collect()
}

/// What the library computes for the same.
fn expected(model: &str, texts: &[&str], how: &Embed) -> Vec<Vec<f32>> {
    let engine = Engine::open(model, &Options::default()).unwrap();
    engine.embed(texts, how).unwrap().into_iter().map(|e| e.vector).collect()
}

fn model(name: &str) -> String {
    data(name).to_str().unwrap().into()
}

#[test]
fn inspect_says_what_is_there() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/demo");
    let cases = [
        ("demo".to_string(), demo, "Mistral", 192),
        (model("mistral-tiny"), data("mistral-tiny"), "Mistral", 128),
        (model("mistral-odd"), data("mistral-odd"), "Mistral", 160),
        (model("mixtral-tiny"), data("mixtral-tiny"), "Mixtral", 96),
    ];
    for (model, folder, architecture, dim) in cases {
        // All that is not header is numbers of two bytes.
        let file = fs::read(folder.join("model.safetensors")).unwrap();
        let parameters = (file.len() - 8 - SafeTensors::read_metadata(&file).unwrap().0) as u64 / 2;
        let args = ["inspect", "--model", &model, "--format", "json"];
        let found = &objects(&run(&args, "").ok())[0];
        assert_eq!(found["architecture"], architecture);
        assert_eq!(found["parameters"], parameters, "{model}");
        assert_eq!(found["config"]["dim"], dim);
        assert_eq!(found["bytes"], 2 * parameters);
        assert_eq!(found["dtypes"], serde_json::json!({ "BF16": 2 * parameters }));
        assert_eq!(found["files"].as_array().unwrap().len(), 1);
        assert_eq!(found["memory"][0]["device"], "cpu");
        assert_eq!(found.get("tensors"), None);
        let all = &objects(&run(&[&args[..], &["--tensors"]].concat(), "").ok())[0];
        let sizes = all["tensors"].as_array().unwrap().iter().map(|tensor| {
            let shape = tensor["shape"].as_array().unwrap();
            shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>()
        });
        assert_eq!(sizes.sum::<u64>(), parameters);

        let text = run(&["inspect", "--model", &model, "--tensors"], "").ok();
        assert!(text.starts_with(&format!("{model}: {architecture}, ")), "{text}");
        assert!(text.contains(&format!("dim {dim},")), "{text}");
        assert!(text.contains("model.embed_tokens.weight"), "{text}");
    }
}

#[test]
fn demo_shows_itself() {
    let text = run(&["demo", "capture network packets"], "").ok();
    for part in ["It shows what GritLM does, not how well", "Embedded ", "tokens/s", " on cpu ("] {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
    assert!(text.contains("Find: capture network packets\n"), "{text}");
    assert_eq!(text.matches("Find: ").count(), 1);
    assert_eq!(text.matches("Ask: ").count(), 3);
    let reused = text.split("embedding pass: ").nth(1).and_then(|text| text.split(' ').next());
    assert!(reused.is_some_and(|tokens| tokens.parse().is_ok_and(|n: usize| n > 10)), "{text}");
    run(&["demo", "--model", "elsewhere"], "").fails(2, &["--model", "elsewhere"]);
}

#[test]
fn completions_complete() {
    let script = run(&["completions", "bash"], "").ok();
    for part in ["_gritlm()", "--no-normalize", "complete -F _gritlm"] {
        assert!(script.contains(part), "expected {part:?}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell], "").ok().contains("gritlm"));
    }
}

#[test]
fn help_helps() {
    let whole = run(&["--help"], "").ok();
    let with_example =
        ["demo", "embed", "generate", "similarity", "search", "rerank", "synth", "completions"];
    for command in with_example.into_iter().chain(["chat", "inspect", "devices"]) {
        assert!(whole.contains(&format!("\n  {command} ")), "{command} is not in --help");
        let help = run(&[command, "--help"], "").ok();
        assert!(help.contains(&format!("Usage: gritlm {command}")), "{help}");
        assert!(!with_example.contains(&command) || help.contains("Example"), "{help}");
    }
    assert!(whole.contains("Examples:"));
    assert!(run(&["--version"], "").ok().starts_with("gritlm "));
    // Nothing asked: the help, but as an error of use.
    assert_eq!(run::<&str>(&[], "").code, 2);
}

#[test]
fn wrong_use_is_one_line() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["embed", "x", "--no-such-flag"], &["--no-such-flag"]),
        (&["no-such-command"], &["no-such-command"]),
        (&["search"], &["<QUERY>", "<PATH>"]),
        (&["search", "x"], &["<PATH>"]),
        (&["search", "x", ".", "--store", "s"], &["--store"]),
        (&["search", "x", ".", "--rerank"], &["--rerank"]),
        (&["search", "x", ".", "--exact"], &["--exact"]),
        (&["search", "x", ".", "--filter", "a=b"], &["--filter"]),
        (&["search", "x", ".", "--below", "a"], &["--below"]),
        (&["embed", "x", "--input", "file"], &["--input"]),
        (&["embed", "x", "--output"], &["--output"]),
        (&["embed", "x", "--output", "vectors.txt"], &["--output", ".npy", "vectors.txt"]),
        (&["embed", "x", "--device", "tpu"], &["--device", "cuda:N", "tpu"]),
        (&["embed", "x", "--device", "cuda:x"], &["--device", "cuda:x"]),
        (&["embed", "x", "--device", "cpu:0"], &["--device", "cpu:0"]),
        (&["embed", "x", "--window", "wide"], &["--window", "none", "wide"]),
        (&["embed", "x", "--window", "0"], &["--window", "positive"]),
        (&["embed", "x", "--window=-1"], &["--window", "-1"]),
        (&["embed", "x", "--pooling", "max"], &["--pooling", "max"]),
        (&["embed", "x", "--attn", "bbbb"], &["--attn", "bbcc", "bbbb"]),
        (&["embed", "x", "--max-length", "many"], &["--max-length", "many"]),
        (&["embed", "x", "--dimensions", "0"], &["--dimensions", "1 to 192"]),
        (&["embed", "x", "--dimensions", "193"], &["--dimensions", "193"]),
        (&["embed", "x", "--batch-tokens", "0"], &["--batch-tokens", "positive"]),
        (&["embed", "x", "--kv-tokens", "0"], &["--kv-tokens", "positive"]),
        (&["embed", "x", "--format", "xml"], &["--format", "xml"]),
        (&["generate", "--prompt", "x", "--temperature", "warm"], &["--temperature", "warm"]),
        (&["generate", "--prompt", "x", "--temperature=-1"], &["--temperature", "0 or more", "-1"]),
        (&["generate", "--prompt", "x", "--temperature", "NaN"], &["--temperature", "NaN"]),
        (&["generate", "--prompt", "x", "--temperature", "inf"], &["--temperature", "inf"]),
        (&["generate", "--prompt", "x", "--top-p", "0"], &["--top-p", "at most 1"]),
        (&["generate", "--prompt", "x", "--top-p", "1.5"], &["--top-p", "1.5"]),
        (&["generate", "--prompt", "x", "--min-p", "2"], &["--min-p", "2"]),
        (&["generate", "--prompt", "x", "--repetition-penalty", "0"], &["--repetition-penalty"]),
        (&["generate", "--prompt", "x", "--stop", ""], &["--stop", "empty"]),
        (&["generate", "--prompt", "x", "--seed", "-1"], &["-1"]),
        (&["completions", "tcsh"], &["tcsh", "bash"]),
        (&["synth", "--like", "1b"], &["--output"]),
    ];
    for (args, parts) in cases {
        run(args, "").fails(2, parts);
    }
}
