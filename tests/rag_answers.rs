//! Answers through a store on disk, `gritlm ask` and `gritlm bench rag`.

use crate::cli::run;
use crate::support::{Reference, two_devices, with_a_yes};
use gritlm::batch::{Sequence, Want};
use gritlm::model::ops::Mask;
use gritlm::{Attn, Device, Embedding, Engine, Options, Prompt, Sampling, dot};
use gritlm_bench::rag::{RagPlan, rag};
use gritlm_bench::record::{Limits, Record};
use gritlm_rag::ask;
use gritlm_rag::{
    Ask, CacheKind, Find, Hit, Identity, KvFormat, Mode, NewChunk, NewDocument, Passage, Reader,
    Searcher, Stamp, Usage, Writer,
};
use serde_json::Value;
use std::path::Path;

fn document(path: &str) -> NewDocument {
    NewDocument {
        path: path.into(),
        title: "A title".into(),
        stamp: Stamp::default(),
        metadata: Value::Null,
    }
}

/// Keys and values of the golden files' documents, to disk and back: in f32 the same bits and
/// tokens as in the golden files; in bfloat16 the same as without a disk.
#[test]
fn golden_documents_through_the_store() {
    for (device, model) in two_devices()
        .iter()
        .flat_map(|(d, _)| ["mistral-tiny", "mistral-odd", "mixtral-tiny"].map(|m| (d, m)))
    {
        let reference = Reference::open_on(model, device.clone());
        let engine = &reference.engine;
        let (tokens, mask) =
            (reference.ids("doc_cache.document"), Mask::Bidirectional { window: None });
        let mut cache = engine.cache();
        let want = Want::Nothing;
        engine.run(&mut [Sequence { tokens: &tokens, cache: &mut cache, mask, want }]).unwrap();
        let exported = engine.export(&cache).unwrap();
        drop(cache);
        let say = |kv: &gritlm::cache::KvSnapshot| -> Vec<u32> {
            let prompt = Prompt::Tokens(reference.ids("doc_cache.prompt"));
            let how = Sampling::greedy().max_tokens(24).ignore_eos(true);
            let cache = engine.import(kv).unwrap();
            let pieces = engine.generate_after(cache, &prompt, &how).unwrap();
            pieces.map(|piece| piece.unwrap().token.token).collect()
        };
        for format in [KvFormat::F32, KvFormat::Bf16] {
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path().join("store");
            let identity = Identity { cache: CacheKind::Doc, kv: format, ..Identity::of(engine) };
            let chunk = NewChunk {
                text: "as the golden files have it".into(),
                tokens: tokens.len() as u32,
                vector: vec![1.0; engine.config().dim],
                kv: Some(exported.clone()),
            };
            Writer::open(&at, &identity).unwrap().put(&document("a"), &[chunk]).unwrap();
            let store = Reader::open(&at).unwrap();
            store.check(engine, Attn::Bbcc).unwrap();
            let kv = store.kv(store.vectors().unwrap().ids()[0]).unwrap().unwrap();
            let name = format!("{model} on {device}, {format}");
            if format == KvFormat::F32 {
                assert!(kv.to_f32() == exported.to_f32(), "{name}");
                assert_eq!(say(&kv), reference.ids("doc_cache.tokens"), "{name}");
            } else {
                assert!(kv.to_f32() == exported.to_bf16().to_f32(), "{name}");
                assert_eq!(say(&kv), say(&exported.to_bf16()), "{name}");
            }
        }
    }
}

const QUERY: &str = "What captures packets?";
const TEXTS: [&str; 4] = [
    "xboard plays chess on the desktop.",
    "tcpdump captures packets off the network.",
    "xmlstarlet edits XML documents.",
    "wireshark shows network packets in a window.",
];

/// As it is embedded.
fn titled(text: &str) -> String {
    format!("A title {text}")
}

fn demo() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

