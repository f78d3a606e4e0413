//! Properties over random input: what comes from outside never panics and is never taken for a
//! model that there cannot be; text that streams is text that is decoded whole; joining caches is
//! associative. `PROPTEST_CASES` sets how many are tried.

use crate::support::data;
use gritlm::batch::{Sequence, Want};
use gritlm::cache::KvSnapshot;
use gritlm::model::config::Config;
use gritlm::model::ops::Mask;
use gritlm::model::tokenizer::Tokenizer;
use gritlm::model::weights::{Dtype, Weights, expected, parse_index};
use gritlm::{Engine, Options};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Component, Path};
use std::sync::LazyLock;

/// As the environment says; what fails is printed, not kept in the source folder.
fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// A change of a file's bytes.
#[derive(Clone, Debug)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    Cut(Index),
}

impl Edit {
    fn any() -> impl Strategy<Value = Self> {
        let byte = prop_oneof![any::<u8>(), select(b"0123456789-.eE\"[]{}:,\\ \n\0".to_vec())];
        let at = any::<Index>;
        prop_oneof![
            4 => (at(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, 1 << bit)),
            4 => (at(), byte.clone()).prop_map(|(at, byte)| Self::Set(at, byte)),
            4 => (at(), vec(byte, 1..9)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            4 => (at(), 1..20usize).prop_map(|(at, n)| Self::Delete(at, n)),
            1 => at().prop_map(Self::Cut),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            _ if len == 0 => {}
            Self::Flip(at, bits) => bytes[at.index(len)] ^= bits,
            Self::Set(at, byte) => bytes[at.index(len)] = *byte,
            Self::Insert(at, new) => _ = bytes.splice(at.index(len)..at.index(len), new.clone()),
            Self::Delete(at, n) => _ = bytes.drain(at.index(len)..(at.index(len) + n).min(len)),
            Self::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
}

/// Values that a field may have in a hostile file, and some that it may have in a good one.
fn odd_value() -> impl Strategy<Value = Value> {
    let sizes = [0u64, 1, 2, 3, 7, 8, 64, 128, 1 << 12, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(i64::MIN),
        json!(0.5),
        json!(-0.0),
        json!(1e-300),
        json!(1e-40),
        json!(1e38),
        json!(1e300),
        json!(""),
        json!("mixtral"),
        json!("BF16"),
        json!("F32"),
        json!("F4"),
        json!([]),
        json!([0]),
        json!([1, 2]),
        json!([4, 2]),
        json!([0, u64::MAX]),
        json!([1u64 << 32, 1u64 << 32]),
        json!({}),
        json!({ "rope_theta": 1e6 }),
    ];
    let small = 0..300u64;
    prop_oneof![
        4 => small.prop_map(|n| json!(n)),
        4 => select(sizes.to_vec()).prop_map(|n| json!(n)),
        4 => select(others.to_vec()),
        2 => vec(0..300u64, 0..4).prop_map(|n| json!(n)),
        1 => any::<f64>().prop_map(|n| json!(n)),
        1 => any::<String>().prop_map(|text| json!(text)),
    ]
}

/// Sets random fields of an object, or takes them out.
fn change(object: &mut Map<String, Value>, changes: &[(Index, Option<Value>)]) {
    for (at, value) in changes {
        if object.is_empty() {
            return;
        }
        let name = object.keys().nth(at.index(object.len())).unwrap().clone();
        match value {
            Some(value) => _ = object.insert(name, value.clone()),
            None => _ = object.remove(&name),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(Index, Option<Value>)>> {
    vec((any::<Index>(), prop::option::weighted(0.9, odd_value())), 0..5)
}

/// What every accepted config is: all that the rest of the program counts on.
fn check_config(c: &Config) -> Result<(), TestCaseError> {
    let sizes = [c.dim, c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab];
    prop_assert!(sizes.iter().all(|&n| (1..=1 << 24).contains(&n)), "{sizes:?}");
    prop_assert!(c.heads.is_multiple_of(c.kv_heads) && c.head_dim.is_multiple_of(2));
    prop_assert!(c.max_positions > 0 && c.window != Some(0));
    prop_assert!(c.norm_eps > 0.0 && c.norm_eps.is_finite());
    prop_assert!(c.eos.iter().chain([&c.bos]).all(|&id| (id as usize) < c.vocab));
    if let Some(experts) = c.experts {
        prop_assert!((1..=experts.count).contains(&experts.top_k), "{experts:?}");
    }
    let frequencies = c.rope_frequencies();
    prop_assert_eq!(frequencies.len(), c.head_dim / 2);
    prop_assert!(
        frequencies.iter().all(|&f| f > 0.0 && f <= 1.0),
        "theta {} turns by {:?}",
        c.rope_theta,
        frequencies
    );
    prop_assert_eq!(c.qkv_rows(), (c.heads + 2 * c.kv_heads) * c.head_dim);
    prop_assert!(c.kv_bytes_per_token(Dtype::F32) > 0);
    Ok(())
}

/// A model of a few bytes, so that a case is a matter of microseconds.
const SMALLEST: &str = r#"{"model_type":"mistral","hidden_size":2,"intermediate_size":3,
    "num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"vocab_size":3,
    "rms_norm_eps":1e-5,"max_position_embeddings":8,"bos_token_id":1,"eos_token_id":2}"#;

fn smallest() -> Config {
    Config::parse(SMALLEST.as_bytes(), Path::new("config.json")).unwrap()
}

/// Header and data of its weights.
fn smallest_weights() -> (Map<String, Value>, Vec<u8>) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (i, want) in expected(&smallest()).iter().enumerate() {
        let (dtype, size) = [("BF16", 2), ("F16", 2), ("F32", 4)][i % 3];
        let begin = data.len();
        data.resize(begin + size * want.shape.iter().product::<usize>(), i as u8);
        let info =
            json!({ "dtype": dtype, "shape": want.shape, "data_offsets": [begin, data.len()] });
        header.insert(want.name.clone(), info);
    }
    (header, data)
}

/// Writes the file and opens it; if it is accepted, every tensor is whole.
fn open_weights(folder: &Path, file: &[u8]) -> Result<bool, TestCaseError> {
    let config = smallest();
    fs::write(folder.join("model.safetensors"), file).unwrap();
    let Ok(weights) = Weights::open(folder, &config) else { return Ok(false) };
    let mut bytes = 0;
    for want in expected(&config) {
        let tensor = weights.get(&want.name).unwrap();
        prop_assert_eq!(tensor.shape(), &want.shape);
        let count: usize = want.shape.iter().product();
        prop_assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(count));
        prop_assert_eq!(tensor.to_f32().len(), count);
        bytes += tensor.bytes().len() as u64;
    }
    prop_assert!(weights.bytes() >= bytes);
    prop_assert_eq!(weights.shards()[0].1, file.len() as u64);
    Ok(true)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn config_fields(mixture: bool, changes in changes()) {
        let model = if mixture { "mixtral-tiny" } else { "mistral-odd" };
        let text = fs::read(data(model).join("config.json")).unwrap();
        let mut json: Map<String, Value> = serde_json::from_slice(&text).unwrap();
        change(&mut json, &changes);
        let text = serde_json::to_vec(&json).unwrap();
        if let Ok(config) = Config::parse(&text, Path::new("config.json")) {
            check_config(&config)?;
        }
    }

    #[test]
    fn config_bytes(edits in vec(Edit::any(), 0..6)) {
        let mut text = SMALLEST.as_bytes().to_vec();
        edits.iter().for_each(|edit| edit.apply(&mut text));
        match Config::parse(&text, Path::new("config.json")) {
            Ok(config) => check_config(&config)?,
            Err(_) => prop_assert!(!edits.is_empty()),
        }
    }

    #[test]
    fn index_bytes(edits in vec(Edit::any(), 0..6), name in any::<String>()) {
        let map = json!({ "a": "a.safetensors", "b": "b.safetensors", "c": name });
        let mut text = json!({ "metadata": {}, "weight_map": map }).to_string().into_bytes();
        edits.iter().for_each(|edit| edit.apply(&mut text));
        if let Ok(index) = parse_index(&text, Path::new("index.json")) {
            prop_assert!(!index.is_empty());
            for file in index.values() {
                // One step down from the folder and nowhere else.
                let steps: Vec<_> = Path::new(file).components().collect();
                prop_assert!(matches!(steps[..], [Component::Normal(_)]), "{file:?}");
                prop_assert!(!file.contains('/'), "{file:?}");
            }
        }
    }

    #[test]
    fn weights_bytes(
        edits in vec(Edit::any(), 0..6),
        length in prop::option::weighted(0.2, any::<u64>()),
        fix: bool,
    ) {
        static FOLDER: LazyLock<tempfile::TempDir> =
            LazyLock::new(|| tempfile::tempdir().unwrap());
        let (header, data) = smallest_weights();
        let mut header = serde_json::to_vec(&header).unwrap();
        let right = header.len() as u64;
        edits.iter().for_each(|edit| edit.apply(&mut header));
        // The length is that of the header now, that of the header once, or any.
        let claimed = length.unwrap_or(if fix { header.len() as u64 } else { right });
        let file = [&claimed.to_le_bytes(), header.as_slice(), &data].concat();
        let accepted = open_weights(FOLDER.path(), &file)?;
        prop_assert!(accepted || !edits.is_empty() || length.is_some());
    }

    #[test]
    fn weights_fields(
        tensor in any::<Index>(),
        fields in changes(),
        whole in prop::option::weighted(0.2, odd_value()),
        edits in vec(Edit::any(), 0..2),
    ) {
        static FOLDER: LazyLock<tempfile::TempDir> =
            LazyLock::new(|| tempfile::tempdir().unwrap());
        let (mut header, mut data) = smallest_weights();
        let name = header.keys().nth(tensor.index(header.len())).unwrap().clone();
        match &whole {
            Some(value) => header[&name] = value.clone(),
            None => change(header[&name].as_object_mut().unwrap(), &fields),
        }
        edits.iter().for_each(|edit| edit.apply(&mut data));
        let text = serde_json::to_vec(&header).unwrap();
        let file = [&(text.len() as u64).to_le_bytes(), text.as_slice(), &data].concat();
        open_weights(FOLDER.path(), &file)?;
    }

    #[test]
    fn weights_of_noise(file in vec(any::<u8>(), 0..300)) {
        static FOLDER: LazyLock<tempfile::TempDir> =
            LazyLock::new(|| tempfile::tempdir().unwrap());
        prop_assert!(!open_weights(FOLDER.path(), &file)?);
    }

    #[test]
    fn streamed_text_is_decoded_text(which in 0..2usize, parts in vec(part(), 0..8)) {
        let tokenizer = &TOKENIZERS[which];
        let mut ids = Vec::new();
        for part in parts {
            match part {
                Part::Ids(indexes) => {
                    ids.extend(indexes.iter().map(|i| i.index(tokenizer.vocab()) as u32));
                }
                Part::Text(text) => ids.extend(tokenizer.encode_continued(&text).unwrap()),
            }
        }
        let whole = tokenizer.decode(&ids).unwrap();
        let mut stream = tokenizer.stream();
        let mut said: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        said += &stream.finish().unwrap();
        // Bytes that are no UTF-8 may be shown otherwise once more of them have come.
        if !whole.contains('\u{FFFD}') {
            prop_assert_eq!(said, whole, "{:?}", ids);
        }
    }

    #[test]
    fn joining_caches_is_associative(
        lengths in prop::array::uniform3(vec(0..384u32, 1..5)),
        rounded: [bool; 3],
    ) {
        let [a, b, c] = [0, 1, 2].map(|i| {
            let cache = exported(&lengths[i]);
            if rounded[i] { cache.to_bf16() } else { cache }
        });
        let join = |parts: &[&KvSnapshot]| KvSnapshot::concat(parts).unwrap();
        let all = join(&[&a, &b, &c]);
        prop_assert_eq!(&join(&[&join(&[&a, &b]), &c]).to_f32(), &all.to_f32());
        prop_assert_eq!(&join(&[&a, &join(&[&b, &c])]).to_f32(), &all.to_f32());
        prop_assert_eq!(join(&[&a, &join(&[&b, &c])]), all.clone());
        prop_assert_eq!(&join(&[&a]), &a);
        prop_assert_eq!(all.tokens(), a.tokens() + b.tokens() + c.tokens());
        // The first head of the first layer's keys begins with a's, then b's, then c's.
        let first = |cache: &KvSnapshot| cache.to_f32()[..cache.tokens() * cache.shape()[4]].to_vec();
        prop_assert_eq!(first(&all), [first(&a), first(&b), first(&c)].concat());
    }
}

/// A part of a sequence of tokens: any ids, or a text's.
#[derive(Clone, Debug)]
enum Part {
    Ids(Vec<Index>),
    Text(String),
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        vec(any::<Index>(), 1..6).prop_map(Part::Ids),
        any::<String>().prop_map(Part::Text),
        "[a-c ]{0,6}".prop_map(Part::Text),
        "[ \u{e9}\u{2603}\u{1f600}\u{2581}\n]{0,4}".prop_map(Part::Text),
    ]
}

/// The demo's, and that of the tiny models, where a token is a byte.
static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
    let folders = [Path::new(env!("CARGO_MANIFEST_DIR")).join("model/demo"), data("mistral-tiny")];
    folders.map(|folder| {
        let config = Config::open(&folder.join("config.json")).unwrap();
        Tokenizer::open(&folder.join("tokenizer.json"), &config).unwrap()
    })
});

/// Keys and values of a text.
fn exported(tokens: &[u32]) -> KvSnapshot {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        Engine::open(data("mistral-tiny").to_str().unwrap(), &Options::default()).unwrap()
    });
    let mut cache = ENGINE.cache();
    let mask = Mask::Bidirectional { window: None };
    let sequence = Sequence { tokens, cache: &mut cache, mask, want: Want::Nothing };
    ENGINE.run(&mut [sequence]).unwrap();
    ENGINE.export(&cache).unwrap()
}
