//! How a store keeps its graph: when it has one, compaction, interrupted builds, damage, and stores
//! of before there were graphs.

use super::{
    CHUNKS, DOCUMENTS, engine, graph, graphs, identity, path, put, recall, searcher, status, store,
    update,
};
use gritlm_rag::Error;
use gritlm_rag::{Indexer, Searcher, VectorFormat, Writer, content_hash, verify};
use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

#[test]
fn compaction_takes_the_dead_out_of_the_graph() {
    let (folder, mut writer) = store(VectorFormat::F32);
    let (first, before) = (graph(&folder), status(&folder));
    assert!(writer.remove(&path(3)).unwrap());
    update(&mut writer);
    assert_eq!(graph(&folder), first);
    writer.compact().unwrap();
    assert_ne!(graph(&folder), first);
    let after = status(&folder);
    assert_eq!(after.graph_chunks, before.graph_chunks - CHUNKS);
    assert!(after.graph_bytes < before.graph_bytes);
    // Without anything dead it stays.
    let second = graph(&folder);
    writer.compact().unwrap();
    assert_eq!(graph(&folder), second);
    assert!(recall(&searcher(&folder)) >= 0.95);
}

#[test]
fn a_store_that_is_small_or_searched_exactly_has_no_graph() {
    let (folder, mut writer) = store(VectorFormat::F32);
    // As many as the setting are not more.
    writer.set_approximate(Some(DOCUMENTS * CHUNKS)).unwrap();
    assert_eq!(graphs(&folder), [""; 0].map(PathBuf::from));
    update(&mut writer);
    assert_eq!(graphs(&folder), [""; 0].map(PathBuf::from));
    put(&mut writer, 200..201);
    update(&mut writer);
    graph(&folder);
    assert!(writer.remove(&path(200)).unwrap());
    update(&mut writer);
    assert_eq!(graphs(&folder), [""; 0].map(PathBuf::from));
    writer.set_approximate(Some(0)).unwrap();
    drop(writer);
    // A later writer knows the setting.
    let mut writer = Writer::open(&folder, &identity(VectorFormat::F32)).unwrap();
    update(&mut writer);
    graph(&folder);
    // A view keeps what it opened.
    let old = searcher(&folder);
    writer.set_approximate(None).unwrap();
    update(&mut writer);
    assert_eq!(graphs(&folder), [""; 0].map(PathBuf::from));
    assert!(recall(&old) >= 0.95);
    let status = status(&folder);
    assert_eq!((status.approximate_above, status.graph_chunks, status.graph_bytes), (None, 0, 0));
    assert!(recall(&searcher(&folder)) >= 1.0);
    assert!(verify(&folder).unwrap().is_sound());
}

#[test]
fn what_ends_on_the_way_leaves_no_graph_and_what_is_not_recorded_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder, &identity(VectorFormat::F32)).unwrap();
    put(&mut writer, 0..DOCUMENTS);
    writer.set_approximate(Some(1000)).unwrap();
    let mut told = Vec::new();
    let ended = writer.update_graph(&mut |done, total| {
        told.push((done, total));
        if done > 1000 { Err(gritlm::Error::Cancelled.into()) } else { Ok(()) }
    });
    assert!(matches!(ended, Err(Error::Engine(gritlm::Error::Cancelled))));
    assert_eq!(told, [(0, 3000), (1024, 3000)]);
    assert_eq!((graphs(&folder).len(), status(&folder).graph_chunks), (0, 0));
    // Killed between the file and the commit that records it.
    let lost = folder.path().join("graph-1.usearch");
    fs::write(&lost, "half").unwrap();
    assert!(verify(&folder).unwrap().is_sound());
    assert!(recall(&searcher(&folder)) >= 1.0);
    update(&mut writer);
    assert_eq!(graph(&folder), lost);
    assert!(recall(&searcher(&folder)) >= 0.95);
    let left = folder.path().join("graph-7.usearch");
    fs::write(&left, "half").unwrap();
    drop(writer);
    drop(Writer::open(&folder, &identity(VectorFormat::F32)).unwrap());
    assert_eq!(graph(&folder), lost);
    assert!(verify(&folder).unwrap().is_sound());
}

#[test]
fn damage_is_named_before_it_is_searched_and_the_next_run_heals() {
    let (folder, writer) = store(VectorFormat::F32);
    drop(writer);
    let mut random = fastrand::Rng::with_seed(3);
    let mut damage = |bytes: &mut Vec<u8>, how| {
        let at = random.usize(..bytes.len());
        match how {
            0 => bytes.truncate(at),
            1 => bytes.push(0),
            _ => bytes[at] ^= 1 << random.u8(..8),
        }
    };
    let named = |name: &str| {
        let error = Searcher::open(engine(), folder.path()).err().expect("it is damaged");
        let error = error.to_string();
        assert!(error.contains(name) && error.contains("gritlm index makes it anew"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        let report = verify(&folder).unwrap();
        let [problem] = &report.problems[..] else { panic!("{report:?}") };
        assert_eq!((problem.file.as_str(), &problem.document), (name, &None));
    };
    let file = graph(&folder);
    let name = file.file_name().unwrap().to_str().unwrap();
    let whole = fs::read(&file).unwrap();
    for how in 0..40 {
        let mut bytes = whole.clone();
        damage(&mut bytes, how);
        fs::write(&file, bytes).unwrap();
        named(name);
    }
    fs::remove_file(&file).unwrap();
    named(name);
    for how in [0, 2] {
        // Writing all the same leaves the damage to see.
        let mut indexer = Indexer::open(engine(), folder.path(), &identity(VectorFormat::F32));
        indexer.as_mut().unwrap().run(&[], &mut |_| Ok(())).unwrap();
        drop(indexer);
        assert!(recall(&searcher(&folder)) >= 0.95);
        assert!(verify(&folder).unwrap().is_sound());
        let file = graph(&folder);
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes, how);
        fs::write(&file, bytes).unwrap();
        named(file.file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_store_of_before_there_were_graphs_opens() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&folder, &identity(VectorFormat::F32)).unwrap();
    put(&mut writer, 0..DOCUMENTS);
    drop(writer);
    let db = Connection::open(folder.path().join("store.sqlite")).unwrap();
    let read = |row: &rusqlite::Row<'_>| row.get(0);
    let state: String =
        db.query_row("SELECT value FROM meta WHERE key = 'state'", [], read).unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    let fields = state.as_object_mut().unwrap();
    for name in ["approximate_above", "graph", "graph_generation"] {
        assert!(fields.remove(name).is_some(), "{name}");
    }
    let (state, mut content) = (state.to_string(), Vec::new());
    for text in ["meta", "state", &state] {
        content.extend((text.len() as u64).to_le_bytes());
        content.extend(text.as_bytes());
    }
    let checksum = content_hash(&content).cast_signed();
    let change = "UPDATE meta SET value = ?1, checksum = ?2 WHERE key = 'state'";
    assert_eq!(db.execute(change, rusqlite::params![state, checksum]).unwrap(), 1);
    drop(db);
    assert!(verify(&folder).unwrap().is_sound());
    assert!(recall(&searcher(&folder)) >= 1.0);
    let mut writer = Writer::open(&folder, &identity(VectorFormat::F32)).unwrap();
    writer.set_approximate(Some(1000)).unwrap();
    update(&mut writer);
    assert_eq!(status(&folder).graph_chunks, DOCUMENTS * CHUNKS);
}
