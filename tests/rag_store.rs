//! The store of `gritlm index`: round trips, crashes, damage, a full disk, readers beside a writer.

use gritlm::Attn;
use gritlm::cache::KvSnapshot;
use gritlm_rag::{
    CacheKind, Identity, KvFormat, NewChunk, NewDocument, Reader, Stamp, VectorFormat, Writer,
    content_hash, verify,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

const DIM: usize = 24;
/// Layers, kv_heads, head_dim.
const SHAPE: [usize; 3] = [2, 2, 8];

fn identity(vectors: VectorFormat, kv: KvFormat) -> Identity {
    Identity {
        model: "random".into(),
        fingerprint: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
        attn: Attn::Bbcc,
        dim: DIM,
        kv_shape: SHAPE,
        chunk: 16,
        overlap: 0,
        cache: CacheKind::Doc,
        vectors,
        kv,
    }
}

fn exact() -> Identity {
    identity(VectorFormat::F32, KvFormat::F32)
}

fn numbers(random: &mut fastrand::Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.f32() * 2.0 - 1.0).collect()
}

fn cache(random: &mut fastrand::Rng, tokens: usize) -> KvSnapshot {
    let [layers, kv_heads, head_dim] = SHAPE;
    let shape = [layers, 2, kv_heads, tokens, head_dim];
    KvSnapshot::from_f32(shape, numbers(random, shape.iter().product())).unwrap()
}

/// The document of a number, always the same.
fn document(n: u64) -> (NewDocument, Vec<NewChunk>) {
    let mut random = fastrand::Rng::with_seed(n);
    let chunks = (0..1 + n % 4).map(|i| {
        let tokens = random.usize(1..9);
        NewChunk {
            text: format!("chunk {i} of document {n}: grüße {}", random.u64(..)),
            tokens: tokens as u32,
            vector: numbers(&mut random, DIM),
            kv: (i != 2).then(|| cache(&mut random, tokens)),
        }
    });
    let chunks = chunks.collect();
    let stamp = Stamp { modified: -(n as i64), bytes: u64::MAX - n, hash: content_hash(b"x") };
    let metadata = serde_json::json!({ "section": "web", "n": n });
    let (path, title) = (format!("docs/{n}.txt"), format!("Document {n}"));
    (NewDocument { path, title, stamp, metadata }, chunks)
}

fn put(writer: &mut Writer, n: u64) {
    let (document, chunks) = document(n);
    writer.put(&document, &chunks).unwrap();
}

