//! GGUF files compute what the checkpoints that they were made from compute, to the bit.

use crate::cli::{objects, run};
use crate::gguf_file::{Experts, Gguf, V, converted, text};
use crate::support::data;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::config::{Config, Family, RopeScaling};
use gritlm::model::gguf;
use gritlm::model::ops::{Mask, Pooling};
use gritlm::model::weights::Weights;
use gritlm::{Device, Engine, Options};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn engine(model: &Path) -> Engine {
    let options = Options::default().device(Device::Cpu);
    Engine::open(model.to_str().unwrap(), &options).unwrap()
}

fn written(folder: &TempDir, name: &str, file: &Gguf) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, file.bytes()).unwrap();
    path
}

/// Embeddings of a bidirectional and a causal text and logits of another, as bits.
pub(crate) fn answers(engine: &Engine) -> Vec<u32> {
    let texts: [Vec<u32>; 3] =
        [(3..40).collect(), (100..119).rev().collect(), vec![1, 300, 77, 200, 33, 150]];
    let mut caches: Vec<_> = texts.iter().map(|_| engine.cache()).collect();
    let embedding = Want::Embedding { skip: 1, pooling: Pooling::Mean, normalize: true };
    let wants = [embedding.clone(), embedding, Want::AllLogits];
    let masks = [false, true, true].map(|causal| match causal {
        true => engine.generation_mask(),
        false => Mask::Bidirectional { window: None },
    });
    let mut sequences: Vec<_> = (texts.iter().zip(&mut caches).zip(wants).zip(masks))
        .map(|(((tokens, cache), want), mask)| Sequence { tokens, cache, mask, want })
        .collect();
    let outputs = engine.run(&mut sequences).unwrap();
    let numbers = outputs.into_iter().flat_map(|output| match output {
        Output::Embedding(v) | Output::Logits(v) => v,
        other => panic!("{other:?}"),
    });
    numbers.map(f32::to_bits).collect()
}

#[track_caller]
fn same(model: &str, file: &Gguf) {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "model.gguf", file);
    let published = engine(&data(model));
    let expected = answers(&published);
    for place in [path.as_path(), folder.path()] {
        let found = engine(place);
        assert_eq!(answers(&found), expected, "{model}");
        let texts = ["a text", "  Zwei Wörter: 漢字 🙂", ""];
        for text in texts {
            let ids = |engine: &Engine| engine.tokenizer().encode(text).unwrap();
            assert_eq!(ids(&found), ids(&published), "{text:?}");
        }
    }
}

#[test]
fn dense_models() {
    for model in ["mistral-odd", "mistral-tiny"] {
        same(model, &converted(model, Experts::Stacked));
    }
}

#[test]
fn mixtures_with_both_forms_of_experts() {
    for form in [Experts::Stacked, Experts::Apart] {
        same("mixtral-tiny", &converted("mixtral-tiny", form));
    }
}

/// Without it they would be others: the test of the tests above.
#[test]
fn the_rows_of_q_and_k_have_an_order() {
    let mut file = converted("mistral-odd", Experts::Stacked);
    let row = file.tensor("blk.0.attn_q.weight").bytes.len() / 512;
    file.tensor("blk.0.attn_q.weight").bytes.rotate_left(row);
    let folder = tempfile::tempdir().unwrap();
    let found = answers(&engine(&written(&folder, "model.gguf", &file)));
    assert_ne!(found, answers(&engine(&data("mistral-odd"))));
}

#[test]
fn f32_tensors() {
    let mut file = converted("mistral-odd", Experts::Stacked);
    for tensor in &mut file.tensors {
        if tensor.kind == 30 {
            let wide = tensor.bytes.as_chunks::<2>().0.iter();
            let wide = wide.map(|b| u32::from(u16::from_le_bytes(*b)) << 16);
            (tensor.kind, tensor.bytes) = (0, wide.flat_map(u32::to_le_bytes).collect());
        }
    }
    same("mistral-odd", &file);
}

#[test]
fn any_part_opens_a_split_file() {
    let folder = tempfile::tempdir().unwrap();
    let parts = converted("mistral-odd", Experts::Stacked).parts(4);
    let name = |number: usize| format!("odd-{number:05}-of-00004.gguf");
    let paths: Vec<_> =
        parts.iter().enumerate().map(|(i, part)| written(&folder, &name(i + 1), part)).collect();
    let expected = answers(&engine(&data("mistral-odd")));
    for place in [&paths[0], &paths[2], &folder.path().to_path_buf()] {
        assert_eq!(answers(&engine(place)), expected, "{}", place.display());
    }
}

