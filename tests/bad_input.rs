//! Bad input: whatever a checkpoint, a text or a place to write to is like, the program ends with
//! one line that says what is wrong, the right exit code, nothing on stdout and no partial file.

mod config; // config and tokenizer
mod outputs; // files, full disks, closed pipes
mod texts; // texts, prompts and numbers
mod weights; // safetensors files and shards

use crate::cli::{Ran, run};
use crate::support::data;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";

/// A copy of a tiny checkpoint, to be broken.
pub(crate) struct Broken {
    pub(crate) folder: TempDir,
}

impl Broken {
    pub(crate) fn new(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.json", WEIGHTS] {
            fs::copy(data(model).join(file), folder.path().join(file)).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn odd() -> Self {
        Self::new("mistral-odd")
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(file), bytes).unwrap();
        self
    }

    pub(crate) fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&self.read(file)).unwrap()
    }

    /// Sets a field of the config; `None` takes it out.
    pub(crate) fn config(&self, field: &str, value: Option<Value>) -> &Self {
        let mut config = self.json("config.json");
        let fields = config.as_object_mut().unwrap();
        match value {
            Some(value) => _ = fields.insert(field.into(), value),
            None => _ = fields.remove(field),
        }
        self.write("config.json", config.to_string())
    }

    /// Header and data of the weights.
    fn weights(&self) -> (Map<String, Value>, Vec<u8>) {
        let bytes = self.read(WEIGHTS);
        let header = 8 + header_len(&bytes);
        (serde_json::from_slice(&bytes[8..header]).unwrap(), bytes[header..].to_vec())
    }

    /// Changes the header of the weights; the data stays.
    fn header(&self, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let (mut header, data) = self.weights();
        change(&mut header);
        self.write(WEIGHTS, file(&serde_json::to_vec(&header).unwrap(), &data))
    }

    /// Makes two shards of it, the head and the rest, and an index that is right.
    fn shards(&self) -> Value {
        let (mut header, data) = self.weights();
        let head = header.remove(HEAD).unwrap();
        let (from, to) = (offset(&head, 0), offset(&head, 1));
        assert_eq!(from, 0, "the rest begins where the head ends");
        let one: Map<String, Value> = [(HEAD.to_string(), head)].into_iter().collect();
        self.write("a.safetensors", file(&serde_json::to_vec(&one).unwrap(), &data[..to]));
        header.remove("__metadata__");
        for tensor in header.values_mut() {
            let moved = [offset(tensor, 0) - to, offset(tensor, 1) - to];
            tensor["data_offsets"] = json!(moved);
        }
        self.write("b.safetensors", file(&serde_json::to_vec(&header).unwrap(), &data[to..]));
        fs::remove_file(self.path(WEIGHTS)).unwrap();
        let mut map: Map<String, Value> =
            header.into_iter().map(|(name, _)| (name, "b.safetensors".into())).collect();
        map.insert(HEAD.into(), "a.safetensors".into());
        let index = json!({ "metadata": {}, "weight_map": map });
        self.write(INDEX, index.to_string());
        index
    }

    fn embed(&self) -> Ran {
        let model = self.folder.path().to_str().unwrap();
        run(&["embed", "--model", model, "--format", "json", "a text"], "")
    }

    /// Embedding and inspecting both end with one line that says this.
    #[track_caller]
    pub(crate) fn fails(&self, parts: &[&str]) {
        self.embed().fails(1, parts);
        let model = self.folder.path().to_str().unwrap();
        run(&["inspect", "--model", model], "").fails(1, parts);
    }
}

fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn offset(tensor: &Value, which: usize) -> usize {
    tensor["data_offsets"][which].as_u64().unwrap() as usize
}

/// A safetensors file.
fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The copies and shards that the other tests break are whole: what fails there fails for the
/// reason named.
#[test]
fn unbroken_copies_work() {
    let whole = Broken::odd();
    let expected = whole.embed().ok();
    whole.shards();
    assert_eq!(whole.embed().ok(), expected);
    // A header of odd length leaves every tensor at an odd address, which the format allows.
    for padding in 1..4 {
        let odd = Broken::odd();
        let (header, data) = odd.weights();
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len() + padding, b' ');
        odd.write(WEIGHTS, file(&header, &data));
        assert_eq!(odd.embed().ok(), expected, "{padding}");
    }
}
