//! Clients and evaluation programs that others wrote, unchanged, against `gritlm serve`.
//!
//! `GRITLM_CLIENTS` names a Python that has tests/clients/requirements.txt, `GRITLM_EVALUATION` one
//! that has evaluation.txt, `GRITLM_OPENAI_NODE` the `node_modules` of tests/clients/openai-node.
//! Tests without theirs are skipped, and fail where `GRITLM_EXPECT_CLIENTS` is set.

use crate::browser::chromium;
use crate::devtools::Browser;
use crate::serve::Server;
use crate::serve_rag::store_of;
use crate::support::{close, data, say};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use gritlm_rag::CacheKind;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KEY: &str = "a-key";

/// What a test needs; where it is missing, that is said by the test's name.
fn needed<T>(test: &str, found: Option<T>, missing: &str) -> Option<T> {
    needed_by("serve_clients", "GRITLM_EXPECT_CLIENTS", test, found, missing)
}

/// What a test of a file needs; where it is missing, that is said by the test's name, and is a failure
/// where the variable `expected` is set.
pub(crate) fn needed_by<T>(
    file: &str,
    expected: &str,
    test: &str,
    found: Option<T>,
    missing: &str,
) -> Option<T> {
    if found.is_none() {
        assert!(std::env::var_os(expected).is_none(), "{missing}, and {expected} is set");
        say(&format!("SKIPPED {file}::{test}: {missing}"));
    }
    found
}

/// What an environment variable names.
fn named(test: &str, variable: &str, what: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    needed(test, value, &format!("{variable} names no {what}"))
}

/// The Python with the clients.
pub(crate) fn clients(test: &str) -> Option<String> {
    named(test, "GRITLM_CLIENTS", "Python with tests/clients/requirements.txt")
}

/// The Python with the evaluation programs.
pub(crate) fn evaluation(test: &str) -> Option<String> {
    named(test, "GRITLM_EVALUATION", "Python with tests/clients/evaluation.txt")
}

/// A file of this checkout.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a script of tests/clients on these values; it prints what it has checked.
#[track_caller]
pub(crate) fn runs(python: &str, script: &str, given: &Value) {
    runs_in(python, &file("tests/clients").join(script), &[], given);
}

/// Runs a script on these values, with these folders on the path of its imports.
#[track_caller]
pub(crate) fn runs_in(python: &str, script: &Path, path: &[PathBuf], given: &Value) {
    let mut command = Command::new(python);
    command.arg(script).env("PYTHONPATH", std::env::join_paths(path).unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Neither settings of whoever runs the tests nor any other server.
    let ours = |name: &str| name.starts_with("OPENAI_") || name.starts_with("GRITLM_");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "*").env("LANGSMITH_TRACING", "false");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    say(text(&output.stdout).trim());
}

/// Inputs, and what the library makes of them.
pub(crate) fn given(server: &Server) -> Value {
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open("demo", &options).unwrap();
    let texts = ["chess interface for the desktop", "capture network packets", "größer als π"];
    let vectors = engine.embed(&texts, &Embed::default()).unwrap();
    let vectors: Vec<&[f32]> = vectors.iter().map(|e| e.vector.as_slice()).collect();
    let answer = |prompt: &Prompt, max_tokens| {
        let how = Sampling::greedy().max_tokens(max_tokens);
        let pieces = engine.generate(prompt, &how).unwrap();
        pieces.map(|piece| piece.unwrap().text).collect::<String>()
    };
    let (prompt, raw) = ("Describe the package pdfgrep.", "Package: gnuplot");
    json!({
        "url": server.url,
        "key": KEY,
        "model": "demo",
        "tokenizer": file("model/demo"),
        "texts": texts,
        "vectors": vectors,
        "prompt": prompt,
        "tokens": 24,
        "answer": answer(&Prompt::user(prompt), 24),
        "raw": raw,
        "raw_answer": answer(&Prompt::raw(raw), 8),
        "schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "size": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["name", "size"],
            "additionalProperties": false,
        },
        "keys": ["name", "size"],
    })
}

#[test]
fn openai() {
    let Some(python) = clients("openai") else { return };
    let server = Server::start(&["--api-key", KEY]);
    runs(&python, "openai_client.py", &given(&server));
}

#[test]
fn langchain() {
    let Some(python) = clients("langchain") else { return };
    let server = Server::start(&["--api-key", KEY]);
    runs(&python, "langchain_client.py", &given(&server));
}

#[test]
fn llama_index() {
    let Some(python) = evaluation("llama_index") else { return };
    let server = Server::start(&["--api-key", KEY]);
    runs(&python, "llama_index_client.py", &given(&server));
}

/// Log-likelihoods and answers, of both tokenizers that it may use, equal to transformers'.
#[test]
fn lm_eval() {
    let Some(python) = evaluation("lm_eval") else { return };
    // What random weights generate is no text.
    let models =
        [("mistral-tiny", data("mistral-tiny"), false), ("demo", file("model/demo"), true)];
    let servers = models.map(|(name, folder, writes)| {
        let path = if writes { name } else { folder.to_str().unwrap() };
        let server = Server::start(&["--model", path]);
        let given = json!({"url": server.url, "model": name, "folder": folder, "writes": writes});
        (server, given)
    });
    let given: Vec<&Value> = servers.iter().map(|(_, given)| given).collect();
    runs(&python, "lm_eval_client.py", &json!({"servers": given}));
}

