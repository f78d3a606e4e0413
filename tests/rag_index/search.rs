//! What exact search finds, against brute force, and how reranking orders it.

use super::{content, corpus, engine, folder, identity, index, long_text};
use crate::support::with_a_yes;
use gritlm::model::prompt;
use gritlm::{Device, Embed, Engine, Options, dot};
use gritlm_rag::{Find, Identity, Indexer, Searcher, VectorFormat};
use std::fs;
use std::path::Path;

/// Scores of all chunks with the query by brute force, best first.
fn brute(store: &Path, query: &str, instruction: &str) -> Vec<(String, String, f32)> {
    let query = engine().embed(&[query], &Embed::with_instruction(instruction)).unwrap().remove(0);
    let mut all = Vec::new();
    for (path, (title, _, chunks)) in content(store) {
        for (text, ..) in chunks {
            let how = Embed::default().max_length(64);
            let found = engine().embed(&[prompt::document(&title, &text)], &how).unwrap().remove(0);
            all.push((path.clone(), text, dot(&query.vector, &found.vector)));
        }
    }
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    all
}

#[test]
fn search_finds_what_brute_force_finds() {
    let files = folder(&[
        ("a/long.txt", long_text().as_bytes()),
        ("b/c.jsonl", &corpus()),
        ("b/meta.jsonl", b"{\"text\":\"capture packets\",\"kind\":\"net\",\"year\":2024,\"tags\":[\"x\",\"y\"]}\n\
            {\"text\":\"play chess\",\"kind\":\"game\",\"year\":2024}\n{\"text\":\"edit maps\",\"kind\":\"net\"}\n"),
    ]);
    let store = files.path().join("store");
    for vectors in [VectorFormat::F32, VectorFormat::Bf16] {
        index(&Identity { vectors, ..identity() }, &store, &[files.path()]);
        let searcher = Searcher::open(engine(), &store).unwrap();
        for (query, instruction) in [("capture packets", ""), ("a game", "Find the package.")] {
            let find = Find::default().top_k(7).instruction(instruction);
            let found = searcher.search(query, &find).unwrap();
            let expected = brute(&store, query, instruction);
            assert_eq!(found.len(), 7);
            let bound = if vectors == VectorFormat::F32 { 1e-5 } else { 4e-3 };
            for (hit, (path, text, score)) in found.iter().zip(&expected) {
                assert!((hit.score - score).abs() < bound, "{} {score}", hit.score);
                if vectors == VectorFormat::F32 {
                    assert_eq!((&hit.chunk.document, &hit.chunk.text), (path, text));
                }
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
    index(&identity(), &store, &[files.path()]);
    let searcher = Searcher::open(engine(), &store).unwrap();
    let texts = |filters: &[&str], below: Option<&str>| -> Vec<String> {
        let filters = filters.iter().map(|f| f.parse().unwrap()).collect();
        let below = below.map(|b| files.path().join(b));
        let find = Find::default().top_k(1000).filters(filters).below(below);
        let mut found: Vec<_> =
            searcher.search("chess", &find).unwrap().into_iter().map(|h| h.chunk.text).collect();
        found.sort();
        found
    };
    assert_eq!(texts(&["kind=net"], None), ["capture packets", "edit maps"]);
    assert_eq!(texts(&["kind=net", "year=2024"], None), ["capture packets"]);
    assert_eq!(texts(&["tags=y"], Some("b")), ["capture packets"]);
    assert_eq!(texts(&["tags=y"], Some("a")), [""; 0]);
    assert_eq!(texts(&[], Some("a/long.txt")).len(), texts(&[], Some("a")).len());
    assert_eq!(texts(&[], Some("b/meta.jsonl")), ["capture packets", "edit maps", "play chess"]);
    assert_eq!(texts(&[], None).len(), searcher.reader().len());
    assert!("no".parse::<gritlm_rag::Filter>().is_err());
}

/// The best four times as many, in the order that the model gives them.
#[test]
fn search_reranks() {
    let model = with_a_yes();
    let model = model.path().to_str().unwrap();
    let engine = Engine::open(model, &Options::default().device(Device::Cpu)).unwrap();
    let files = folder(&[("c.jsonl", &corpus())]);
    let store = files.path().join("store");
    let paths = [files.path().join("c.jsonl")];
    let identity = Identity { chunk: 128, ..Identity::of(&engine) };
    Indexer::open(&engine, &store, &identity).unwrap().run(&paths, &mut |_| Ok(())).unwrap();
    let searcher = Searcher::open(&engine, &store).unwrap();
    let find = |top_k, rerank| Find::default().top_k(top_k).rerank(rerank);
    let found = searcher.search("capture packets", &find(3, true)).unwrap();
    let twelve = searcher.search("capture packets", &find(12, false)).unwrap();
    let passages: Vec<&str> = twelve.iter().map(|h| h.chunk.text.as_str()).collect();
    let ranked = engine.rerank("capture packets", &passages).unwrap();
    for (hit, r) in found.iter().zip(&ranked) {
        let expected = &twelve[r.index];
        assert_eq!((hit.chunk.id, hit.score), (expected.chunk.id, expected.score));
        assert_eq!(hit.probability, Some(r.probability));
    }
    assert_eq!(found.len(), 3);
    // The demo model has no word for yes.
    let store = files.path().join("demo");
    index(&self::identity(), &store, &[&paths[0]]);
    let refused = Searcher::open(self::engine(), &store).unwrap().search("x", &find(3, true));
    assert!(refused.unwrap_err().to_string().contains("\"yes\""));
    // A store of one model is no store of another.
    let other = Searcher::open(&engine, &store).err().unwrap().to_string();
    assert!(other.contains("demo"), "{other}");
}
