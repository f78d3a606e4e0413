//! Files of a checkpoint.

use gritlm::model::adapter::{Adapter, CONFIG, Lora, WEIGHTS};
use gritlm::model::config::Config;
use gritlm::model::gguf::Gguf;
use gritlm::model::tokenizer::Tokenizer;
use gritlm::model::weights::{Dtype, Tensor, Weights, parse_index};
use std::path::Path;

/// A model of one layer, small enough for a header to be mutated into its own.
const SMALL: &str = r#"{"model_type": "mistral", "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "rope_theta": 10000.0, "sliding_window": null}"#;

fn small() -> Config {
    Config::parse(SMALL.as_bytes(), Path::new("config.json")).expect("a config")
}

/// `config.json`, and behind a zero `generation_config.json`.
pub(super) fn config(input: &[u8]) {
    let mut parts = input.splitn(2, |&byte| byte == 0);
    let own = parts.next().unwrap_or_default();
    let parsed = Config::parse(own, Path::new("config.json"));
    let folder = super::folder();
    let path = folder.path().join("config.json");
    std::fs::write(&path, own).expect("a file");
    if let Some(generation) = parts.next() {
        let beside = folder.path().join("generation_config.json");
        std::fs::write(beside, generation).expect("a file");
    }
    let opened = Config::open(&path);
    for config in [parsed, opened].into_iter().flatten() {
        assert!(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0);
        assert!(config.eos.iter().all(|&id| (id as usize) < config.vocab));
        assert_eq!(config.rope_frequencies().len(), config.head_dim / 2);
        assert!(config.parameters() > 0 && config.kv_bytes_per_token(Dtype::F32) > 0);
        // As if the weights were opened: none of the tensors is there.
        assert!(Weights::open(folder.path(), &config).is_err());
    }
}

/// A folder with weights; the first byte says what the others are: a file of tensors, a file's
/// header, or the index of two files.
pub(super) fn safetensors(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let folder = super::folder();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
    };
    match kind % 3 {
        0 => write("model.safetensors", bytes),
        1 => write("model.safetensors", &with_header(bytes)),
        _ => {
            let path = Path::new("model.safetensors.index.json");
            let _ = parse_index(bytes, path);
            write("model.safetensors.index.json", bytes);
            // A header and its tensors, behind the index.
            let split = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            let (index, header) = bytes.split_at(split);
            write("model.safetensors.index.json", index);
            write("a.safetensors", &with_header(header.get(1..).unwrap_or_default()));
        }
    }
    let config = small();
    if let Ok(weights) = Weights::open(folder.path(), &config) {
        let mut sum = 0_u64;
        for (_, tensor) in weights.tensors() {
            sum += tensor.bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>();
            let elements = tensor.shape().iter().product::<usize>();
            assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(elements));
        }
        assert!(weights.bytes() > 0 || sum == 0);
    }
}

/// An adapter: `adapter_config.json`, and behind a zero the header of its matrices.
pub(super) fn adapter(input: &[u8]) {
    let folder = super::folder();
    let split = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let (options, header) = input.split_at(split);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
    };
    write(CONFIG, options);
    write(WEIGHTS, &with_header(header.get(1..).unwrap_or_default()));
    let config = small();
    if let Ok(lora) = Lora::parse(options, Path::new(CONFIG)) {
        let again = Lora::parse(lora.to_json("base", &config).as_bytes(), Path::new(CONFIG));
        // What is written lacks modules that the model has not; all else is what was read.
        let again = again.map(|again| again.targets(lora.targets.clone()));
        assert!(again.is_err() || again.is_ok_and(|again| again == lora));
    }
    if let Ok(adapter) = Adapter::open(folder.path(), &config) {
        for (name, [a, b]) in adapter.pairs() {
            assert_eq!((a.shape()[0], b.shape()[1]), (adapter.lora().rank, adapter.lora().rank));
            let tensor = Tensor::from_f32(
                &[b.shape()[0], a.shape()[1]],
                &vec![1.0; b.shape()[0] * a.shape()[1]],
            );
            assert_eq!(adapter.merged(name, &tensor, Dtype::F32).shape(), tensor.shape());
        }
    }
}

/// A GGUF file: config, weights and tokenizer are all in it.
pub(super) fn gguf(input: &[u8]) {
    let folder = super::folder();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, input).expect("a file");
    let Ok(file) = Gguf::open(&path) else { return };
    for info in file.tensors() {
        let elements = info.shape.iter().product::<usize>();
        assert_eq!(info.range.len(), info.dtype.bytes(elements));
        assert!(info.range.end <= input.len());
    }
    for (key, _) in file.metadata().iter() {
        let all = file.metadata();
        let _ = (all.string(key), all.count(key, 9), all.token(key, 9), all.number(key));
        let _ = (all.flag(key), all.strings(key), all.numbers(key), all.integers(key));
    }
    let Ok(config) = file.config() else { return };
    assert!(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0);
    assert!(config.eos.iter().all(|&id| (id as usize) < config.vocab));
    let frequencies = config.rope_frequencies();
    assert!(frequencies.len() == config.head_dim / 2 && frequencies.iter().all(|f| f.is_finite()));
    // A config that a few bytes claim may have a hundred million tensors; the file has not.
    if let Ok(weights) = Weights::of_gguf(&file, &config) {
        for (_, tensor) in weights.tensors() {
            let elements = tensor.shape().iter().product::<usize>();
            assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(elements));
            let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            assert_eq!(sum(tensor.bytes()), sum(tensor.stored()));
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata(), &config) {
        tokenize(&tokenizer);
    }
}

/// A file with this header, and zeros as far as its offsets reach.
fn with_header(header: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let text = String::from_utf8_lossy(header);
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<usize>().ok());
    let end = numbers.filter(|&n| n <= 1 << 16).max().unwrap_or_default();
    file.resize(file.len() + end, 0);
    file
}

/// `tokenizer.json`; texts are tokenized with it where it is taken.
pub(super) fn tokenizer(input: &[u8]) {
    let path = Path::new("tokenizer.json");
    if let Ok(tokenizer) = Tokenizer::parse(input, path, &small()) {
        tokenize(&tokenizer);
    }
}

fn tokenize(tokenizer: &Tokenizer) {
    for text in ["", " ", "a", "ab  ab<s>\n", "ﷺ é\u{301} 漢字 \u{1F600} İ", "a\0\u{FFFD}b"] {
        let _ = tokenizer.ends(text);
        let _ = tokenizer.encode_turn(text);
        if let Ok(ids) = tokenizer.encode(text) {
            let _ = tokenizer.decode(&ids);
            let _ = tokenizer.encode_joined("a", &ids);
            let mut stream = tokenizer.stream();
            for id in ids {
                let _ = tokenizer.token(id);
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
    }
    let _ = tokenizer.token_bytes();
    let _ = tokenizer.decode(&[0, 1, 63, 64, u32::MAX]);
}
