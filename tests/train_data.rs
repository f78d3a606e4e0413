//! Training data with the demo model's tokenizer: what the modules share, and the examples.

mod batches; // which samples each step sees
mod ids; // equal to the engine's, and to the original's
mod lines; // formats, bad lines, samples that are left out

use gritlm::{Device, Engine, Options};
use gritlm_train::{Data, Encoder, Kind, Lengths, Result, Spoken};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The demo model on the CPU.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap())
}

fn encoder(lengths: Lengths) -> Encoder<'static> {
    Encoder::new(engine().tokenizer(), engine().config(), lengths).unwrap()
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Opens a folder for groups of two, with the default lengths.
fn open(path: &Path) -> Result<Data> {
    Data::open(path, &encoder(Lengths::default()), 2)
}

/// `count` pairs whose query is the name and a number.
fn pairs(name: &str, count: usize) -> String {
    let line = |i| format!(r#"{{"query": "{name} {i}", "pos": ["yes {i}"], "neg": ["no {i}"]}}"#);
    (0..count).map(|i| line(i) + "\n").collect()
}

/// `count` conversations about numbers.
fn texts(count: usize) -> String {
    (0..count).map(|i| format!("{{\"text\": [\"What is {i}?\", \"It is {i}.\"]}}\n")).collect()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/train")
}

#[test]
fn the_examples_are_read() {
    let data = open(&examples()).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let files: Vec<_> = data.files().map(|(path, kind, n)| (name(path), kind, n)).collect();
    let expected = [
        ("conversations.jsonl", Kind::Texts, 20),
        ("documents.jsonl", Kind::Documents, 20),
        ("pairs.jsonl", Kind::Pairs, 20),
    ];
    assert_eq!(files, expected.map(|(name, kind, n)| (name.to_string(), kind, n)));
    assert_eq!((data.pairs(), data.generative(), data.group()), (20, 40, 2));
    assert_eq!(data.notes().count(), 0);

    let pair = data.pair(1).unwrap();
    assert_eq!(pair.query.instruction, "Find the software package that fits the description.");
    assert_eq!(pair.query.text, "find files by name with a short command");
    assert_eq!((pair.positives.len(), pair.negatives.len()), (1, 2));
    assert!(pair.positives[0].instruction.is_empty());
    assert!(pair.negatives[1].text.starts_with("borgbackup: "), "{:?}", pair.negatives);
    assert!(pair.place.to_string().ends_with("pairs.jsonl:2"), "{}", pair.place);

    let Spoken::Turns(turns) = data.text(2).unwrap().spoken else { panic!() };
    assert_eq!(turns.len(), 2);
    assert_eq!(turns[0].1, "It is in the section database.");
    let about = data.text(20).unwrap();
    assert!(about.document.unwrap().text.starts_with("ripgrep: "));
    assert!(about.place.to_string().ends_with("documents.jsonl:1"), "{}", about.place);
}