/// Compares everything in the store with the numbered documents that should be there.
#[track_caller]
fn holds(folder: &Path, numbers: &[u64]) {
    let reader = Reader::open(folder).unwrap();
    let vectors = reader.vectors().unwrap();
    let rows = vectors.to_f32();
    let documents = reader.documents().unwrap();
    let mut expected: Vec<_> = numbers.iter().map(|&n| document(n)).collect();
    expected.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    let paths: Vec<_> = documents.iter().map(|d| d.path.clone()).collect();
    assert_eq!(paths, expected.iter().map(|e| e.0.path.clone()).collect::<Vec<_>>());
    for (found, (new, chunks)) in documents.iter().zip(&expected) {
        assert_eq!((&found.title, found.stamp), (&new.title, new.stamp));
        assert_eq!(found.metadata, new.metadata);
        assert_eq!(found.chunks.len(), chunks.len());
        for (i, (&id, chunk)) in found.chunks.iter().zip(chunks).enumerate() {
            let stored = reader.chunk(id).unwrap();
            assert_eq!(
                (stored.index, &stored.text, stored.tokens),
                (i as u32, &chunk.text, chunk.tokens)
            );
            assert_eq!((&stored.document, stored.has_kv), (&new.path, chunk.kv.is_some()));
            assert_eq!(reader.kv(id).unwrap(), chunk.kv);
            let row = vectors.ids().iter().position(|&x| x == id).unwrap();
            assert_eq!(rows[row * DIM..][..DIM], chunk.vector);
            assert_eq!(vectors.row(row), chunk.vector);
        }
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn what_was_put_comes_back_and_what_was_replaced_or_removed_does_not() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    holds(folder.path(), &[]);
    (0..10).for_each(|n| put(&mut writer, n));
    holds(folder.path(), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    put(&mut writer, 3);
    assert!(writer.remove("docs/4.txt").unwrap());
    assert!(!writer.remove("docs/4.txt").unwrap());
    holds(folder.path(), &[0, 1, 2, 3, 5, 6, 7, 8, 9]);
    assert!(verify(&folder).unwrap().is_sound());
    let compacted = writer.compact().unwrap();
    assert!(compacted.after < compacted.before, "{compacted:?}");
    holds(folder.path(), &[0, 1, 2, 3, 5, 6, 7, 8, 9]);
    drop(writer);
    let writer = Writer::open(&folder, &exact()).unwrap();
    assert_eq!(writer.stamps().unwrap()["docs/7.txt"], document(7).0.stamp);
    assert_eq!(writer.stamps().unwrap().len(), 9);
    let report = verify(&folder).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

/// Each number within `relative` of itself or `of_largest` of its row's largest.
#[track_caller]
fn within(found: &[f32], expected: &[f32], width: usize, relative: f32, of_largest: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, row) in found.chunks(width).zip(expected.chunks(width)) {
        let largest = row.iter().fold(0_f32, |most, v| most.max(v.abs()));
        for (a, b) in found.iter().zip(row) {
            let bound = relative * b.abs() + of_largest * largest * 1.0001;
            assert!((a - b).abs() <= bound, "{a} for {b}: bound {bound}");
        }
    }
}

#[test]
fn every_format_keeps_its_bound_and_the_size_told_beforehand() {
    let bf16 = 1.0 / 256.0;
    let vectors = [
        (VectorFormat::F32, 0.0, 0.0),
        (VectorFormat::Bf16, bf16, 0.0),
        (VectorFormat::Int8, 0.0, 1.0 / 254.0),
    ];
    let caches = [
        (KvFormat::F32, 0.0, 0.0),
        (KvFormat::Bf16, bf16, 0.0),
        (KvFormat::Int8, 0.0, 1.0 / 254.0),
    ];
    for ((vector, v_relative, v_largest), (kv, kv_relative, kv_largest)) in
        vectors.into_iter().zip(caches)
    {
        let folder = folder();
        let identity = identity(vector, kv);
        let mut writer = Writer::open(&folder, &identity).unwrap();
        (0..6).for_each(|n| put(&mut writer, n));
        let reader = Reader::open(&folder).unwrap();
        let stored = reader.vectors().unwrap();
        let rows = stored.to_f32();
        let chunks: Vec<NewChunk> = (0..6).flat_map(|n| document(n).1).collect();
        let mut bytes = 0;
        for (row, (&id, chunk)) in stored.ids().iter().zip(&chunks).enumerate() {
            within(&rows[row * DIM..][..DIM], &chunk.vector, DIM, v_relative, v_largest);
            let found = reader.kv(id).unwrap();
            assert_eq!(found.is_some(), chunk.kv.is_some());
            let (Some(found), Some(expected)) = (found, &chunk.kv) else { continue };
            assert_eq!(found.shape(), expected.shape());
            assert_eq!(found.as_bf16().is_some(), kv == KvFormat::Bf16);
            within(&found.to_f32(), &expected.to_f32(), SHAPE[2], kv_relative, kv_largest);
            bytes += 64 + found.tokens() as u64 * identity.kv_bytes_per_token();
        }
        let status = reader.status().unwrap();
        assert_eq!((status.kv_bytes, status.segment_bytes), (bytes, bytes));
        assert_eq!(status.vector_bytes, (chunks.len() * identity.vector_bytes()) as u64);
        assert_eq!((status.documents, status.chunks), (6, chunks.len() as u64));
        assert!(verify(&folder).unwrap().is_sound());
    }
    let grit = Identity { kv_shape: [32, 8, 128], ..identity(VectorFormat::F32, KvFormat::Bf16) };
    assert_eq!(grit.kv_bytes_per_token(), 128 << 10);
}

#[test]
fn rounded_caches_come_back_bit_for_bit() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &identity(VectorFormat::Bf16, KvFormat::Bf16)).unwrap();
    let rounded = cache(&mut fastrand::Rng::with_seed(5), 7).to_bf16();
    let (new, mut chunks) = document(0);
    chunks[0].kv = Some(rounded.clone());
    writer.put(&new, &chunks).unwrap();
    let reader = Reader::open(&folder).unwrap();
    let id = reader.vectors().unwrap().ids()[0];
    assert_eq!(reader.kv(id).unwrap(), Some(rounded));
}

