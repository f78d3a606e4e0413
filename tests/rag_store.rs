//! The store of `gritlm index`: what was put comes back within the bound of its format, what does
//! not fit is refused, and caches stay within their budget.

mod crashes; // crashes, a full disk, readers beside a writer
mod damage; // flipped bits and cut files

use gritlm::Attn;
use gritlm::cache::KvSnapshot;
use gritlm_rag::{
    CacheKind, Identity, KvFormat, NewChunk, NewDocument, Reader, Stamp, VectorFormat, Writer,
    content_hash, verify,
};
use std::path::Path;
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
