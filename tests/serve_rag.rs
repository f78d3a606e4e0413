//! `gritlm serve --store`: the library's answers from documents, documents that come over HTTP,
//! what is refused, what happens where there is no room or no client.

use crate::serve::Server;
use crate::support::with_a_yes;
use gritlm::batch::{Sequence, Want};
use gritlm::model::ops::Mask;
use gritlm::schedule::Limits;
use gritlm::{Device, Engine, Options, Piece, Sampling};
use gritlm_rag::ask;
use gritlm_rag::{
    Ask, CacheKind, Filter, Find, Hit, Identity, Indexer, Mode, Order, Passage, Positions,
    Searcher, Source, Stamp, Writer, content_hash,
};
use gritlm_serve::Settings;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;

const ASK: &str = "/v1/rag/ask";
const INDEX: &str = "/v1/rag/index";
const QUERY: &str = "Which tool captures packets?";
const DOCUMENTS: [(&str, &str, &str); 3] = [
    ("tcpdump", "net", "reads packets off the wire and prints what is in them"),
    ("xboard", "games", "plays chess on the desktop"),
    ("pdfgrep", "text", "searches text in PDF files"),
];

fn options() -> Options {
    Options::default().device(Device::Cpu)
}

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::open("demo", &options()).unwrap())
}

fn source(path: &str, section: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        title: path.into(),
        text: text.into(),
        metadata: json!({"section": section}),
        stamp: Stamp { hash: content_hash(text.as_bytes()), ..Stamp::default() },
    }
}

/// A store of the documents; the folder is in the one that is kept.
pub(crate) fn store_of(engine: &Engine, cache: CacheKind) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("store");
    let identity = Identity { cache, ..Identity::of(engine) };
    let sources = DOCUMENTS.map(|(path, section, text)| source(path, section, text));
    let mut indexer = Indexer::open(engine, &at, &identity).unwrap();
    assert_eq!(indexer.put(sources.to_vec(), &mut |_| Ok(())).unwrap().added, 3);
    (folder, at)
}

fn text(at: &Path) -> &str {
    at.to_str().unwrap()
}

fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    all.into()
}

/// What the library answers: the answer, its documents, and the numbers of its usage.
fn library(at: &Path, how: &Ask, find: &Find, sampling: &Sampling) -> (String, Value, Value) {
    let searcher = Searcher::open(engine(), at).unwrap();
    let asked = ask(engine(), QUERY, how).unwrap();
    let found = searcher.nearest(asked.vector(), find).unwrap();
    let passages: Vec<Passage> = found
        .iter()
        .map(|hit| Passage::of(searcher.reader(), &hit.chunk, how.mode).unwrap())
        .collect();
    let mut answer = asked.answer(engine(), &passages, sampling).unwrap();
    let pieces: Vec<Piece> = (&mut answer).map(Result::unwrap).collect();
    let documents = found.iter().map(|hit| {
        let chunk = &hit.chunk;
        // As f32 is written: all its digits and no more.
        let score: Value = serde_json::from_str(&hit.score.to_string()).unwrap();
        json!({"path": chunk.document, "chunk": chunk.index, "title": chunk.title, "score": score})
    });
    let (prompt, completion) = (answer.prompt_tokens(), pieces.len());
    let usage = json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answer.usage().tokens_reused}
    });
    (pieces.into_iter().map(|p| p.text).collect(), documents.collect(), usage)
}

/// A stream's text, documents and usage.
fn read(events: impl Iterator<Item = String>) -> (String, Value, Value) {
    let mut events: Vec<String> = events.collect();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let (first, rest) = events.split_first().unwrap();
    assert_eq!((&first["choices"], &first["usage"]), (&json!([]), &Value::Null));
    assert!(rest.iter().all(|e| e.get("documents").is_none() && e["id"] == first["id"]));
    let (usage, rest) = rest.split_last().unwrap();
    let last = &rest.last().unwrap()["choices"][0];
    assert!(last["finish_reason"].is_string(), "{last}");
    let said = rest.iter().map(|e| e["choices"][0]["delta"]["content"].as_str().unwrap_or(""));
    (said.collect(), first["documents"].clone(), usage["usage"].clone())
}