#[test]
fn what_does_not_fit_the_store_is_refused_and_changes_nothing() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    put(&mut writer, 1);
    let (new, good) = document(2);
    let refused = |writer: &mut Writer, chunk: NewChunk, expected: &str| {
        let chunks = [good[0].clone(), chunk];
        let error = writer.put(&new, &chunks).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    let base = good[1].clone();
    let vector = vec![0.0; DIM + 1];
    refused(
        &mut writer,
        NewChunk { vector, ..base.clone() },
        "expected a vector of 24 numbers, found 25",
    );
    let vector = vec![f32::NAN; DIM];
    refused(&mut writer, NewChunk { vector, ..base.clone() }, "not finite");
    let other = KvSnapshot::from_f32([2, 2, 2, 3, 4], vec![0.0; 96]).unwrap();
    refused(&mut writer, NewChunk { kv: Some(other), ..base.clone() }, "found [2, 2, 2, 3, 4]");
    let broken = KvSnapshot::from_f32([2, 2, 2, 1, 8], vec![f32::INFINITY; 64]).unwrap();
    refused(&mut writer, NewChunk { kv: Some(broken), ..base }, "not finite");
    assert!(KvSnapshot::from_f32([2, 2, 2, 3, 4], vec![0.0; 95]).is_err());
    holds(folder.path(), &[1]);
    let none = TempDir::new().unwrap();
    let identity = Identity { cache: CacheKind::None, ..exact() };
    assert_eq!(identity.kv_bytes_per_token(), 0);
    let error = Writer::open(&none, &identity).unwrap().put(&new, &good).unwrap_err();
    assert!(error.to_string().contains("`cache` none"), "{error}");
}

fn refusal<T>(result: gritlm_rag::Result<T>) -> String {
    let error = result.err().expect("it was to be refused").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_second_writer_another_model_and_another_attn_are_refused_by_name() {
    let folder = folder();
    let error = refusal(Reader::open(folder.path().join("none")));
    assert!(error.contains("there is no store"), "{error}");
    assert!(refusal(verify(folder.path())).contains("there is no store"));
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    put(&mut writer, 1);
    let error = refusal(Writer::open(&folder, &exact()));
    let named = format!("another writer (process {})", std::process::id());
    assert!(error.contains(&named), "{error}");
    drop(writer);
    let reader = Reader::open(&folder).unwrap();
    let others = [
        (Identity { fingerprint: 9, model: "other".into(), ..exact() }, "model random", "other"),
        (Identity { attn: Attn::Cccc, ..exact() }, "attn bbcc", "cccc"),
    ];
    for (other, mine, its) in others {
        for error in
            [refusal(Writer::open(&folder, &other)), refusal(reader.check_identity(&other))]
        {
            assert!(error.contains(mine) && error.contains(its), "{error}");
        }
    }
    let error = refusal(Writer::open(&folder, &Identity { chunk: 17, ..exact() }));
    assert!(error.contains("chunk 16, not 17"), "{error}");
    // The name alone tells nothing: the same model may lie elsewhere.
    let moved = Identity { model: "elsewhere".into(), ..exact() };
    reader.check_identity(&moved).unwrap();
    drop(Writer::open(&folder, &moved).unwrap());
    holds(folder.path(), &[1]);
}

#[test]
fn the_least_recently_used_caches_give_way_to_the_budget() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    let one = |n: u64| {
        let (new, mut chunks) = document(4 * n);
        chunks[0].kv = Some(cache(&mut fastrand::Rng::with_seed(n), 8));
        (new, chunks)
    };
    let size = 64 + 8 * exact().kv_bytes_per_token();
    let put = |writer: &mut Writer, n| writer.put(&one(n).0, &one(n).1).unwrap();
    (0..4).for_each(|n| put(&mut writer, n));
    let has = |folder: &Path| -> Vec<bool> {
        let reader = Reader::open(folder).unwrap();
        let ids = reader.vectors().unwrap().ids().to_vec();
        ids.iter().map(|&id| reader.chunk(id).unwrap().has_kv).collect()
    };
    // Used: 0, then 2. So 1 goes first, then 3, 0, 2.
    let reader = Reader::open(&folder).unwrap();
    let ids = reader.vectors().unwrap().ids().to_vec();
    assert!(reader.kv(ids[0]).unwrap().is_some() && reader.kv(ids[2]).unwrap().is_some());
    assert_eq!(reader.status().unwrap().hits, 2);
    drop(reader);
    writer.set_budget(Some(3 * size)).unwrap();
    assert_eq!(has(folder.path()), [true, false, true, true]);
    put(&mut writer, 4);
    assert_eq!(has(folder.path()), [true, false, true, false, true]);
    put(&mut writer, 5);
    assert_eq!(has(folder.path()), [false, false, true, false, true, true]);
    let reader = Reader::open(&folder).unwrap();
    assert_eq!(reader.kv(ids[1]).unwrap(), None);
    assert_eq!(reader.chunk(ids[1]).unwrap().text, one(1).1[0].text);
    let status = reader.status().unwrap();
    assert_eq!((status.kv_bytes, status.kv_budget), (3 * size, Some(3 * size)));
    assert_eq!((status.evicted, status.cached, status.hits, status.misses), (3, 3, 2, 1));
    // The files are held to 5/4 of the budget.
    assert!(status.segment_bytes <= 3 * size * 5 / 4, "{status:?}");
    drop((reader, writer));
    // A later writer knows the budget, and one document beyond all of it keeps what fits.
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    let (new, chunk) = (document(1).0, one(1).1.remove(0));
    let many = vec![chunk; 5];
    writer.put(&new, &many).unwrap();
    let kept = has(folder.path());
    assert_eq!(kept[6..], [true, true, true, false, false]);
    assert!(!kept[..6].contains(&true));
    writer.set_budget(Some(0)).unwrap();
    assert!(!has(folder.path()).contains(&true));
    assert_eq!(Reader::open(&folder).unwrap().status().unwrap().segment_bytes, 0);
    assert!(verify(&folder).unwrap().is_sound());
}

