//! Approximate search in a store with a graph: what it finds and what it follows.

mod program; // indexing, and the program
mod upkeep; // building, compaction, damage

use gritlm::{Device, Engine, Options};
use gritlm_rag::{
    Filter, Find, Identity, NewChunk, NewDocument, Reader, Searcher, Stamp, Status, VectorFormat,
    Writer, verify,
};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Chunks of a document.
const CHUNKS: u64 = 30;
/// Documents of a store that a test begins with.
const DOCUMENTS: u64 = 100;
/// Centres that vectors lie around.
const CENTRES: u64 = 60;

/// The demo model on the CPU.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap())
}

fn identity(vectors: VectorFormat) -> Identity {
    Identity { vectors, ..Identity::of(engine()) }
}

/// The vector of a chunk: of length 1, near its document's centre.
fn vector(n: u64) -> Vec<f32> {
    let numbers = |seed| -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..engine().config().dim).map(|_| random.f32() * 2.0 - 1.0).collect()
    };
    let sum =
        numbers(n / CHUNKS % CENTRES).into_iter().zip(numbers(1000 + n)).map(|(c, own)| c + own);
    let sum: Vec<f32> = sum.collect();
    let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt();
    sum.into_iter().map(|v| v / length).collect()
}

/// Vectors that no chunk has.
fn queries(n: u64) -> impl Iterator<Item = Vec<f32>> {
    (0..n).map(|n| vector((1_000_000 + n) * CHUNKS))
}

fn path(document: u64) -> String {
    format!("docs/{document}")
}

fn new_document(document: u64) -> NewDocument {
    NewDocument {
        path: path(document),
        title: String::new(),
        stamp: Stamp::default(),
        metadata: json!({ "parity": document % 2 }),
    }
}

fn put(writer: &mut Writer, documents: impl IntoIterator<Item = u64>) {
    let all: Vec<(NewDocument, Vec<NewChunk>)> = documents
        .into_iter()
        .map(|document| {
            let chunks = (document * CHUNKS..(document + 1) * CHUNKS).map(|n| NewChunk {
                text: n.to_string(),
                tokens: 1,
                vector: vector(n),
                kv: None,
            });
            (new_document(document), chunks.collect())
        })
        .collect();
    let all: Vec<(&NewDocument, &[NewChunk])> = all.iter().map(|(d, c)| (d, &c[..])).collect();
    writer.put_all(&all).unwrap();
}

fn update(writer: &mut Writer) {
    writer.update_graph(&mut |_, _| Ok(())).unwrap();
}

/// A store with a graph over all its chunks.
pub(crate) fn store(vectors: VectorFormat) -> (TempDir, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder, &identity(vectors)).unwrap();
    put(&mut writer, 0..DOCUMENTS);
    writer.set_approximate(Some(1000)).unwrap();
    update(&mut writer);
    let status = status(&folder);
    assert_eq!((status.approximate_above, status.graph_chunks), (Some(1000), DOCUMENTS * CHUNKS));
    (folder, writer)
}

fn status(folder: &TempDir) -> Status {
    Reader::open(folder).unwrap().status().unwrap()
}

fn searcher(folder: &TempDir) -> Searcher<'static> {
    Searcher::open(engine(), folder.path()).unwrap()
}

fn ten(exact: bool) -> Find {
    Find::default().top_k(10).exact(exact)
}

/// What is found: texts, which are numbers, with their scores.
fn found(searcher: &Searcher<'_>, query: &[f32], how: &Find) -> Vec<(u64, f32)> {
    let hits = searcher.nearest(query, how).unwrap().into_iter();
    hits.map(|hit| (hit.chunk.text.parse().unwrap(), hit.score)).collect()
}

