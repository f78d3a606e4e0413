//! The Python package `gritlm_rs`, beside the library and beside the packages that it works with.
//!
//! `GRITLM_PYTHON` names a Python that has its wheel and nothing else, `GRITLM_PYTHON_PACKAGE` a
//! folder with the package for other Pythons: those of `serve_clients.rs`, and `GRITLM_FLEET`, which
//! has tests/python/requirements.txt; `GRITLM_BESIDE` is a folder with the packages of beside.txt.
//! `.ci/run` makes them all. Tests without theirs are skipped, and fail where `GRITLM_EXPECT_PYTHON`
//! is set.

use crate::serve::Server;
use crate::serve_clients::{clients, evaluation, file, given as openai, needed_by, runs_in};
use crate::support::{data, long, say, with_a_yes};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Mutex;

/// What an environment variable names.
fn named(test: &str, variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|value| !value.is_empty());
    let missing = format!("{variable} names nothing");
    needed_by("python", "GRITLM_EXPECT_PYTHON", test, found, &missing)
}

/// The Python with the wheel.
fn python(test: &str) -> Option<String> {
    named(test, "GRITLM_PYTHON")
}

/// The folders with the package, and with the packages of beside.txt.
fn packages(test: &str) -> Option<[PathBuf; 2]> {
    Some([named(test, "GRITLM_PYTHON_PACKAGE")?.into(), named(test, "GRITLM_BESIDE")?.into()])
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
    given["many"] = json!(if long() { 10_000 } else { 600 });
    runs(&python, &[], "conduct.py", &given);
}

/// The examples of the package's README, one after the other.
#[test]
fn readme() {
    let Some(python) = python("readme") else { return };
    runs(&python, &[], "readme.py", &json!({ "readme": file("python/README.md") }));
}

/// The original package on the same weights: the same calls, the same vectors, tokens and caches. The
/// long form has a real model, too.
#[test]
fn original() {
    const NAME: &str = "original";
    let (Some(python), Some(packages)) = (evaluation(NAME), packages(NAME)) else { return };
    let gguf = std::env::var("GRITLM_SMOLLM2").ok().filter(|_| long());
    let folders = [data("mistral-odd"), data("mixtral-tiny")];
    runs(&python, &packages, "original.py", &json!({ "folders": folders, "gguf": gguf }));
}

#[test]
fn sentence_transformers() {
    const NAME: &str = "sentence_transformers";
    let (Some(python), Some(packages)) = (evaluation(NAME), packages(NAME)) else { return };
    runs(&python, &packages, "sentences.py", &json!({ "folder": data("mistral-odd") }));
}

/// Three tasks through the package, a server and the original package: the same scores.
#[test]
fn mteb() {
    const NAME: &str = "mteb";
    let (Some(python), Some(packages)) = (evaluation(NAME), packages(NAME)) else { return };
    let server = Server::start(&[]);
    let given = json!({
        "url": server.url,
        "model": "demo",
        "folder": file("model/demo"),
        "corpus": file("model/demo/corpus.jsonl"),
    });
    runs(&python, &packages, "evaluate_mteb.py", &given);
}

/// Two tasks through the package and a server: the same results.
#[test]
fn lm_eval() {
    const NAME: &str = "lm_eval";
    let (Some(python), Some(packages)) = (evaluation(NAME), packages(NAME)) else { return };
    let server = Server::start(&[]);
    let given = json!({ "url": server.url, "model": "demo", "folder": file("model/demo") });
    runs(&python, &packages, "evaluate_lm_eval.py", &given);
}

/// Classes for LangChain and LlamaIndex, with the real packages.
#[test]
fn adapters() {
    const NAME: &str = "adapters";
    let (Some(langchain), Some(llama_index)) = (clients(NAME), evaluation(NAME)) else { return };
    let Some(packages) = packages(NAME) else { return };
    let server = Server::start(&["--api-key", "a-key"]);
    for python in [langchain, llama_index] {
        runs(&python, &packages[..1], "adapters.py", &openai(&server));
    }
}

/// HippoRAG as its authors wrote it, with this package in place of the original.
#[test]
fn hipporag() {
    const NAME: &str = "hipporag";
    let (Some(python), Some(packages)) = (evaluation(NAME), packages(NAME)) else { return };
    let given = json!({ "folder": file("model/demo"), "hipporag": packages[1] });
    runs(&python, &packages[..1], "hippo.py", &given);
}

/// The manifest for Kubernetes against the program.
#[test]
fn kubernetes() {
    let Some(python) = clients("kubernetes") else { return };
    runs(&python, &[], "kubernetes.py", &json!({ "program": env!("CARGO_BIN_EXE_gritlm") }));
}

/// A cluster of Ray has all cores for itself.
static RAY: Mutex<()> = Mutex::new(());

fn on_ray(test: &str, script: &str) {
    let (Some(python), Some(packages)) = (named(test, "GRITLM_FLEET"), packages(test)) else {
        return;
    };
    let _alone = RAY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    runs(&python, &packages[..1], script, &json!({ "long": long() }));
}

/// Rows embedded on Ray while workers and drivers are killed: each once, and equal.
#[test]
fn ray_embed() {
    on_ray("ray_embed", "ray_fleet.py");
}

/// Replicas on Ray Serve, one killed under load: no wrong answer. In the long form alone: Ray's health
/// checks and restarts have limits in seconds, which a machine that is busy with other tests exceeds.
#[test]
fn ray_serve() {
    match long() {
        true => on_ray("ray_serve", "ray_replicas.py"),
        false => say("SKIPPED python::ray_serve: GRITLM_LONG is not set"),
    }
}