/// One of the changes that crashes and readers meet: puts, replacements, removals, compactions.
fn step(writer: &mut Writer, i: u64) {
    match i % 8 {
        4 => drop(writer.remove(&document(i / 2).0.path).unwrap()),
        7 => drop(writer.compact().unwrap()),
        _ => put(writer, if i % 8 == 5 { i - 2 } else { i }),
    }
}

/// The documents after so many steps.
fn after(steps: u64) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for i in 0..steps {
        match i % 8 {
            4 => drop(all.remove(&(i / 2))),
            7 => {}
            _ => drop(all.insert(if i % 8 == 5 { i - 2 } else { i })),
        }
    }
    all
}

/// The numbers of the documents that a reader sees.
fn seen(reader: &Reader) -> BTreeSet<u64> {
    let documents = reader.documents().unwrap();
    documents.iter().map(|d| d.metadata["n"].as_u64().unwrap()).collect()
}

/// This binary again, as a process that runs one ignored test of this file.
fn child(name: &str, folder: &Path, value: u64, limit: Option<u64>) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    // Beyond the limit, in blocks of 512 or 1024 bytes, a file's growth is an error.
    let limit = limit.map(|n| format!("trap '' XFSZ; ulimit -f {n};")).unwrap_or_default();
    command.arg("-c").arg(format!("{limit} exec \"$0\" \"$@\"")).arg(exe);
    command.args(["--ignored", "--exact", "--nocapture", &format!("{module}::{name}")]);
    command.env("RAG_STORE", folder).env("RAG_VALUE", value.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What [`child`] has told; None where the test is run by hand.
fn told() -> Option<(String, u64)> {
    let value = std::env::var("RAG_VALUE").ok()?.parse().ok()?;
    Some((std::env::var("RAG_STORE").ok()?, value))
}

#[test]
#[ignore = "a process that another test kills"]
fn writes_until_it_is_killed() {
    let Some((folder, first)) = told() else { return };
    let mut writer = Writer::open(folder, &exact()).unwrap();
    println!("\nopen");
    for i in first.. {
        step(&mut writer, i);
        println!("did {}", i + 1);
    }
}

#[test]
#[cfg(unix)]
fn killed_at_random_moments_it_loses_what_was_in_flight_at_most() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(1);
    let mut done = 0;
    for _ in 0..50 {
        let mut child = child("writes_until_it_is_killed", folder.path(), done, None);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Where it is then is up to chance: in a file, in SQLite, in a compaction, while opening.
        let (steps, pause) = (random.usize(0..6), random.u64(0..20_000));
        let mut told = done;
        let mut see = |line: String| {
            let number = line.strip_prefix("did ").map(|n| n.parse::<u64>().unwrap());
            told = number.unwrap_or(told);
            line == "open" || number.is_some()
        };
        let mut left = steps;
        while left > 0 {
            left -= usize::from(see(lines.next().unwrap().unwrap()));
        }
        std::thread::sleep(std::time::Duration::from_micros(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            see(line);
        }
        if !folder.path().join("store.sqlite").exists() {
            continue;
        }
        match Reader::open(&folder) {
            Ok(reader) => {
                let report = verify(&folder).unwrap();
                assert!(report.is_sound(), "{report:?}");
                let found = seen(&reader);
                done = if found == after(told + 1) { told + 1 } else { told };
                assert_eq!(found, after(done));
                holds(folder.path(), &after(done).into_iter().collect::<Vec<_>>());
            }
            // It died while it made the store.
            Err(error) => {
                assert_eq!(told, 0);
                assert!(error.to_string().contains("there is no store"), "{error}");
            }
        }
    }
    // A child that says little tests little.
    assert!(done > 50, "{done}");
    drop(Writer::open(&folder, &exact()).unwrap());
    holds(folder.path(), &after(done).into_iter().collect::<Vec<_>>());
}

/// Document `n` of the disk that fills: texts, or caches, are its larger part.
fn large(n: u64, caches: bool) -> (NewDocument, Vec<NewChunk>) {
    let (new, mut chunks) = document(4 * n);
    let mut random = fastrand::Rng::with_seed(n);
    if caches {
        chunks[0].kv = Some(cache(&mut random, 500));
    } else {
        chunks[0].text = "text ".repeat(10_000);
    }
    (new, chunks)
}

#[test]
#[ignore = "a process whose files may not grow, run by another test"]
fn writes_until_the_disk_is_full() {
    let Some((folder, caches)) = told() else { return };
    let mut writer = Writer::open(folder, &exact()).unwrap();
    println!();
    for n in 0.. {
        let (new, chunks) = large(n, caches == 1);
        match writer.put(&new, &chunks) {
            Ok(()) => println!("did {n}"),
            Err(error) => {
                println!("failed {error}");
                break;
            }
        }
    }
    // Without its large part it fits, and so it does if the failure has left nothing behind.
    let (new, mut chunks) = document(4000);
    chunks[0].kv = None;
    println!("then {:?}", writer.put(&new, &chunks).is_ok());
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_the_store_as_before() {
    for caches in [0, 1] {
        let folder = folder();
        let child = child("writes_until_the_disk_is_full", folder.path(), caches, Some(1000));
        let output = child.wait_with_output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let lines = |start: &str| -> Vec<&str> {
            output.lines().filter_map(|line| line.strip_prefix(start)).collect()
        };
        let done = lines("did ").len() as u64;
        assert!(done > 1, "{output}");
        assert_eq!(lines("failed ").len(), 1, "{output}");
        let (file, rest) = lines("failed ")[0].split_once(": ").unwrap();
        assert!(file.ends_with(if caches == 1 { "kv-1.seg" } else { "store.sqlite" }), "{output}");
        assert!(!rest.is_empty());
        assert_eq!(lines("then "), ["true"], "{output}");
        let report = verify(&folder).unwrap();
        assert!(report.is_sound(), "{report:?}");
        let reader = Reader::open(&folder).unwrap();
        let expected: BTreeSet<u64> = (0..done).map(|n| 4 * n).chain([4000]).collect();
        assert_eq!(seen(&reader), expected);
        drop(reader);
        // With room again it goes on.
        let mut writer = Writer::open(&folder, &exact()).unwrap();
        let (new, chunks) = large(done, caches == 1);
        writer.put(&new, &chunks).unwrap();
        assert!(verify(&folder).unwrap().is_sound());
    }
}

#[test]
fn readers_go_on_while_it_is_written_and_compacted() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    (0..10).for_each(|i| step(&mut writer, i));
    // A view stays what it was, whatever happens to the files.
    let mut old = Reader::open(&folder).unwrap();
    let before = seen(&old);
    let ids = old.vectors().unwrap().ids().to_vec();
    let caches: Vec<_> = ids.iter().map(|&id| old.kv(id).unwrap()).collect();
    let rows = old.vectors().unwrap().to_f32().into_owned();
    (10..16).for_each(|i| step(&mut writer, i));
    assert_eq!(seen(&old), before);
    assert_eq!(old.vectors().unwrap().to_f32(), rows);
    assert!(ids.iter().zip(&caches).all(|(&id, kv)| old.kv(id).unwrap() == *kv));
    old.refresh().unwrap();
    assert_eq!(seen(&old), after(16));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let states: Vec<_> = (16..=48).map(after).collect();
                let mut reader = Reader::open(&folder).unwrap();
                let mut last = false;
                while !last {
                    last = ended.load(Ordering::Relaxed);
                    let found = seen(&reader);
                    assert!(states.contains(&found), "{found:?}");
                    let vectors = reader.vectors().unwrap();
                    for document in reader.documents().unwrap() {
                        let expected = self::document(document.metadata["n"].as_u64().unwrap()).1;
                        for (&id, new) in document.chunks.iter().zip(&expected) {
                            assert_eq!(reader.chunk(id).unwrap().text, new.text);
                            assert_eq!(reader.kv(id).unwrap(), new.kv);
                            let row = vectors.ids().binary_search(&id).unwrap();
                            assert_eq!(vectors.row(row), new.vector);
                        }
                    }
                    reader.refresh().unwrap();
                }
            });
        }
        (16..48).for_each(|i| step(&mut writer, i));
        ended.store(true, Ordering::Relaxed);
    });
    holds(folder.path(), &after(48).into_iter().collect::<Vec<_>>());
}

