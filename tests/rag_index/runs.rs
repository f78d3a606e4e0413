//! What a run stores, skips, replaces and removes.

use super::{Content, content, corpus, engine, folder, identity, index, long_text};
use crate::support::close;
use gritlm::batch::{Sequence, Want};
use gritlm::model::prompt;
use gritlm::{Attn, Embed};
use gritlm_rag::Error;
use gritlm_rag::{CacheKind, Event, Identity, Indexer, KvFormat, Reader, VectorFormat, verify};
use std::fs;
use std::path::Path;

fn caching(kv: KvFormat) -> Identity {
    Identity { cache: CacheKind::Doc, kv, ..identity() }
}

/// Equal but for the last bits of numbers: those depend on what else was in a pass.
#[track_caller]
fn same(a: &Content, b: &Content) {
    assert_eq!(a.len(), b.len());
    for (path, (title, metadata, chunks)) in a {
        let (other_title, other_metadata, others) = &b[path];
        assert_eq!((title, metadata, chunks.len()), (other_title, other_metadata, others.len()));
        for (chunk, other) in chunks.iter().zip(others) {
            assert_eq!((&chunk.0, chunk.1), (&other.0, other.1));
            close(path, &chunk.2, &other.2, 1e-5);
            assert_eq!(chunk.3.is_some(), other.3.is_some());
            if let (Some(kv), Some(other)) = (&chunk.3, &other.3) {
                close(path, kv, other, 1e-5);
            }
        }
    }
}