#[test]
fn a_checkpoint_of_safetensors_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(data("mistral-odd").join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("model.gguf"), "no model").unwrap();
    assert_eq!(answers(&engine(folder.path())), answers(&engine(&data("mistral-odd"))));
}

/// What the metadata say is what `config.json` says, but for the family, which they do not know.
#[test]
fn the_config() {
    for (model, family) in [
        ("mistral-odd", Family::Llama),
        ("mistral-tiny", Family::Llama),
        ("mixtral-tiny", Family::Mixtral),
    ] {
        let published = Config::open(&data(model).join("config.json")).unwrap();
        let found = config(&converted(model, Experts::Stacked));
        assert_eq!(found, Config { family, ..published });
    }
}

fn config(file: &Gguf) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "model.gguf", file);
    gguf::Gguf::open(&path).unwrap().config().unwrap()
}

#[test]
fn what_the_metadata_leave_out() {
    let mut file = converted("mistral-odd", Experts::Stacked);
    let whole = config(&file);
    file.set("llama.vocab_size", None)
        .set("llama.rope.dimension_count", None)
        .set("llama.rope.freq_base", None)
        .set("llama.expert_count", Some(V::U32(0)))
        .set("llama.rope.scaling.type", Some(text("none")))
        .set("llama.rope.scaling.factor", Some(V::F32(0.0)))
        .set("llama.attention.sliding_window", Some(V::U32(0)));
    assert_eq!(config(&file), whole);
    file.set("llama.attention.head_count_kv", None);
    assert_eq!(config(&file).kv_heads, whole.heads);
    file.set("llama.attention.sliding_window", Some(V::U32(64)));
    assert_eq!(config(&file).window, Some(64));
    file.set("tokenizer.ggml.eot_token_id", Some(V::U32(7)));
    file.set("tokenizer.ggml.eom_token_id", Some(V::U8(2)));
    assert_eq!(config(&file).eos, [2, 7]);
    file.tensors.retain(|tensor| tensor.name != "output.weight");
    assert!(config(&file).tied);
}

#[test]
fn scaled_rotary_embeddings() {
    let mut file = converted("mistral-odd", Experts::Stacked);
    let plain = config(&file).rope_frequencies();
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let mut file = file.clone();
        file.set("llama.rope.scaling.type", Some(text("linear")));
        file.set(key, Some(V::F32(4.0)));
        let linear = config(&file);
        assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
        let expected: Vec<f32> = plain.iter().map(|f| f / 4.0).collect();
        assert_eq!(linear.rope_frequencies(), expected);
    }
    let factors: Vec<f32> = (0..64).map(|i| 1.0 + i as f32 / 8.0).collect();
    let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    file.add("rope_freqs.weight", &[64], 0, bytes);
    let scaled = config(&file);
    let expected: Vec<f32> = plain.iter().zip(&factors).map(|(f, by)| f / by).collect();
    assert_eq!(scaled.rope_frequencies(), expected);
    assert_eq!(scaled.rope_scaling, Some(RopeScaling::Factors(factors)));
    // The weights are checked without it.
    let folder = tempfile::tempdir().unwrap();
    Weights::open(&written(&folder, "model.gguf", &file), &scaled).unwrap();
}

#[test]
fn inspect_shows_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "model.gguf", &converted("mixtral-tiny", Experts::Stacked));
    let inspect = |model: &Path| {
        let args = ["inspect", "--model", model.to_str().unwrap(), "--format", "json"];
        objects(&run(&args, "").ok()).remove(0)
    };
    let (found, published) = (inspect(&path), inspect(&data("mixtral-tiny")));
    assert_eq!(found["architecture"], "Mixtral");
    for format in ["BF16", "F32"] {
        assert!(found["dtypes"][format].as_u64() > Some(0), "{}", found["dtypes"]);
    }
    assert_eq!(found["files"].as_array().unwrap().len(), 1);
    for same in ["parameters", "config", "tokenizer", "generates"] {
        assert_eq!(found[same], published[same], "{same}");
    }
}