/// Copies the files of a store, with its log where a writer has it open.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // SQLite makes this one anew.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Whether all reads give what was stored; panics where one gives something else without saying so.
fn right_or_error(folder: &Path, ids: &[u64], expected: &[(u64, NewChunk)]) -> bool {
    let Ok(reader) = Reader::open(folder) else { return false };
    let mut right = true;
    assert_eq!(reader.len(), ids.len());
    match reader.documents() {
        Ok(documents) => {
            assert_eq!(
                documents.len(),
                expected.iter().map(|e| e.0).collect::<BTreeSet<_>>().len()
            );
            for found in documents {
                let new = document(found.metadata["n"].as_u64().unwrap()).0;
                assert_eq!(
                    (&found.path, &found.title, found.stamp),
                    (&new.path, &new.title, new.stamp)
                );
                assert_eq!(found.metadata, new.metadata);
            }
        }
        Err(_) => right = false,
    }
    match reader.vectors() {
        Ok(vectors) => {
            assert_eq!(vectors.ids(), ids);
            let all: Vec<f32> = expected.iter().flat_map(|e| e.1.vector.clone()).collect();
            assert_eq!(vectors.to_f32(), all);
        }
        Err(_) => right = false,
    }
    for (&id, (n, new)) in ids.iter().zip(expected) {
        match reader.chunk(id) {
            Ok(found) => {
                assert_eq!((&found.text, found.tokens), (&new.text, new.tokens));
                assert_eq!(found.document, document(*n).0.path);
                assert_eq!(found.has_kv, new.kv.is_some());
            }
            Err(_) => right = false,
        }
        match reader.kv(id) {
            Ok(found) => assert_eq!(found, new.kv),
            Err(_) => right = false,
        }
    }
    right
}

