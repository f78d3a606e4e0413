//! `gritlm quantize` and quantising while a model is loaded: one file or one copy in memory, the
//! same values, and what they were made from.

use crate::cli::{objects, run};
use crate::gguf::answers;
use crate::gguf_file::{Experts, converted};
use crate::support::{data, mistral_tokenizer, smollm2};
use gritlm::model::config::{Config, RopeScaling};
use gritlm::model::format::Dtype;
use gritlm::model::gguf::{self, Gguf};
use gritlm::model::quantize::Quantization;
use gritlm::model::tokenizer::Tokenizer;
use gritlm::model::weights::Weights;
use gritlm::{Device, Engine, Error, Options, Quantized, synth};
use std::fs;
use std::path::Path;

fn to(name: &str) -> Quantization {
    name.parse().unwrap()
}

fn quantize(model: &Path, name: &str, output: &Path) -> gritlm::Result<Quantized> {
    gritlm::quantize(model.to_str().unwrap(), None, to(name), output, &mut |_, _| Ok(()))
}

fn engine(model: &Path, weights: Option<&str>) -> Engine {
    let options = Options::default().device(Device::Cpu).weights(weights.map(to));
    Engine::open(model.to_str().unwrap(), &options).unwrap()
}

fn config(file: &Path) -> Config {
    Gguf::open(file).unwrap().config().unwrap()
}

/// Without loss, a file computes what its source computes: names, rows of q and k, experts,
/// config and tokenizer all arrive.
#[test]
fn plain_formats_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["mistral-odd", "mistral-tiny", "mixtral-tiny"] {
        let source = engine(&data(model), None);
        for format in ["f32", "bf16"] {
            let file = folder.path().join(format!("{model}.{format}.gguf"));
            quantize(&data(model), format, &file).unwrap();
            let made = engine(&file, None);
            assert_eq!(answers(&made), answers(&source), "{model} {format}");
            for text in ["a text", "  Zwei Wörter: 漢字 🙂", ""] {
                let ids = |engine: &Engine| engine.tokenizer().encode(text).unwrap();
                assert_eq!(ids(&made), ids(&source), "{model} {text:?}");
            }
        }
    }
    // From one file to another, with the rows of q and k in its own order.
    let (first, second) = (folder.path().join("first.gguf"), folder.path().join("second.gguf"));
    fs::write(&first, converted("mixtral-tiny", Experts::Apart).bytes()).unwrap();
    quantize(&first, "f32", &second).unwrap();
    assert_eq!(answers(&engine(&second, None)), answers(&engine(&data("mixtral-tiny"), None)));
}

#[test]
fn the_demo_model_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.gguf");
    quantize(Path::new("demo"), "bf16", &file).unwrap();
    let (made, source) = (engine(&file, None), engine(Path::new("demo"), None));
    let embed = gritlm::Embed::default().instruction("Find a package");
    let vectors = |engine: &Engine| engine.embed(&["capture packets"], &embed).unwrap();
    assert_eq!(vectors(&made)[0].vector, vectors(&source)[0].vector);
}

#[test]
fn while_loading_and_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for like in ["tiny", "tiny-moe"] {
        let source = folder.path().join(like);
        synth::write(like, None, 0, &source, &mut |_, _| Ok(())).unwrap();
        let plain = answers(&engine(&source, None));
        for format in ["q8_0", "q4_0", "q4_k_m", "q6_k", "iq4_xs"] {
            let file = folder.path().join(format!("{like}.{format}.gguf"));
            let report = quantize(&source, format, &file).unwrap();
            assert!(report.fallbacks.is_empty(), "{:?}", report.fallbacks);
            let made = answers(&engine(&file, None));
            assert_eq!(made, answers(&engine(&source, Some(format))), "{like} {format}");
            assert_ne!(made, plain, "{like} {format}");
        }
        // The first file's matrices again, in a format of more bits.
        let first = folder.path().join(format!("{like}.q4_0.gguf"));
        let again = answers(&engine(&first, Some("f32")));
        assert_eq!(again, answers(&engine(&first, None)), "{like}");
    }
}