#[test]
fn a_store_has_the_embeddings_and_caches_of_the_engine() {
    let files = folder(&[
        ("a.md", format!("# Packets\n\n{}", long_text()).as_bytes()),
        ("b.txt", b"chess for the desktop"),
        ("c.jsonl", &corpus()),
        ("empty.txt", b" \n"),
    ]);
    for attn in [Attn::Bbcc, Attn::Cccc] {
        let store = files.path().join("store");
        let identity = Identity { attn, ..caching(KvFormat::F32) };
        let done = index(&identity, &store, &[files.path()]);
        assert_eq!((done.added, done.failed, done.removed), (43, 0, 0));
        let reader = Reader::open(&store).unwrap();
        assert_eq!(reader.len() as u64, done.chunks);
        assert!(done.chunks > 45, "{done:?}");
        let how = Embed::default().attn(Some(attn)).max_length(64);
        for (path, (title, _, chunks)) in content(&store) {
            assert_eq!(path.ends_with("empty.txt"), chunks.is_empty());
            for (text, tokens, vector, kv) in chunks {
                let document = prompt::document(&title, &text);
                let expected = engine().embed(&[&document], &how).unwrap().remove(0);
                assert_eq!((expected.tokens, expected.truncated), (tokens as usize, 0));
                close(&path, &vector, &expected.vector, 1e-5);
                let encoded = engine().encode_texts(&[&document], &how).unwrap().remove(0);
                let mut cache = engine().cache();
                let (mask, want) = (engine().embedding_mask(attn), Want::Nothing);
                let tokens = &encoded.tokens;
                engine().run(&mut [Sequence { tokens, cache: &mut cache, mask, want }]).unwrap();
                close(&path, &kv.unwrap(), &engine().export(&cache).unwrap().to_f32(), 1e-5);
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn formats_of_vectors_and_caches() {
    let files = folder(&[("a.txt", long_text().as_bytes())]);
    let (exact, store) = (files.path().join("exact"), files.path().join("store"));
    index(&caching(KvFormat::F32), &exact, &[&files.path().join("a.txt")]);
    let formats =
        [(VectorFormat::Bf16, KvFormat::Bf16, 4e-3), (VectorFormat::Int8, KvFormat::Int8, 1e-2)];
    for (vectors, kv, bound) in formats {
        index(&Identity { vectors, ..caching(kv) }, &store, &[&files.path().join("a.txt")]);
        for (path, (_, _, chunks)) in content(&store) {
            for (chunk, exact) in chunks.iter().zip(&content(&exact)[&path].2) {
                close("vector", &chunk.2, &exact.2, bound);
                close("kv", chunk.3.as_ref().unwrap(), exact.3.as_ref().unwrap(), bound);
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn what_has_not_changed_is_skipped_and_what_is_gone_is_removed() {
    let files = folder(&[
        ("in/a.txt", b"the first text"),
        ("in/b.txt", b"the second text"),
        ("in/c.jsonl", b"{\"text\":\"one\",\"id\":1}\n{\"text\":\"two\",\"id\":2}\n"),
        ("other/d.txt", b"elsewhere"),
    ]);
    let (inside, store) = (files.path().join("in"), files.path().join("store"));
    let other = files.path().join("other");
    let go = |paths: &[&Path]| {
        let d = index(&identity(), &store, paths);
        (d.added, d.replaced, d.unchanged, d.removed, d.chunks)
    };
    assert_eq!(go(&[&inside, &other]), (5, 0, 0, 0, 5));
    assert_eq!(go(&[&inside, &other]), (0, 0, 5, 0, 0));
    // A path twice is one.
    assert_eq!(go(&[&inside, &inside.join("a.txt")]), (0, 0, 4, 0, 0));
    // Touched, not changed.
    let file = fs::File::options().append(true).open(inside.join("a.txt")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(go(&[&inside]), (0, 0, 4, 0, 0));
    // Changed in content, in size, in a line; new; gone.
    fs::write(inside.join("a.txt"), "the first word").unwrap();
    fs::write(inside.join("c.jsonl"), "{\"text\":\"two\",\"id\":2}\n{\"text\":\"3\",\"id\":3}\n")
        .unwrap();
    fs::remove_file(inside.join("b.txt")).unwrap();
    assert_eq!(go(&[&inside]), (1, 1, 1, 2, 2));
    let fresh = files.path().join("fresh");
    index(&identity(), &fresh, &[&inside, &other]);
    same(&content(&store), &content(&fresh));
    // Only below what is given, and a name that begins alike is not below.
    fs::create_dir(files.path().join("inside")).unwrap();
    fs::write(files.path().join("inside/x.txt"), "x").unwrap();
    assert_eq!(go(&[&files.path().join("inside")]), (1, 0, 0, 0, 1));
    fs::remove_dir_all(&inside).unwrap();
    assert_eq!(go(&[&other]), (0, 0, 1, 0, 0));
    // A missing folder may be on a drive that is not mounted; an empty one has been read.
    assert_eq!(go(&[&inside]), (0, 0, 0, 0, 0));
    fs::create_dir(&inside).unwrap();
    assert_eq!(go(&[&inside]), (0, 0, 0, 3, 0));
    assert_eq!(Reader::open(&store).unwrap().len(), 2);
    assert!(verify(&store).unwrap().is_sound());
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let files =
        folder(&[("a.txt", b"good"), ("c.jsonl", b"{\"text\":\"one\"}\n{\"text\":\"two\"}")]);
    let store = files.path().join("store");
    assert_eq!(index(&identity(), &store, &[files.path()]).added, 3);
    fs::write(files.path().join("a.txt"), b"caf\xe9").unwrap();
    fs::write(files.path().join("c.jsonl"), "{\"text\":\"one\"}\n{\"text\":").unwrap();
    fs::write(files.path().join("new.txt"), "after them").unwrap();
    let mut problems = Vec::new();
    let missing = files.path().join("missing");
    let mut indexer = Indexer::open(engine(), &store, &identity()).unwrap();
    let done = indexer
        .run(&[missing, files.path().into()], &mut |event| {
            if let Event::Problem { path, problem } = event {
                problems.push(format!("{path}: {problem}"));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((done.added, done.unchanged, done.removed, done.failed), (1, 1, 0, 3));
    for (problem, part) in
        problems.iter().zip(["missing: no such file", "a.txt: not", "c.jsonl: line 2"])
    {
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(problems.len(), 3);
    assert_eq!(content(&store).len(), 4);
}

#[test]
fn an_interrupted_run_is_taken_up_again() {
    let files = folder(&[("a.txt", long_text().as_bytes()), ("c.jsonl", &corpus())]);
    let whole = files.path().join("whole");
    let all = index(&caching(KvFormat::F32), &whole, &[files.path()]);
    let store = files.path().join("store");
    let (mut runs, mut chunks) = (0, 0_u64);
    loop {
        let mut indexer = Indexer::open(engine(), &store, &caching(KvFormat::F32)).unwrap();
        let mut passes = Vec::new();
        let result = indexer.run(
            &[files.path().join("a.txt"), files.path().join("c.jsonl")],
            &mut |event| {
                // Each run gets a pass further than the one before.
                if let Event::Progress { done, .. } = event {
                    passes.push(done.tokens);
                    passes.dedup();
                    if passes.len() > 2 + runs {
                        chunks += done.chunks;
                        return Err(gritlm::Error::Cancelled.into());
                    }
                }
                Ok(())
            },
        );
        drop(indexer);
        runs += 1;
        assert!(verify(&store).unwrap().is_sound());
        match result {
            Err(Error::Engine(gritlm::Error::Cancelled)) => {}
            other => {
                chunks += other.unwrap().chunks;
                break;
            }
        }
        assert!(runs < 100);
    }
    assert!(runs > 3, "{runs}");
    // A document under way when a run ends is begun again: nothing else is embedded twice.
    assert!(chunks < all.chunks + 20 * runs as u64, "{chunks} {all:?}");
    same(&content(&store), &content(&whole));
}

#[test]
fn a_plan_is_what_a_run_then_stores() {
    let files = folder(&[("a.txt", long_text().as_bytes()), ("c.jsonl", &corpus())]);
    let store = files.path().join("store");
    let mut indexer = Indexer::open(engine(), &store, &caching(KvFormat::Bf16)).unwrap();
    let paths = [files.path().to_path_buf()];
    let plan = indexer.plan(&paths, &mut |_, _| Ok(())).unwrap();
    let done = indexer.run(&paths, &mut |_| Ok(())).unwrap();
    assert_eq!((plan.documents, plan.chunks, plan.tokens), (41, done.chunks, done.tokens));
    let status = Reader::open(&store).unwrap().status().unwrap();
    assert_eq!(plan.kv_bytes, status.kv_bytes);
    let nothing = indexer.plan(&paths, &mut |_, _| Ok(())).unwrap();
    assert_eq!(nothing, gritlm_rag::Plan::default());
}

/// Caches that waited on the disk for their document's other chunks are those that waited in memory.
#[test]
fn a_long_documents_caches_wait_on_the_disk() {
    let long = "The program shows packets that pass by. ".repeat(120);
    let files = folder(&[("long.txt", long.as_bytes()), ("short.txt", b"chess for the desktop")]);
    let paths = ["long.txt", "short.txt"].map(|name| files.path().join(name));
    for kv in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
        let [all, some, none] = [usize::MAX, 500_000, 0].map(|memory| {
            let store = files.path().join(format!("{kv}-{memory}"));
            let mut indexer = Indexer::open(engine(), &store, &caching(kv)).unwrap();
            indexer.set_memory(memory);
            indexer.run(&paths, &mut |_| Ok(())).unwrap();
            drop(indexer);
            assert!(verify(&store).unwrap().is_sound());
            assert!(!store.join("kv-waiting.tmp").exists());
            content(&store)
        });
        assert!(all.values().any(|(_, _, chunks)| chunks.len() > 8));
        assert!(all == some && all == none, "{kv}");
    }
}
