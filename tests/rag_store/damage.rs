//! Damaged stores: flipped bits and cut files are found, named and healed, never answered from.

use super::{document, exact, folder, holds, put, refusal};
use gritlm_rag::{NewChunk, Reader, Writer, verify};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

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