/// Damages copies of a store and looks at what is said. Returns how often `verify` found it.
fn damaged(
    file: &str,
    times: usize,
    log: bool,
    mut damage: impl FnMut(&mut Vec<u8>, &mut fastrand::Rng),
) -> usize {
    let whole = folder();
    let mut writer = Writer::open(&whole, &exact()).unwrap();
    (0..12).for_each(|n| put(&mut writer, n));
    let expected: Vec<(u64, NewChunk)> =
        (0..12).flat_map(|n| document(n).1.into_iter().map(move |chunk| (n, chunk))).collect();
    let ids = Reader::open(&whole).unwrap().vectors().unwrap().ids().to_vec();
    if !log {
        drop(writer);
    }
    let mut random = fastrand::Rng::with_seed(7);
    let mut found = 0;
    for _ in 0..times {
        let copied = folder();
        copy(whole.path(), copied.path());
        let path = copied.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes, &mut random);
        std::fs::write(&path, bytes).unwrap();
        let report = verify(&copied).unwrap();
        assert!(report.problems.iter().all(|p| !p.to_string().contains('\n')), "{report:?}");
        found += usize::from(!report.is_sound());
        let right = right_or_error(copied.path(), &ids, &expected);
        assert!(right || !report.is_sound(), "{file}: reads fail and nothing is reported");
    }
    found
}

