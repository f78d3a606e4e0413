//! The Python package `gritlm_rs`, beside the library and beside the packages that it works with.
//!
//! `GRITLM_PYTHON` names a Python that has its wheel and nothing else, `GRITLM_PYTHON_PACKAGE` a
//! folder with the package for the Pythons of the evaluation programs. `.ci/run` makes both.
//! Tests without theirs are skipped, and fail where `GRITLM_EXPECT_PYTHON` is set.

use crate::serve_clients::{file, needed_by, runs_in};
use crate::support::with_a_yes;
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The Python with the wheel.
fn python(test: &str) -> Option<String> {
    let found = std::env::var("GRITLM_PYTHON").ok().filter(|value| !value.is_empty());
    let missing = "GRITLM_PYTHON names no Python with the wheel of python/";
    needed_by("python", "GRITLM_EXPECT_PYTHON", test, found, missing)
}

/// Runs a script of `tests/python`, with these folders on the path of its imports.
#[track_caller]
fn runs(python: &str, packages: &[PathBuf], script: &str, given: &Value) {
    let path = [&[file("tests/clients")], packages].concat();
    runs_in(python, &file("tests/python").join(script), &path, given);
}

/// What the library makes of some inputs.
fn given(model: &str) -> Value {
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open(model, &options).unwrap();
    let texts = ["chess interface for the desktop", "capture network packets", "größer als π"];
    let instruction = "Find the software package that fits the description.";
    let vectors = |how: &Embed| -> Vec<Vec<f32>> {
        engine.embed(&texts, how).unwrap().into_iter().map(|e| e.vector).collect()
    };
    let answer = |prompt: &Prompt| -> (Vec<u32>, String) {
        let pieces = engine.generate(prompt, &Sampling::greedy().max_tokens(24)).unwrap();
        let pieces: Vec<gritlm::Piece> = pieces.map(Result::unwrap).collect();
        let text = pieces.iter().map(|piece| piece.text.as_str()).collect();
        (pieces.iter().map(|piece| piece.token.token).collect(), text)
    };
    let (prompt, raw) = ("Describe the package pdfgrep.", "Package: gnuplot");
    let cccc = Embed::default().attn(Some(gritlm::Attn::Cccc));
    let (tokens, text) = answer(&Prompt::user(prompt));
    json!({
        "model": model,
        "corpus": file("model/demo/corpus.jsonl"),
        "toy": file("examples/train"),
        "texts": texts,
        "instruction": instruction,
        "documents": vectors(&Embed::default()),
        "queries": vectors(&Embed::with_instruction(instruction)),
        "causal": vectors(&cccc),
        "prompt": prompt,
        "answer": text,
        "tokens": tokens,
        "raw": raw,
        "raw_answer": answer(&Prompt::raw(raw)).1,
    })
}

/// Everything that the package has, against the library's own results.
#[test]
fn engine() {
    let Some(python) = python("engine") else { return };
    // The demo model has no token for "yes".
    let folder = with_a_yes();
    let model = folder.path().to_str().unwrap();
    let judge = Engine::open(model, &Options::default().device(Device::Cpu)).unwrap();
    let mut given = given("demo");
    let texts: Vec<String> = serde_json::from_value(given["texts"].clone()).unwrap();
    let ranked = judge.rerank("chess", &texts).unwrap();
    let ranked: Vec<(usize, f32)> = ranked.iter().map(|one| (one.index, one.score)).collect();
    given["judge"] = json!({ "model": model, "ranked": ranked });
    runs(&python, &[], "engine.py", &given);
}

/// The calls of the original package, without PyTorch.
#[test]
fn drop_in() {
    let Some(python) = python("drop_in") else { return };
    runs(&python, &[], "drop_in.py", &given("demo"));
}

/// What goes wrong: exceptions of one line, Ctrl-C, many threads and tasks at once; what Python costs.
#[test]
fn conduct() {
    let Some(python) = python("conduct") else { return };
    let mut given = given("demo");
    let long = std::env::var_os("GRITLM_LONG").is_some();
    given["many"] = json!(if long { 10_000 } else { 600 });
    runs(&python, &[], "conduct.py", &given);
}

/// The examples of the package's README, one after the other.
#[test]
fn readme() {
    let Some(python) = python("readme") else { return };
    runs(&python, &[], "readme.py", &json!({ "readme": file("python/README.md") }));
}