/// A store of the texts, each a document, the last two together one.
fn store(engine: &Engine, at: &Path, cache: CacheKind, attn: Attn) {
    let identity = Identity { cache, attn, kv: KvFormat::F32, ..Identity::of(engine) };
    let mut writer = Writer::open(at, &identity).unwrap();
    let how = Ask::default().attn(Some(attn));
    let chunk = |text: &str| {
        let Embedding { vector, tokens, kv, .. } = how.document(engine, &titled(text)).unwrap();
        let tokens = tokens as u32;
        let kv = kv.filter(|_| cache == CacheKind::Doc);
        NewChunk { text: text.into(), tokens, vector, kv }
    };
    writer.put(&document("a.txt"), &[chunk(TEXTS[0])]).unwrap();
    writer.put(&document("b.txt"), &[chunk(TEXTS[1])]).unwrap();
    writer.put(&document("c.txt"), &[chunk(TEXTS[2]), chunk(TEXTS[3])]).unwrap();
}

/// The texts by their scores, best first: (text, place, score).
fn ranked(engine: &Engine, how: &Ask) -> Vec<(&'static str, (&'static str, u64), f32)> {
    let places = [("a.txt", 0), ("b.txt", 0), ("c.txt", 0), ("c.txt", 1)];
    let asked = ask(engine, QUERY, how).unwrap();
    let mut all: Vec<_> = (TEXTS.into_iter().zip(places))
        .map(|(text, place)| {
            (text, place, dot(asked.vector(), &how.document(engine, &titled(text)).unwrap().vector))
        })
        .collect();
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    all
}

/// What the library answers from these texts: tokens, text, and what was computed.
fn expected(engine: &Engine, how: &Ask, texts: &[&str]) -> (Vec<u32>, String, Usage) {
    let passages: Vec<Passage> = texts
        .iter()
        .map(|text| Passage {
            title: "A title".into(),
            text: (*text).into(),
            kv: how.document(engine, &titled(text)).unwrap().kv.map(Into::into),
        })
        .collect();
    let draw = Sampling::greedy().max_tokens(6);
    let mut answer = ask(engine, QUERY, how).unwrap().answer(engine, &passages, &draw).unwrap();
    let pieces: Vec<_> = (&mut answer).map(Result::unwrap).collect();
    let tokens = pieces.iter().map(|piece| piece.token.token).collect();
    (tokens, pieces.into_iter().map(|piece| piece.text).collect(), answer.usage().clone())
}

#[test]
fn ask_answers_as_the_library_and_cites() {
    let engine = demo();
    for (attn, letters) in [(Attn::Bbcc, "bbcc"), (Attn::Cccc, "cccc")] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("store");
        store(&engine, &at, CacheKind::Doc, attn);
        for mode in Mode::ALL {
            let how = Ask::default().mode(mode).attn(Some(attn));
            let order = match mode {
                Mode::Plain(gritlm_rag::Order::QueryDoc) => &["--order", "query-doc"][..],
                _ => &[],
            };
            let (cache, at) = (mode.to_string(), at.to_str().unwrap());
            let args = ["ask", QUERY, "--store", at, "--cache", &cache, "--max-tokens", "6"];
            let args = [&args[..], order, &["--documents", "2", "--device", "cpu"]].concat();
            let best = &ranked(&engine, &how)[..2];
            let texts: Vec<&str> = best.iter().map(|(text, ..)| *text).collect();
            let (tokens, text, usage) = expected(&engine, &how, &texts);

            let json = run(&[&args[..], &["--format", "json"]].concat(), "").ok();
            let fields =
                ["answer", "tokens", "documents", "tokens_computed", "tokens_reused", "ms"];
            let places: Vec<usize> =
                fields.iter().map(|f| json.find(&format!("\"{f}\":")).unwrap()).collect();
            assert!(places.is_sorted(), "{json}");
            let json: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json.as_object().unwrap().len(), fields.len(), "{json}");
            assert_eq!(json["answer"], *text, "{letters} {mode:?}");
            assert_eq!(json["tokens"], serde_json::json!(tokens));
            assert_eq!(json["tokens_computed"], usage.tokens_computed);
            assert_eq!(json["tokens_reused"], usage.tokens_reused);
            for (document, (_, (path, chunk), score)) in
                json["documents"].as_array().unwrap().iter().zip(best)
            {
                assert_eq!(
                    (&document["path"], &document["chunk"]),
                    (&Value::from(*path), &(*chunk).into())
                );
                assert!((document["score"].as_f64().unwrap() - f64::from(*score)).abs() < 1e-5);
            }
            let ms = json["ms"].as_object().unwrap();
            let names = ["embed", "retrieve", "load", "prefill", "decode", "first_token", "total"];
            assert!(
                ms.len() == names.len() && names.iter().all(|n| ms[*n].as_f64().unwrap() >= 0.0)
            );

            let said = run(&[&args[..], &["--attn", letters, "--explain"]].concat(), "");
            for part in [
                format!("cache {mode}: {} tokens computed", usage.tokens_computed),
                format!("{} reused", usage.tokens_reused),
                "first token".into(),
            ] {
                assert!(said.stderr.contains(&part), "expected {part:?} in {}", said.stderr);
            }
            let cited: Vec<String> = (1..)
                .zip(best)
                .map(|(n, (_, (path, chunk), score))| format!("[{n}] {path}#{chunk} {score:.3}\n"))
                .collect();
            assert_eq!(said.stdout, format!("{text}\n{}", cited.concat()), "{mode:?}");
        }
    }
}

