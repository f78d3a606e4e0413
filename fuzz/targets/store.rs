//! Stores made by somebody else.

use gritlm::batch::{Sequence, Want};
use gritlm::model::ops::Mask;
use gritlm::{Device, Engine, Options};
use gritlm_rag::{
    CacheKind, Find, Identity, NewChunk, NewDocument, Reader, Searcher, Stamp, Writer,
    content_hash, verify,
};
use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    Engine::open("demo", &Options::default().device(Device::Cpu)).expect("a model")
});

/// The files of a sound store.
static SOUND: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let folder = make();
    let files = fs::read_dir(folder.path()).expect("a folder").map(|entry| {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, fs::read(path).expect("a file"))
    });
    files.collect()
});

/// A store with a graph over its chunks, some of which have keys and values.
pub(super) fn make() -> TempDir {
    let folder = super::folder();
    let identity = Identity { cache: CacheKind::Doc, ..Identity::of(&ENGINE) };
    let mut writer = Writer::open(&folder, &identity).expect("a store");
    let cached = |tokens: &[u32]| {
        let mut cache = ENGINE.cache();
        let mask = Mask::Bidirectional { window: None };
        let sequence = Sequence { tokens, cache: &mut cache, mask, want: Want::Nothing };
        ENGINE.run(&mut [sequence]).expect("a pass");
        ENGINE.export(&cache).expect("keys and values")
    };
    for document in 0..3_u32 {
        let chunks = (0..8_u32).map(|n| NewChunk {
            text: format!("chunk {n} of {document}"),
            tokens: 2,
            vector: (0..identity.dim as u32)
                .map(|d| ((d * 7 + n + document) % 13) as f32)
                .collect(),
            kv: (n == 0).then(|| cached(&[1, 5 + n])),
        });
        let metadata = serde_json::json!({ "number": document });
        let (path, title) = (format!("documents/{document}"), format!("Title {document}"));
        let document = NewDocument { path, title, stamp: Stamp::default(), metadata };
        writer.put(&document, &chunks.collect::<Vec<_>>()).expect("a commit");
    }
    writer.set_approximate(Some(4)).expect("a commit");
    writer.update_graph(&mut |_, _| Ok(())).expect("a graph");
    drop(writer);
    folder
}

/// A sound store in which one thing is other: the first byte says what, the others how. Where there
/// are checksums that whoever makes a store makes as well, they are right.
pub(super) fn mutated(input: &[u8]) {
    let Some((kind, change)) = input.split_first() else { return };
    let folder = super::folder();
    let at = folder.path();
    for (name, bytes) in SOUND.iter() {
        fs::write(at.join(name), bytes).expect("a file");
    }
    match kind {
        b'h' => fs::write(at.join("head"), change).expect("a file"),
        b'n' => {
            let bytes = [change, &content_hash(change).to_le_bytes()].concat();
            fs::write(at.join("head"), bytes).expect("a file");
        }
        b'd' => edit(&at.join("store.sqlite"), change),
        b'v' => edit(&named(at, "vectors-"), change),
        b'k' => edit(&named(at, "kv-"), change),
        b'g' => {
            let path = named(at, "graph-");
            edit(&path, change);
            let bytes = fs::read(path).expect("a file");
            let mut state: Value = serde_json::from_str(&meta(at, "state")).expect("JSON");
            state["graph"]["bytes"] = bytes.len().into();
            state["graph"]["checksum"] = content_hash(&bytes).into();
            set_meta(at, "state", &state.to_string());
        }
        b's' | b'i' => {
            let key = if *kind == b's' { "state" } else { "identity" };
            let text = String::from_utf8_lossy(change);
            // Some fields of it, or another text.
            let text = match serde_json::from_str(&text) {
                Ok(Value::Object(fields)) => {
                    let mut all: Value = serde_json::from_str(&meta(at, key)).expect("JSON");
                    all.as_object_mut().expect("fields").extend(fields);
                    all.to_string()
                }
                _ => text.into_owned(),
            };
            set_meta(at, key, &text);
        }
        _ => return,
    }
    let _ = verify(at);
    if let Ok(reader) = Reader::open(at) {
        let _ = (reader.status(), reader.vectors());
        for chunk in [0, 1, 8, 100] {
            let _ = (reader.chunk(chunk), reader.kv(chunk));
        }
    }
    if let Ok(searcher) = Searcher::open(&*ENGINE, at) {
        for exact in [false, true] {
            let _ =
                searcher.nearest(&vec![0.1; ENGINE.config().dim], &Find::default().exact(exact));
        }
    }
    if let Ok(mut writer) =
        Writer::open(at, &Identity { cache: CacheKind::Doc, ..Identity::of(&ENGINE) })
    {
        let _ = writer.remove("documents/1");
        let _ = writer.update_graph(&mut |_, _| Ok(()));
        let _ = writer.compact();
    }
}

fn named(folder: &Path, start: &str) -> PathBuf {
    let name = SOUND.iter().map(|(name, _)| name).find(|name| name.starts_with(start));
    folder.join(name.expect("a file of that name"))
}

/// Changes bytes of a file: each edit is where (3 bytes), how many (1), and the bytes. A place behind
/// the end cuts the file to that many bytes, taken modulo its length.
fn edit(path: &Path, mut change: &[u8]) {
    let mut bytes = fs::read(path).expect("a file");
    while let [a, b, c, count, rest @ ..] = change {
        let place = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16;
        let (new, rest) = rest.split_at(rest.len().min(usize::from(*count % 16)));
        if place >= bytes.len() {
            bytes.truncate(place % (bytes.len() + 1));
        } else {
            let end = bytes.len().min(place + new.len());
            bytes[place..end].copy_from_slice(&new[..end - place]);
        }
        change = rest;
    }
    fs::write(path, bytes).expect("a file");
}

fn meta(folder: &Path, key: &str) -> String {
    let db = Connection::open(folder.join("store.sqlite")).expect("a database");
    let value = "SELECT value FROM meta WHERE key = ?1";
    db.query_row(value, [key], |row| row.get(0)).expect("a row")
}

/// Writes a row of `meta` with its checksum.
fn set_meta(folder: &Path, key: &str, value: &str) {
    let mut content = Vec::new();
    for text in ["meta", key, value] {
        content.extend((text.len() as u64).to_le_bytes());
        content.extend(text.as_bytes());
    }
    let db = Connection::open(folder.join("store.sqlite")).expect("a database");
    let put = "UPDATE meta SET value = ?2, checksum = ?3 WHERE key = ?1";
    let checksum = content_hash(&content).cast_signed();
    db.execute(put, (key, value, checksum)).expect("a row");
}