fn flip(bytes: &mut [u8], random: &mut fastrand::Rng) {
    let at = random.usize(..bytes.len());
    bytes[at] ^= 1 << random.u8(..8);
}

fn cut(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    bytes.truncate(random.usize(..bytes.len()));
}

#[test]
fn a_flipped_bit_in_vectors_caches_or_head_is_always_found() {
    for file in ["vectors-0.bin", "kv-1.seg", "head"] {
        assert_eq!(damaged(file, 60, false, |bytes, random| flip(bytes, random)), 60, "{file}");
    }
}

#[test]
fn a_flipped_bit_in_the_database_or_its_log_is_found_or_does_no_harm() {
    // Part of each page is free, and part of the log is superseded.
    let found = damaged("store.sqlite", 150, false, |bytes, random| flip(bytes, random));
    assert!(found > 15, "{found}");
    let found = damaged("store.sqlite-wal", 60, true, |bytes, random| flip(bytes, random));
    assert!(found > 15, "{found}");
}

#[test]
fn a_cut_file_is_found() {
    for file in ["vectors-0.bin", "kv-1.seg"] {
        assert_eq!(damaged(file, 20, false, cut), 20, "{file}");
    }
    let found = damaged("store.sqlite", 20, false, cut);
    assert!(found > 15, "{found}");
    let found = damaged("store.sqlite-wal", 20, true, cut);
    assert!(found > 15, "{found}");
}

/// A map of what is no longer there would end the process.
#[cfg(unix)]
#[test]
fn a_segment_cut_behind_an_open_reader_is_an_error() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    (0..6).for_each(|n| put(&mut writer, n));
    let reader = Reader::open(&folder).unwrap();
    let ids = reader.vectors().unwrap().ids().to_vec();
    let last = *ids.iter().rfind(|&&id| reader.chunk(id).unwrap().has_kv).unwrap();
    assert!(reader.kv(last).unwrap().is_some());
    let file = File::options().write(true).open(folder.path().join("kv-1.seg")).unwrap();
    file.set_len(0).unwrap();
    let error = refusal(reader.kv(last));
    assert!(error.contains("kv-1.seg") && error.contains("docs/"), "{error}");
}

#[test]
fn damage_names_the_document_and_storing_it_again_heals() {
    let folder = folder();
    let mut writer = Writer::open(&folder, &exact()).unwrap();
    (0..6).for_each(|n| put(&mut writer, n));
    drop(writer);
    for file in ["vectors-0.bin", "kv-1.seg"] {
        let path = folder.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        // The last row and record are live, whatever was replaced before.
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let report = verify(&folder).unwrap();
        let [problem] = &report.problems[..] else { panic!("{report:?}") };
        assert_eq!(problem.file, file);
        let path = problem.document.as_ref().unwrap();
        if file == "vectors-0.bin" {
            let error = refusal(Reader::open(&folder).unwrap().vectors());
            assert!(error.contains(file) && error.contains(path.as_str()), "{error}");
        }
        let n = path.trim_start_matches("docs/").trim_end_matches(".txt").parse().unwrap();
        let mut writer = Writer::open(&folder, &exact()).unwrap();
        put(&mut writer, n);
        drop(writer);
        assert!(verify(&folder).unwrap().is_sound());
        holds(folder.path(), &[0, 1, 2, 3, 4, 5]);
    }
}