#[test]
fn ask_takes_its_options() {
    let engine = demo();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("store");
    store(&engine, &at, CacheKind::Doc, Attn::Bbcc);
    let at = at.to_str().unwrap();
    let ask = |more: &[&str]| {
        let args = ["ask", QUERY, "--store", at, "--format", "json", "--max-tokens", "6"];
        let said = run(&[&args[..], &["--device", "cpu"], more].concat(), "").ok();
        serde_json::from_str::<Value>(&said).unwrap()
    };
    // Without documents the question is a prompt; the answer's first words are part of it.
    let alone = ask(&["--documents", "0"]);
    let draw = Sampling::greedy().max_tokens(6);
    let generated: String = engine
        .generate(&Prompt::user(QUERY), &draw)
        .unwrap()
        .map(|piece| piece.unwrap().text)
        .collect();
    assert_eq!((&alone["answer"], &alone["documents"]), (&generated.into(), &Value::Array(vec![])));
    for (flag, text) in [("--answer-prefix", "The answer is"), ("--answer-prefix=Well, ", "Well, ")]
    {
        let how = Ask::default().mode(Mode::Doc).answer_prefix(text);
        let best = ranked(&engine, &how)[0].0;
        let (tokens, ..) = expected(&engine, &how, &[best]);
        assert_eq!(ask(&["--cache", "doc", flag])["tokens"], serde_json::json!(tokens));
    }
    // More documents than there are, joined both ways.
    let joined = ["--cache", "doc", "--documents", "9"];
    let turned = ask(&joined);
    assert_eq!(turned["documents"].as_array().unwrap().len(), 4);
    // Drawn, because the likeliest tokens can be the same.
    let drawn = [&joined[..], &["--temperature", "2", "--seed", "1"]].concat();
    let published = ask(&[&drawn[..], &["--as-published"]].concat());
    assert_ne!(ask(&drawn)["tokens"], published["tokens"]);
    let instructed = ask(&["--instruction", "Find the package."]);
    assert_ne!(instructed["documents"][0]["score"], ask(&[])["documents"][0]["score"]);
    // generate's options.
    let answer = turned["answer"].as_str().unwrap();
    let end: String = answer.chars().skip(3).take(4).collect();
    let cut = ask(&[&joined[..], &["--stop", &end]].concat());
    assert_eq!(cut["answer"], answer[..answer.find(&end).unwrap()]);
}