/// The share of exact search's ten that approximate search finds. Of chunks that both find scores
/// have the same bits, and the order is the same.
#[track_caller]
fn recall(searcher: &Searcher<'_>) -> f64 {
    let (mut both, mut all) = (0, 0);
    for query in queries(100) {
        let exact = found(searcher, &query, &ten(true));
        let approximate = found(searcher, &query, &ten(false));
        assert_eq!((exact.len(), approximate.len()), (10, 10));
        assert!(approximate.is_sorted_by(|a, b| a.1 >= b.1), "{approximate:?}");
        let common = |of: &[(u64, f32)], other: &[(u64, f32)]| -> Vec<(u64, u32)> {
            let ids: BTreeSet<u64> = other.iter().map(|hit| hit.0).collect();
            let common = of.iter().filter(|hit| ids.contains(&hit.0));
            common.map(|&(id, score)| (id, score.to_bits())).collect()
        };
        assert_eq!(common(&approximate, &exact), common(&exact, &approximate));
        both += common(&exact, &approximate).len();
        all += exact.len();
    }
    f64::from(both as u32) / f64::from(all as u32)
}

/// The store's one file of a graph.
#[track_caller]
fn graph(folder: &TempDir) -> PathBuf {
    let mut graphs = graphs(folder);
    assert_eq!(graphs.len(), 1, "{graphs:?}");
    graphs.remove(0)
}

fn graphs(folder: &TempDir) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "usearch")).collect()
}

#[test]
fn of_the_ten_nearest_few_are_missed_and_scores_are_those_of_exact_search() {
    for format in [VectorFormat::F32, VectorFormat::Bf16, VectorFormat::Int8] {
        let (folder, _writer) = store(format);
        let recall = recall(&searcher(&folder));
        eprintln!("{format}: recall {recall}");
        assert!(recall >= 0.95, "{format}: {recall}");
        let status = status(&folder);
        assert_eq!(status.graph_bytes, fs::metadata(graph(&folder)).unwrap().len());
        assert!(verify(&folder).unwrap().is_sound());
    }
}

#[test]
fn what_is_in_the_graph_is_found_by_its_direction_and_all_else_exactly() {
    let (folder, mut writer) = store(VectorFormat::F32);
    // Far longer than all others, it has the largest inner product with a query that it is far from:
    // exact search sees that, the graph does not.
    let (query, other) = (vector(1_000_000 * CHUNKS), vector(1));
    let along = gritlm::dot(&query, &other);
    let long = query.iter().zip(&other).map(|(q, v)| 1000.0 * (v - along * q + 0.01 * q)).collect();
    let chunk = NewChunk { text: "77777".into(), tokens: 1, vector: long, kv: None };
    writer.put(&new_document(777), &[chunk]).unwrap();
    let filters = vec!["parity=1".parse::<Filter>().unwrap()];
    let filtered = ten(false).filters(filters);
    let first = |how: &Find| found(&searcher(&folder), &query, how)[0].0;
    // Not yet in the graph.
    assert_eq!(first(&ten(false)), 77777);
    writer.set_approximate(None).unwrap();
    assert_eq!(first(&ten(false)), 77777);
    writer.set_approximate(Some(1000)).unwrap();
    update(&mut writer);
    assert_ne!(first(&ten(false)), 77777);
    assert_eq!([first(&ten(true)), first(&filtered)], [77777, 77777]);
    // More than the graph is asked for: all are looked at.
    let all = ten(false).top_k(1000);
    assert_eq!(first(&all), 77777);
    for query in queries(20) {
        let searcher = searcher(&folder);
        let expected = found(&searcher, &query, &filtered.clone().exact(true));
        assert_eq!(found(&searcher, &query, &filtered), expected);
        assert!(expected.iter().all(|hit| hit.0 == 77777 || hit.0 / CHUNKS % 2 == 1));
    }
}