/// Formats by tensor, as llama.cpp chooses them.
#[test]
fn which_tensors_get_which_format() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    synth::write("tiny", None, 0, &source, &mut |_, _| Ok(())).unwrap();
    let file = folder.path().join("made.gguf");
    quantize(&source, "q4_k_m", &file).unwrap();
    let made = Gguf::open(&file).unwrap();
    let dtype = |name: &str| made.tensors().find(|info| info.name == name).unwrap().dtype;
    for (name, expected) in [
        ("token_embd.weight", Dtype::Q4K),
        ("output.weight", Dtype::Q6K),
        ("output_norm.weight", Dtype::F32),
        ("blk.0.attn_norm.weight", Dtype::F32),
        ("blk.0.attn_q.weight", Dtype::Q4K),
        ("blk.0.attn_v.weight", Dtype::Q4K),
        ("blk.2.attn_v.weight", Dtype::Q6K),
        ("blk.2.ffn_down.weight", Dtype::Q6K),
        ("blk.2.ffn_up.weight", Dtype::Q4K),
        ("blk.3.ffn_down.weight", Dtype::Q6K),
    ] {
        assert_eq!(dtype(name), expected, "{name}");
    }
    assert_eq!(made.metadata().count("general.file_type", 99).unwrap(), 15);
    let narrow = folder.path().join("narrow.gguf");
    let report = quantize(Path::new("demo"), "q4_k", &narrow).unwrap();
    let fallbacks: Vec<_> = report.fallbacks.into_iter().collect();
    assert!(fallbacks.iter().any(|one| one.0 == (Dtype::Q4K, Dtype::Q5_0) && one.1 > 0));
    assert!(fallbacks.iter().any(|one| one.0 == (Dtype::Q6K, Dtype::Q8_0)), "{fallbacks:?}");
}

/// A config goes into a file and comes back.
#[test]
fn configs() {
    let plain = synth::config("tiny", Some(1)).unwrap();
    let mixture = synth::config("tiny-moe", Some(1)).unwrap();
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 512 };
    let scaled = |scaling| Config { rope_scaling: Some(scaling), ..plain.clone() };
    let several = Config { eos: vec![2, 7, 9], window: Some(64), tied: true, ..plain.clone() };
    let all = [
        several,
        scaled(RopeScaling::Linear { factor: 2.5 }),
        scaled(llama3),
        Config { head_dim: 32, rope_theta: 5e5, norm_eps: 1e-6, ..mixture.clone() },
        mixture,
    ];
    let folder = tempfile::tempdir().unwrap();
    for (n, config) in all.into_iter().enumerate() {
        let source = folder.path().join(n.to_string());
        synth::write_config(&config, 0, &source, u64::MAX, &mut |_, _| Ok(())).unwrap();
        let file = folder.path().join(format!("{n}.gguf"));
        quantize(&source, "bf16", &file).unwrap();
        let made = self::config(&file);
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * a.abs();
        let frequencies = made.rope_frequencies().into_iter().zip(config.rope_frequencies());
        assert!(frequencies.into_iter().all(|(a, b)| near(a, b)), "{n}");
        let (family, rope_scaling) = (made.family, made.rope_scaling.clone());
        assert_eq!(made, Config { family, rope_scaling, ..config }, "{n}");
    }
}

#[test]
fn tokenizers() {
    let config = Config { vocab: 32000, ..synth::config("tiny", None).unwrap() };
    let path = Path::new("tokenizer.json");
    let mistral = Tokenizer::parse(&mistral_tokenizer(), path, &config).unwrap();
    let values = mistral.to_gguf(&config, path).unwrap();
    // The scores say all: no list of merges is needed.
    assert!(!values.contains_key("tokenizer.ggml.merges"));
    let back = Tokenizer::from_gguf(&gguf::Metadata::new(path, values), &config).unwrap();
    for text in ["  Grüße, 世界!\n\n1234", "</s> <s> [INST]", "def f(x):\n\treturn x"] {
        assert_eq!(back.encode(text).unwrap(), mistral.encode(text).unwrap(), "{text:?}");
    }
    let words = br#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"}}"#;
    let words = Tokenizer::parse(words, path, &config).unwrap();
    let refused = words.to_gguf(&config, path).unwrap_err().to_string();
    assert!(refused.contains("expected a tokenizer of type BPE"), "{refused}");
    // Byte-level BPE whose words are cut in a way that no name says.
    let odd = br#"{"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true}, "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;
    let odd = Tokenizer::parse(odd, path, &config).unwrap();
    let refused = odd.to_gguf(&config, path).unwrap_err().to_string();
    assert!(refused.contains("whose steps a GGUF file can name"), "{refused}");
}