/// Scores of retrieval and of similarity equal to those of vectors from `gritlm embed`.
#[test]
fn mteb() {
    let Some(python) = evaluation("mteb") else { return };
    // It asks for the model without a key.
    let server = Server::start(&[]);
    let given = json!({
        "url": server.url,
        "model": "demo",
        "program": env!("CARGO_BIN_EXE_gritlm"),
        "corpus": file("model/demo/corpus.jsonl"),
    });
    runs(&python, "mteb_client.py", &given);
}

/// Generated requests, right and wrong ones, to everything that the description names: no 5xx, and
/// every answer as the description has it.
#[test]
fn schemathesis() {
    let Some(python) = clients("schemathesis") else { return };
    // Short answers, so that thousands of requests take seconds; and bodies of any size are tried.
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open("demo", &options).unwrap();
    let (_kept, store) = store_of(&engine, CacheKind::Doc);
    let server = Server::start(&["--api-key", KEY, "--store", store.to_str().unwrap()]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,\
                  response_schema_conformance";
    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "run", &format!("{}/openapi.json", server.url)]);
    command.args(["--header", &format!("Authorization: Bearer {KEY}"), "--checks", checks]);
    command.args(["--max-examples", "10", "--seed", "1", "--generation-database", "none"]);
    command.args(["--phases", "coverage,fuzzing", "--no-color", "--request-timeout", "60"]);
    let folder = tempfile::tempdir().unwrap();
    let output = command.current_dir(&folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let end: Vec<&str> = text.lines().rev().take(12).collect();
    println!("{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
}

#[test]
fn curl() {
    let found = Command::new("curl").arg("--version").output().ok();
    if needed("curl", found, "there is no curl").is_none() {
        return;
    }
    let server = Server::start(&["--api-key", KEY]);
    let given = given(&server);
    let curl = |path: &str, body: &Value| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--no-buffer", &format!("{}{path}", server.url)]);
        command.args(["-H", &format!("Authorization: Bearer {KEY}")]);
        command.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let embeddings = curl("/v1/embeddings", &json!({"input": given["texts"]}));
    let embeddings: Value = serde_json::from_str(&embeddings).unwrap();
    let first = embeddings["data"][0]["embedding"][0].as_f64().unwrap();
    assert!((first - given["vectors"][0][0].as_f64().unwrap()).abs() < 1e-5);
    let mut body = json!({
        "messages": [{"role": "user", "content": given["prompt"]}],
        "temperature": 0,
        "max_tokens": given["tokens"],
        "stream": true
    });
    let stream = curl("/v1/chat/completions", &body);
    let chunks = stream.split("\n\n").filter(|chunk| !chunk.is_empty());
    let chunks: Vec<&str> = chunks.map(|chunk| chunk.strip_prefix("data: ").unwrap()).collect();
    let (done, chunks) = chunks.split_last().unwrap();
    let text: String = chunks
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap())
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_string())
        .collect();
    assert_eq!((*done, json!(text)), ("[DONE]", given["answer"].clone()));
    body["stream"] = json!(false);
    let whole: Value = serde_json::from_str(&curl("/v1/chat/completions", &body)).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], given["answer"]);
}

/// Answers one request for the page or for a file of a package.
fn hand_out(mut stream: TcpStream, packages: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while !lines.next().transpose()?.unwrap_or_default().is_empty() {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (kind, body) = match path.strip_prefix("/node_modules/") {
        Some(path) => ("text/javascript", std::fs::read(packages.join(path)).ok()),
        None => {
            ("text/html", (path == "/").then(|| include_bytes!("clients/openai_page.html").into()))
        }
    };
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n")?;
    stream.write_all(b"connection: close\r\n\r\n")?;
    stream.write_all(&body)
}

/// The page and its packages at an origin of their own, to the end of the tests.
fn site(packages: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let packages = packages.clone();
            // A browser opens connections that it may not use.
            std::thread::spawn(move || hand_out(stream, &packages));
        }
    });
    origin
}

#[test]
fn openai_in_a_browser() {
    const NAME: &str = "openai_in_a_browser";
    let Some(packages) = named(NAME, "GRITLM_OPENAI_NODE", "folder with the npm package openai")
    else {
        return;
    };
    let Some(program) = needed(NAME, chromium(), "no Chromium here") else { return };
    let origin = site(packages.into());
    let server = Server::start(&["--api-key", KEY, "--cors-origin", &origin]);
    let given = given(&server);
    let mut browser = Browser::open(&program);
    browser.visit(&format!("{origin}/"));
    browser.until("'ask' in window");
    let mut ask = |given: &Value| {
        browser.value(&format!("void ask({given})"));
        browser.until("found !== undefined");
        browser.value("found")
    };
    let found = ask(&given);
    assert_eq!((&found["error"], &found["origin"]), (&Value::Null, &json!(origin)));
    let vectors: Vec<Vec<f32>> = serde_json::from_value(found["vectors"].clone()).unwrap();
    let expected: Vec<Vec<f32>> = serde_json::from_value(given["vectors"].clone()).unwrap();
    close("embeddings", &vectors.concat(), &expected.concat(), 1e-5);
    let pieces: Vec<String> = serde_json::from_value(found["pieces"].clone()).unwrap();
    assert!(pieces.len() > 2, "{pieces:?}");
    assert_eq!(json!(pieces.concat()), given["answer"]);
    assert_eq!(found["refused"], "404 model_not_found");
    // A server that allows no other origin.
    let mut closed = given;
    let other = Server::start(&["--api-key", KEY]);
    closed["url"] = json!(other.url);
    assert_eq!(ask(&closed)["error"], "Error: Connection error.");
    let version = found["version"].as_str().unwrap();
    say(&format!("openai-node {version}: an embedding and a stream"));
}