#[test]
fn what_was_added_since_is_found_exactly_until_it_is_much() {
    let (folder, mut writer) = store(VectorFormat::F32);
    let first = graph(&folder);
    // So little is not added to the graph: it is searched exactly.
    put(&mut writer, 200..205);
    // Replaced: then chunks have other ids.
    put(&mut writer, 10..11);
    // What comes and goes without having been in the graph is not missed in it.
    put(&mut writer, 300..301);
    assert!(writer.remove(&path(300)).unwrap());
    update(&mut writer);
    assert_eq!(graph(&folder), first);
    assert_eq!(status(&folder).graph_chunks, (DOCUMENTS - 1) * CHUNKS);
    let searcher = self::searcher(&folder);
    for n in (200 * CHUNKS..205 * CHUNKS).chain(10 * CHUNKS..11 * CHUNKS) {
        assert_eq!(found(&searcher, &vector(n), &ten(false))[0].0, n);
    }
    let recall = self::recall(&searcher);
    assert!(recall >= 0.95, "{recall}");
    drop(searcher);
    // Now it is more than a sixteenth.
    put(&mut writer, 205..207);
    update(&mut writer);
    assert_ne!(graph(&folder), first);
    assert_eq!(status(&folder).graph_chunks, (DOCUMENTS + 7) * CHUNKS);
    let recall = self::recall(&self::searcher(&folder));
    assert!(recall >= 0.95, "{recall}");
}

#[test]
fn what_was_removed_is_never_found_and_makes_room_for_what_is_left() {
    let (folder, mut writer) = store(VectorFormat::F32);
    // With these, more chunks lie around one centre than are taken from the graph.
    put(&mut writer, (10..20).map(|i| i * CENTRES + 3));
    update(&mut writer);
    let (first, bytes) = (graph(&folder), status(&folder).graph_bytes);
    let gone: Vec<u64> = (0..20).map(|i| i * CENTRES + 3).collect();
    let mut left = DOCUMENTS + 10;
    for &document in &gone {
        left -= u64::from(writer.remove(&path(document)).unwrap());
    }
    assert_eq!(left, DOCUMENTS - 2);
    update(&mut writer);
    assert_eq!((graph(&folder), status(&folder).graph_chunks), (first.clone(), left * CHUNKS));
    let searcher = self::searcher(&folder);
    for &document in &gone {
        let hits = found(&searcher, &vector(document * CHUNKS), &ten(false));
        assert_eq!(hits.len(), 10);
        assert!(hits.iter().all(|hit| !gone.contains(&(hit.0 / CHUNKS))), "{hits:?}");
    }
    let recall = self::recall(&searcher);
    assert!(recall >= 0.95, "{recall}");
    drop(searcher);
    // Where more than a quarter has gone the graph is made anew, and smaller.
    for document in 4..34 {
        assert!(writer.remove(&path(document)).unwrap());
    }
    update(&mut writer);
    assert_ne!(graph(&folder), first);
    assert_eq!(status(&folder).graph_chunks, (left - 30) * CHUNKS);
    assert!(status(&folder).graph_bytes < bytes * 3 / 4);
    let recall = self::recall(&self::searcher(&folder));
    assert!(recall >= 0.95, "{recall}");
}

#[test]
fn of_equal_chunks_those_stored_first_come_first() {
    let (folder, mut writer) = store(VectorFormat::F32);
    for n in 0..20_u64 {
        let text = (90_000 + n).to_string();
        let chunk = NewChunk { text, tokens: 1, vector: vector(5), kv: None };
        writer.put(&new_document(300 + n), &[chunk]).unwrap();
    }
    writer.set_approximate(None).unwrap();
    writer.set_approximate(Some(1000)).unwrap();
    update(&mut writer);
    // Not all of so many equal ones need be reached; those that are come in exact search's order.
    let found = found(&searcher(&folder), &vector(5), &ten(false));
    let equal: Vec<u64> = found.iter().filter(|hit| hit.1 == found[0].1).map(|hit| hit.0).collect();
    assert!(equal.len() > 5 && equal.is_sorted(), "{found:?}");
}

#[test]
fn many_search_one_graph_at_once() {
    let (folder, _writer) = store(VectorFormat::F32);
    let searcher = searcher(&folder);
    let expected: Vec<_> = queries(20).map(|q| found(&searcher, &q, &ten(false))).collect();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for (query, expected) in queries(20).zip(&expected) {
                    assert_eq!(found(&searcher, &query, &ten(false)), *expected);
                }
            });
        }
    });
}