/// A real model's file again: the same metadata, and its own order of rows.
#[test]
fn a_real_model() {
    let Some(model) = smollm2("quantize::a_real_model") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("again.gguf");
    let report = quantize(Path::new(&model), "q8_0", &file).unwrap();
    assert_eq!(report.formats[&Dtype::Q8_0].0, 211);
    let (before, after) = (Gguf::open(Path::new(&model)).unwrap(), Gguf::open(&file).unwrap());
    let but = ["general.file_type", "general.quantization_version"];
    let values = |gguf: &Gguf| {
        let all = gguf.metadata().iter().filter(|(key, _)| !but.contains(key));
        all.map(|(key, value)| (key.to_string(), value.clone())).collect::<Vec<_>>()
    };
    assert!(values(&before) == values(&after));
    // The model was trained with causal attention: in both directions its vectors tell little.
    let causal = gritlm::Embed::default().attn(Some(gritlm::Attn::Cccc));
    let (old, new) = (engine(Path::new(&model), None), engine(&file, None));
    let vector =
        |engine: &Engine| engine.embed(&["a packet of data"], &causal).unwrap().remove(0).vector;
    let cosine = gritlm::dot(&vector(&old), &vector(&new));
    assert!(cosine > 0.9995, "{cosine}");
}

#[test]
fn what_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("there.gguf"), "kept").unwrap();
    let (there, other, made) = (path("there.gguf"), path("model.bin"), path("made.gguf"));
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let with = |output: &Path, to: &str| run(&["quantize", "demo", &text(output), "--to", to], "");
    with(&there, "q8_0").fails(1, &[&text(&there), "exists already"]);
    assert_eq!(fs::read_to_string(&there).unwrap(), "kept");
    with(&other, "q8_0").fails(2, &["expected a file name that ends in .gguf", "model.bin"]);
    with(&made, "q9_k").fails(2, &["expected one of bf16", "q4_k_m", "found q9_k"]);
    with(&path("no/made.gguf"), "q8_0").fails(1, &["no/made.gguf", "No such file"]);
    run(&["quantize", "nowhere/at-all", &text(&made), "--to", "q8_0"], "").fails(1, &["nowhere"]);
    run(&["embed", "--weights", "q1", "a"], "").fails(2, &["expected one of bf16", "found q1"]);
    // Interrupted in the middle.
    let mut calls = 0;
    let interrupted = gritlm::quantize("demo", None, to("q8_0"), &made, &mut |_, _| {
        calls += 1;
        if calls > 3 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(interrupted, Err(Error::Cancelled)));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [there]);
}

/// A checkpoint without `lm_head` only embeds, which a GGUF file cannot say.
#[test]
fn a_bare_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (source, bare) = (data("mistral-tiny"), folder.path().join("bare"));
    fs::create_dir(&bare).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(source.join(file), bare.join(file)).unwrap();
    }
    let config = Config::open(&source.join("config.json")).unwrap();
    let weights = Weights::open(&source, &config).unwrap();
    let tensors = weights.tensors().filter(|(name, _)| *name != "lm_head.weight");
    let views: Vec<_> = tensors
        .map(|(name, t)| {
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::BF16,
                t.shape().to_vec(),
                t.bytes(),
            );
            (name.strip_prefix("model.").unwrap_or(name).to_string(), view.unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &bare.join("model.safetensors")).unwrap();
    let made = folder.path().join("made.gguf");
    let refused = quantize(&bare, "q8_0", &made).unwrap_err().to_string();
    assert!(refused.contains("expected an lm_head"), "{refused}");
    assert!(!made.exists());
}

#[test]
fn on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.gguf");
    let file = file.to_str().unwrap();
    let made = run(&["quantize", "demo", file, "--to", "Q4_K_M", "--format", "json"], "");
    assert!(made.stderr.contains("are Q5_0 instead of Q4_K"), "{}", made.stderr);
    let report = &objects(&made.stdout)[0];
    assert_eq!(report["type"], "q4_k_m");
    assert!(report["bytes"].as_u64().unwrap() > 1 << 20);
    assert!(report["fallbacks"].as_array().unwrap().len() == 2, "{report}");
    let ids = |args: &[&str]| run(&[&["generate", "--prompt", "Which?"], args].concat(), "").ok();
    assert_eq!(ids(&["--model", file]), ids(&["--weights", "q4_k_m"]));
}