/// Documents in the order that the model gives the best, as `search --rerank` finds them.
#[test]
fn ask_reranks() {
    let model = with_a_yes();
    let model = model.path().to_str().unwrap();
    let engine = Engine::open(model, &Options::default().device(Device::Cpu)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("store");
    store(&engine, &at, CacheKind::None, Attn::Bbcc);
    let ask = |model: &str, more: &[&str]| {
        let args = ["ask", QUERY, "--store", at.to_str().unwrap(), "--model", model];
        let draw = ["--device", "cpu", "--max-tokens", "3"];
        run(&[&args[..], &draw, more].concat(), "")
    };
    let searcher = Searcher::open(&engine, &at).unwrap();
    for documents in 1..=3 {
        let find = Find::default().top_k(documents).rerank(true);
        let expected = searcher.search(QUERY, &find).unwrap();
        let count = documents.to_string();
        let more = ["--documents", &count, "--rerank"];
        let said = ask(model, &[&more[..], &["--format", "json"]].concat()).ok();
        let found: Value = serde_json::from_str(&said).unwrap();
        let found = found["documents"].as_array().unwrap();
        assert_eq!((found.len(), expected.len()), (documents, documents));
        for (document, hit) in found.iter().zip(&expected) {
            assert_eq!(document["path"], *hit.chunk.document);
            assert_eq!(document["chunk"], hit.chunk.index);
            let probability = document["probability"].as_f64().unwrap();
            assert!((probability - f64::from(hit.probability.unwrap())).abs() < 1e-6);
        }
        // For people, what the order is by.
        let Hit { chunk, probability, .. } = &expected[0];
        let cited = format!("[1] {}#{} {:.3}", chunk.document, chunk.index, probability.unwrap());
        let said = ask(model, &more).ok();
        assert!(said.contains(&cited), "expected {cited:?} in {said}");
    }
    // It is another order than the vectors'.
    let find = Find::default().top_k(4);
    let ids = |find: &Find| -> Vec<u64> {
        searcher.search(QUERY, find).unwrap().into_iter().map(|hit| hit.chunk.id).collect()
    };
    assert_ne!(ids(&find), ids(&find.clone().rerank(true)));
}

#[test]
fn ask_refuses_in_one_line() {
    let engine = demo();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let [bare, full, empty] = ["bare", "full", "empty"].map(path);
    store(&engine, Path::new(&bare), CacheKind::None, Attn::Bbcc);
    store(&engine, Path::new(&full), CacheKind::Doc, Attn::Bbcc);
    drop(Writer::open(&empty, &Identity::of(&engine)).unwrap());
    let ask = |store: &str, more: &[&str]| {
        run(&[&["ask", QUERY, "--device", "cpu", "--store", store], more].concat(), "")
    };
    for mode in ["doc", "query-doc", "doc-query"] {
        ask(&bare, &["--cache", mode]).fails(2, &["--cache", "keeps no caches", mode]);
    }
    ask(&bare, &["--cache", "query", "--max-tokens", "1"]).ok();
    ask(&full, &["--cache", "docs"]).fails(2, &["--cache", "doc-query", "docs"]);
    ask(&full, &["--cache", "doc", "--order", "doc-query"]).fails(2, &["--order", "--cache none"]);
    ask(&full, &["--order", "both"]).fails(2, &["--order", "query-doc", "both"]);
    ask(&full, &["--attn", "cccc"]).fails(1, &["attn", "bbcc", "cccc"]);
    ask(&full, &["--temperature=-1"]).fails(2, &["--temperature"]);
    ask(&empty, &[]).fails(1, &["no document that fits"]);
    ask(&full, &["--filter", "year=1"]).fails(1, &["no document that fits"]);
    ask(&full, &["--below", "nowhere"]).fails(1, &["no document that fits"]);
    ask(&full, &["--filter", "year"]).fails(2, &["--filter", "year"]);
    ask(&path("nothing"), &[]).fails(1, &["nothing"]);
    let other = crate::support::data("mistral-odd");
    let other = other.to_str().unwrap();
    ask(&full, &["--model", other]).fails(1, &["demo", "mistral-odd"]);
    run(&["ask", "", "--device", "cpu", "--store", &full], "").fails(1, &["empty"]);
}

/// What a budget has evicted is computed again, and said.
#[test]
fn evicted_caches_are_computed_again() {
    let engine = demo();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("store");
    store(&engine, &at, CacheKind::Doc, Attn::Bbcc);
    let name = at.to_str().unwrap().to_string();
    let args = ["ask", QUERY, "--device", "cpu", "--store", &name, "--cache", "doc"];
    let args = [&args[..], &["--max-tokens", "6", "--format", "json"]].concat();
    let before: Value = serde_json::from_str(&run(&args, "").ok()).unwrap();
    let identity = Identity { cache: CacheKind::Doc, kv: KvFormat::F32, ..Identity::of(&engine) };
    Writer::open(&at, &identity).unwrap().set_budget(Some(0)).unwrap();
    let ran = run(&args, "");
    assert!(ran.stderr.contains("computed again: 1"), "{}", ran.stderr);
    let after: Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!(after["tokens"], before["tokens"]);
    assert_eq!(after["tokens_reused"], before["tokens_reused"]);
    let more =
        before["tokens_computed"].as_u64().unwrap() + before["tokens_reused"].as_u64().unwrap();
    assert_eq!(after["tokens_computed"], more);
}

/// All modes both ways, each beside its order's answer without cache; and the loading.
#[test]
fn answers_are_benched() {
    let engine = Engine::random("tiny", Some(2), &Options::default().device(Device::Cpu));
    let engine = engine.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut plan = RagPlan::quick(folder.path().join("bench"), 2);
    // What is beyond the model's positions is said, and the rest measured.
    plan.lengths.push(1_000_000);
    let limits = Limits { device: "cpu".into(), ..Limits::default() };
    let mut record = Record { devices: vec![limits], ..Record::default() };
    let mut heard = Vec::new();
    let mut progress = |done, all| {
        heard.push((done, all));
        Ok(())
    };
    rag(&engine, "cpu", &plan, &mut record, &mut progress).unwrap();
    assert_eq!(heard.last(), Some(&(14, 14)));
    assert!(!plan.folder.exists());
    // A RAM disk has nothing that is cold.
    let there = record.rows.len() + record.missing.len();
    assert_eq!(there, 2 * 6 * 3 + 2 + 1, "{:?}", record.missing);
    assert!(record.missing[0].contains("1000000 tokens: the model has"), "{:?}", record.missing);
    assert!(record.missing[1..].iter().all(|line| line.contains("load cache cold")));
    for (query, document) in [(1, 64), (64, 1)] {
        for mode in Mode::ALL {
            let cache = match mode {
                Mode::Plain(gritlm_rag::Order::QueryDoc) => "none (query-doc)".to_string(),
                Mode::Plain(gritlm_rag::Order::DocQuery) => "none (doc-query)".to_string(),
                cached => cached.to_string(),
            };
            let shape = format!("{cache}, {query} + {document} of tiny with 2 layers");
            let rows: Vec<_> = record.rows.iter().filter(|row| row.shape == shape).collect();
            let ops: Vec<&str> = rows.iter().map(|row| row.op.as_str()).collect();
            assert_eq!(ops, ["first token", "after search", "4 tokens"], "{shape}");
            assert!(rows[0].us <= rows[2].us && rows[1].us <= rows[0].us);
            let plain = |row: &&&gritlm_bench::record::Row| !record.beside(row).is_empty();
            let expected = if matches!(mode, Mode::Plain(_)) { 0 } else { 3 };
            assert_eq!(rows.iter().filter(plain).count(), expected, "{shape}");
            let numbers: Vec<usize> =
                rows[0].note.split(' ').filter_map(|word| word.parse().ok()).collect();
            let long = 64 - 8..64 + 30;
            let reuses_long =
                if query == 1 { mode.reuses_documents() } else { mode.reuses_query() };
            assert_eq!(numbers[1] >= long.start, reuses_long, "{shape}: {}", rows[0].note);
        }
    }
    let table = gritlm_bench::table::table(&record);
    for part in ["without cache", " computed, ", " reused, ", "load cache warm"] {
        assert!(table.contains(part), "{part} in {table}");
    }
}