#[test]
fn every_mode_is_the_librarys() {
    let (_kept, at) = store_of(engine(), CacheKind::Doc);
    let server = Server::start(&["--store", text(&at)]);
    let sampling = Sampling::greedy().max_tokens(12);
    let base = json!({"query": QUERY, "max_tokens": 12, "temperature": 0});
    for (mode, count) in Mode::ALL.iter().flat_map(|&mode| [(mode, 1), (mode, 2)]) {
        let mut more = json!({"cache": mode.to_string(), "documents": count});
        if let Mode::Plain(order) = mode {
            more["order"] = json!(match order {
                Order::QueryDoc => "query-doc",
                Order::DocQuery => "doc-query",
            });
        }
        let find = Find::default().top_k(count);
        let how = Ask::default().mode(mode);
        let expected = library(&at, &how, &find, &sampling);
        let reuses = mode.reuses_query() || mode.reuses_documents();
        let cached = expected.2["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached > 0, reuses, "{mode}");

        let answer = server.post(ASK, &with(&base, &more));
        let timing = answer.header("server-timing");
        for stage in ["embed;dur=", "search;dur=", "load;dur=", "prefill;dur=", "decode;dur="] {
            assert!(timing.contains(stage), "{timing}");
        }
        let answer = answer.ok();
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap().to_string();
        let found = (said, answer["documents"].clone(), answer["usage"].clone());
        assert_eq!(found, expected, "{mode}, {count} documents");
        assert_eq!([&answer["object"], &answer["model"]], ["chat.completion", "demo"]);

        let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
        let events = server.stream(ASK, &with(&with(&base, &more), &stream));
        assert_eq!(read(events), expected, "{mode}, {count} documents, streamed");
    }
}

#[test]
fn what_a_question_may_say() {
    let (_kept, at) = store_of(engine(), CacheKind::Doc);
    let server = Server::start(&["--store", text(&at)]);
    let how = Ask::default()
        .mode(Mode::DocQuery)
        .positions(Positions::AsPublished)
        .instruction("Find the package")
        .attn(None)
        .answer_prefix("It is");
    let filters = vec![Filter { key: "section".into(), value: "games".into() }];
    let find = Find::default().filters(filters).top_k(3);
    let sampling =
        Sampling::default().max_tokens(9).temperature(0.8).seed(7).repetition_penalty(1.2);
    let body = json!({
        "query": QUERY, "model": "demo", "cache": "doc-query", "as_published": true,
        "instruction": "Find the package", "answer_prefix": "It is", "documents": 3,
        "filter": {"section": "games"}, "max_tokens": 9, "temperature": 0.8, "seed": 7,
        "repetition_penalty": 1.2, "logprobs": true, "top_logprobs": 2
    });
    let (said, documents, usage) = library(&at, &how, &find, &sampling);
    assert_eq!(documents[0]["path"], "xboard");
    let answer = server.post(ASK, &body).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], said);
    assert_eq!([&answer["documents"], &answer["usage"]], [&documents, &usage]);
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(json!(told.len()), usage["completion_tokens"]);
    assert_eq!(told[0]["top_logprobs"].as_array().unwrap().len(), 2);

    // No documents, no retrieval: a chat.
    let plain = json!({"temperature": 0, "max_tokens": 8});
    let asked = server.post(ASK, &with(&plain, &json!({"query": QUERY, "documents": 0}))).ok();
    let user = json!({"messages": [{"role": "user", "content": QUERY}]});
    let chat = server.post("/v1/chat/completions", &with(&plain, &user)).ok();
    assert_eq!(asked["choices"], chat["choices"]);
    assert_eq!(asked["documents"], json!([]));
}

#[test]
fn documents_over_http() {
    let (_kept, at) = store_of(engine(), CacheKind::Doc);
    let server = Server::start(&["--store", text(&at)]);
    let ask = |query: &str| {
        let body = json!({"query": query, "cache": "doc", "temperature": 0, "max_tokens": 4});
        server.post(ASK, &body).ok()
    };
    let name = |answer: &Value| answer["documents"][0]["path"].as_str().unwrap().to_string();
    let plot = "draws plots of functions and data on a terminal";
    let long = "Every sentence here is about sewing. ".repeat(80);
    let documents = json!([
        {"path": "plot-1", "text": plot, "title": "gnuplot", "metadata": {"year": 2024}},
        {"path": "sewing", "text": long}
    ]);
    assert_ne!(name(&ask(plot)), "plot-1");
    let done = server.post(INDEX, &json!({"documents": documents})).ok();
    let chunks = done["chunks"].as_u64().unwrap();
    assert!(chunks > 2 && done["tokens"].as_u64().unwrap() > 512, "{done}");
    assert_eq!([&done["indexed"], &done["unchanged"]], [&json!(2), &json!(0)]);
    let answer = ask(plot);
    assert_eq!(name(&answer), "plot-1");
    assert_eq!(answer["documents"][0]["title"], "gnuplot");
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0, "{answer}");

    // Only what has changed.
    let mut changed = documents.clone();
    changed[0]["metadata"]["year"] = json!(2025);
    let expected = [(documents, 0, 0, 2), (changed, 1, 1, 1)];
    for (documents, indexed, chunks, unchanged) in expected {
        let done = server.post(INDEX, &json!({"documents": documents})).ok();
        let found = [&done["indexed"], &done["chunks"], &done["unchanged"]];
        assert_eq!(found, [&json!(indexed), &json!(chunks), &json!(unchanged)]);
        assert_eq!(done["failed"], json!([]));
    }
    let body = json!({"query": plot, "filter": {"year": 2025}, "max_tokens": 1});
    assert_eq!(name(&server.post(ASK, &body).ok()), "plot-1");

    // Another process beside it: seen by the next question; at work, it is waited for elsewhere.
    let identity = Searcher::open(engine(), &at).unwrap().reader().identity().clone();
    let mut indexer = Indexer::open(engine(), &at, &identity).unwrap();
    let zebra = "zebras graze in the savannah";
    indexer.put(vec![source("zebra", "animals", zebra)], &mut |_| Ok(())).unwrap();
    assert_eq!(name(&ask(zebra)), "zebra");
    let one = json!({"documents": [{"path": "one", "text": "more"}]});
    let busy = server.post(INDEX, &one);
    busy.fails(503, &["another writer"]);
    assert_eq!(busy.header("retry-after"), "1");
    drop(indexer);
    assert_eq!(server.post(INDEX, &one).ok()["indexed"], 1);
}

