//! Crashes, a full disk, and readers beside a writer: a reader always sees a store that some commit
//! has left.

use super::{cache, document, exact, folder, holds, put};
use gritlm_rag::{NewChunk, NewDocument, Reader, Writer, verify};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

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