#[test]
fn what_is_refused() {
    let server = Server::start(&[]);
    let one = json!({"documents": [{"path": "one", "text": "more"}]});
    server.post(ASK, &json!({"query": QUERY})).fails(404, &["`store`", "gritlm index"]);
    server.post(INDEX, &one).fails(404, &["`store`"]);
    drop(server);

    let (_kept, at) = store_of(engine(), CacheKind::None);
    let server = Server::start(&["--store", text(&at), "--kv-tokens", "1024"]);
    let ask = |more: Value, status, parts: &[&str]| {
        server.post(ASK, &with(&json!({"query": QUERY}), &more)).fails(status, parts);
    };
    for mode in ["doc", "query-doc", "doc-query"] {
        ask(json!({"cache": mode}), 400, &["cache", "keeps no caches", mode]);
    }
    ask(json!({"cache": "all"}), 400, &["cache", "all", "doc-query"]);
    ask(json!({"cache": "query", "order": "doc-query"}), 400, &["order"]);
    ask(json!({"documents": 65}), 400, &["documents", "64"]);
    ask(json!({"filter": {"section": ["a"]}}), 400, &["filter.section"]);
    ask(json!({"filter": {"section": "none"}}), 400, &["documents", "none that fits"]);
    ask(json!({"rerank": true}), 400, &["rerank", "\"yes\""]);
    ask(json!({"exact": "yes"}), 400, &["exact", "yes"]);
    ask(json!({"n": 2}), 400, &["n: expected 1"]);
    ask(json!({"query": ""}), 400, &["empty"]);
    ask(json!({"model": "other"}), 404, &["model"]);
    ask(json!({"timeout": 0.0}), 408, &["deadline"]);
    ask(json!({"temperature": -1}), 400, &["temperature"]);
    ask(json!({"tools": [{}]}), 400, &["tools"]);
    ask(json!({"query": "x ".repeat(3000)}), 400, &["maximum context length"]);
    ask(json!({"max_tokens": 1500}), 400, &["maximum context length is 1024", "`kv_tokens`"]);

    let index = |documents: Value, status, parts: &[&str]| {
        server.post(INDEX, &json!({"documents": documents})).fails(status, parts);
    };
    index(json!([{"path": "", "text": "a"}]), 400, &["documents[0].path", "empty"]);
    let twice = json!([{"path": "a", "text": "a"}, {"path": "a", "text": "b"}]);
    index(twice, 400, &["documents[1].path", "once"]);
    index(json!([{"path": "a"}]), 400, &["text"]);
    assert_eq!(server.post(INDEX, &json!({"documents": []})).ok()["indexed"], 0);
}

#[test]
fn documents_are_reranked() {
    let model = with_a_yes();
    let engine = Engine::open(text(model.path()), &options()).unwrap();
    let (_kept, at) = store_of(&engine, CacheKind::None);
    let searcher = Searcher::open(&engine, &at).unwrap();
    let find = Find::default().top_k(2).rerank(true);
    let expected = searcher.search(QUERY, &find).unwrap();
    let server = Server::start(&["--model", text(model.path()), "--store", text(&at)]);
    let body = json!({"query": QUERY, "documents": 2, "max_tokens": 2});
    let answer = server.post(ASK, &with(&body, &json!({"rerank": true}))).ok();
    let cited = |document: &Value| {
        let number = |name: &str| document[name].as_f64().unwrap() as f32;
        (document["path"].as_str().unwrap().to_string(), number("score"), number("probability"))
    };
    let found: Vec<_> = answer["documents"].as_array().unwrap().iter().map(cited).collect();
    let expected: Vec<_> = expected
        .into_iter()
        .map(|Hit { chunk, score, probability }| (chunk.document, score, probability.unwrap()))
        .collect();
    assert_eq!(found, expected);
    let plain = server.post(ASK, &body).ok();
    assert!(plain["documents"][0].get("probability").is_none());
}

/// A store that cannot be used ends the start.
#[test]
fn another_models_store() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("store");
    let ran = |part: &str| {
        let args = ["serve", "--port", "0", "--device", "cpu", "--store", text(&at)];
        let ran = crate::cli::run(&args, "");
        let last = ran.stderr.lines().last().unwrap_or_default();
        assert!(ran.code == 1 && last.contains(part), "{}: {}", ran.code, ran.stderr);
    };
    ran("no store");
    let identity = Identity { fingerprint: 7, model: "other".into(), ..Identity::of(engine()) };
    drop(Writer::open(&at, &identity).unwrap());
    ran("made by model other");
}

/// A server in this process, of this engine; until the sender is dropped.
fn serve(engine: Engine, store: &Path) -> (Server, impl FnOnce()) {
    let limits = Limits::default().queue_requests(1);
    let settings = Settings::default().store(Some(store.into())).limits(limits);
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let mut engine = Some(engine);
        server.run(move || Ok(engine.take().unwrap()), async {
            let _ = stopped.await;
        })
    });
    let end = move || {
        drop(stop);
        thread.join().unwrap().unwrap();
    };
    (Server::at(&url).ready(), end)
}

/// Pages that others hold are not waited for; prompts that are kept for later give way.
#[test]
fn room_is_waited_for_and_made() {
    let (_kept, at) = store_of(engine(), CacheKind::Doc);
    let small = Engine::open("demo", &options().kv_tokens(2048)).unwrap();
    let mut held = small.cache();
    let (tokens, mask) = (vec![5; 1900], Mask::Causal { window: None });
    let want = Want::Nothing;
    let sequence = Sequence { tokens: &tokens, cache: &mut held, mask, want };
    small.run(&mut [sequence]).unwrap();
    let (server, end) = serve(small, &at);
    let body = json!({"query": QUERY, "cache": "doc", "max_tokens": 300, "temperature": 0});
    // Like all work, a question waits for pages as long as its client does.
    let late = with(&body, &json!({"timeout": 0.3}));
    server.post(ASK, &late).fails(408, &["deadline"]);
    let documents = json!({"documents": [{"path": "new", "text": "chess ".repeat(200)}]});
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.post(ASK, &body));
        // One page is free, which its embedding pass takes; the answer needs three.
        let waits = || server.get("/stats").ok()["stats"]["waiting_generate"].as_u64() == Some(1);
        assert!((0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            waits()
        }));
        // The queue is the scheduler's, which has room for one.
        server.post("/v1/rag/index", &documents).fails(429, &["the queue is full"]);
        drop(held);
        asked.join().unwrap().ok();
    });
    assert_eq!(server.post("/v1/rag/index", &documents).ok()["indexed"], 1);
    let free = server.post(ASK, &body).ok();
    for i in 0..12 {
        let prompt = format!("{i} {}", "Describe the package. ".repeat(45));
        let chat = json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 2});
        server.post("/v1/chat/completions", &chat).ok();
    }
    let stats = server.get("/stats").ok()["stats"].clone();
    // The answer needs three.
    assert!(stats["pages_prefix"].as_u64() > Some(8), "{stats}");
    assert!(stats["pages_free"].as_u64() < Some(3), "{stats}");
    assert_eq!(server.post(ASK, &body).ok()["choices"], free["choices"]);
    end();
}

/// An answer of minutes ends when its client has gone; until then, others are answered beside it.
#[test]
fn vanished_clients() {
    let kv_tokens = 16384;
    let slow = Engine::random("1b", Some(3), &options().kv_tokens(kv_tokens)).unwrap();
    let (_kept, at) = store_of(&slow, CacheKind::None);
    let (server, end) = serve(slow, &at);
    let body = json!({"query": "x", "max_tokens": 8000, "ignore_eos": true, "stream": true});
    let mut streams = [0, 1].map(|_| server.stream(ASK, &body));
    for stream in &mut streams {
        assert!(stream.next().unwrap().contains("documents"));
        stream.next().unwrap();
    }
    server.post(ASK, &json!({"query": "x", "max_tokens": 1})).ok();
    let stats = server.get("/stats").ok()["stats"].clone();
    assert_eq!(stats["running"], 2, "both are still being answered: {stats}");
    drop(streams);
    let at_rest = || {
        let stats = server.get("/stats").ok()["stats"].clone();
        let count = |name: &str| stats[name].as_u64().unwrap();
        count("running") == 0 && count("pages_free") + count("pages_prefix") == count("pages")
    };
    assert!((0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        at_rest()
    }));
    end();
}
