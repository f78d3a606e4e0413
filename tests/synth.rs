//! Random checkpoints: they open, have the values that they should, and never lie about half done.

use gritlm::{Error, synth};
use gritlm_model::config::{Config, Experts};
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

/// Writes with nobody listening.
fn write(like: &str, layers: Option<usize>, seed: u64, output: &Path) -> gritlm::Result<()> {
    synth::write(like, layers, seed, output, &mut |_, _| Ok(())).map(|_| ())
}

/// Whether two files have the same bytes; in pieces, as they can be large.
fn same(a: &Path, b: &Path) -> bool {
    let [mut a, mut b] = [a, b].map(|path| fs::File::open(path).unwrap().take(0));
    let [mut left, mut right] = [Vec::new(), Vec::new()];
    loop {
        for (file, piece) in [(&mut a, &mut left), (&mut b, &mut right)] {
            piece.clear();
            file.set_limit(1 << 20);
            file.read_to_end(piece).unwrap();
        }
        if left != right || left.is_empty() {
            return left == right;
        }
    }
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn open(folder: &Path) -> (Config, Weights) {
    let config = Config::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open(folder, &config).unwrap();
    (config, weights)
}

#[test]
fn the_seed_decides_every_byte() {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (like, layers) in [("tiny", None), ("tiny-moe", None), ("1b", Some(1))] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        write(like, layers, 7, &path("a")).unwrap();
        one_thread.install(|| write(like, layers, 7, &path("b"))).unwrap();
        assert_eq!(names(&path("a")), names(&path("b")));
        for file in names(&path("a")) {
            assert!(same(&path("a").join(&file), &path("b").join(&file)), "{like}: {file} differs");
        }
        write(like, layers, 8, &path("c")).unwrap();
        let (a, c) = (open(&path("a")).1, open(&path("c")).1);
        for (name, tensor) in a.tensors() {
            assert!(tensor.bytes() != c.get(name).unwrap().bytes(), "{like}: {name} has no seed");
        }
    }
}

#[test]
fn a_checkpoint_opens_and_its_values_are_as_intended() {
    for (like, layers) in [("tiny", None), ("tiny-moe", Some(2)), ("1b", Some(1))] {
        let folder = tempfile::tempdir().unwrap();
        write(like, layers, 0, folder.path()).unwrap();
        let (config, weights) = open(folder.path());
        let shape = synth::shape(like).unwrap();
        assert_eq!(config, Config { layers: layers.unwrap_or(shape.layers), ..shape });

        for (name, tensor) in weights.tensors() {
            let values = tensor.to_f32();
            let (rows, columns) = tensor.matrix_shape();
            let count = values.len() as f64;
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let square = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
            let (middle, std) = match name {
                _ if name.ends_with("norm.weight") => (1.0, 0.1 / 3_f64.sqrt()),
                "model.embed_tokens.weight" => (0.0, 0.5),
                _ => (0.0, 1.0 / (columns as f64).sqrt()),
            };
            // NaN and infinity fail here. Five standard errors; a rounding of bf16 is 2^-8.
            let error = 5.0 * std / count.sqrt();
            assert!((mean - middle).abs() < error + middle / 256.0, "{like}: {name}: mean {mean}");
            let (found, error) = (square.sqrt() / std, 5.0 / count.sqrt() + 1.0 / 256.0);
            assert!((found - 1.0).abs() < error, "{like}: {name}: {found} of the intended std");
            let most = values.iter().map(|x| (f64::from(*x) - middle).abs()).fold(0.0, f64::max);
            assert!(most <= 1.02 * std * 3_f64.sqrt(), "{like}: {name}: outlier {most}");

            let mut starts: Vec<_> = values.chunks(columns).map(|row| row[..8].to_vec()).collect();
            starts.sort_by(|a, b| a.partial_cmp(b).unwrap());
            starts.dedup();
            assert_eq!(starts.len(), rows, "{like}: {name}: rows repeat");
        }
        let mut starts: Vec<_> = weights.tensors().map(|(_, t)| &t.bytes()[..16]).collect();
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), weights.tensors().count(), "{like}: tensors repeat");

        let tokenizer = Tokenizer::open(&folder.path().join("tokenizer.json"), &config).unwrap();
        assert_eq!(tokenizer.vocab(), config.vocab);
        assert_eq!(tokenizer.id("<unused0>"), Some(260));
        let text = "Grüße, 世界 \n";
        let ids = tokenizer.encode(text).unwrap();
        // <s>, a space mark in front, and the bytes, but a space mark in place of the two spaces.
        let bytes = text.bytes().map(|b| if b == b' ' { 259 } else { u32::from(b) + 3 });
        assert_eq!(ids, [1, 259].into_iter().chain(bytes).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn the_shapes_are_those_of_the_published_models() {
    let parameters = |like| synth::shape(like).unwrap().parameters();
    assert_eq!(parameters("gritlm-7b"), 7_241_732_096);
    assert_eq!(parameters("gritlm-8x7b"), 46_702_792_704);
    let (dense, mixture) =
        (synth::shape("gritlm-7b").unwrap(), synth::shape("gritlm-8x7b").unwrap());
    assert_eq!((dense.rope_theta, dense.window, dense.experts), (1e4, Some(4096), None));
    let experts = Some(Experts { count: 8, top_k: 2 });
    assert_eq!((mixture.rope_theta, mixture.window, mixture.experts), (1e6, None, experts));
    assert!(synth::SHAPES.iter().all(|like| synth::shape(like).is_some()));
}

#[test]
fn progress_and_report_agree_with_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut heard = Vec::new();
    let report = synth::write("tiny", None, 0, folder.path(), &mut |done, total| {
        heard.push((done, total));
        Ok(())
    });
    let report = report.unwrap();
    let (config, weights) = open(folder.path());
    assert_eq!(report.files, names(folder.path()).len());
    assert_eq!(report.parameters, config.parameters());
    assert_eq!(report.bytes, weights.bytes());
    assert!(heard.is_sorted() && heard.iter().all(|&(_, total)| total == report.bytes));
    assert_eq!(heard.last().unwrap().0, report.bytes);
}

#[test]
fn files_are_as_hugging_face_writes_them() {
    for (like, model) in [("tiny", "mistral"), ("tiny-moe", "mixtral")] {
        let folder = tempfile::tempdir().unwrap();
        write(like, Some(1), 0, folder.path()).unwrap();
        let file = fs::read(folder.path().join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
        assert_eq!(length % 8, 0);
        assert_eq!(header["__metadata__"], json!({ "format": "pt" }));
        assert_eq!(header["model.norm.weight"]["dtype"], "BF16");

        let config = fs::read(folder.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let class = model.replacen('m', "M", 1) + "ForCausalLM";
        assert_eq!(config["architectures"], json!([class]));
        assert_eq!(config["model_type"], model);
        assert_eq!(config["rms_norm_eps"], 1e-5);
        assert_eq!(config["eos_token_id"], 2);
        assert_eq!(config["torch_dtype"], "bfloat16");
        // A key that is missing would mean 4096 there.
        assert_eq!(config.get("sliding_window"), Some(&Value::Null));
        assert_eq!(config["num_local_experts"].is_null(), model == "mistral");
    }
}

#[test]
fn shards_hold_no_more_than_their_limit_and_the_same_values() {
    let config = synth::shape("tiny").unwrap();
    let whole = tempfile::tempdir().unwrap();
    write("tiny", None, 3, whole.path()).unwrap();
    let whole = open(whole.path()).1;
    for limit in [3_000_000, 1] {
        let folder = tempfile::tempdir().unwrap();
        synth::write_config(&config, 3, folder.path(), limit, &mut |_, _| Ok(())).unwrap();
        let shards = open(folder.path()).1;
        for (name, tensor) in whole.tensors() {
            assert!(tensor.bytes() == shards.get(name).unwrap().bytes(), "{name} differs");
        }
        let text = fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(index["metadata"]["total_size"], whole.bytes());

        let mut files = BTreeMap::<&str, Vec<usize>>::new();
        for (name, file) in index["weight_map"].as_object().unwrap() {
            let bytes = whole.get(name).unwrap().bytes().len();
            files.entry(file.as_str().unwrap()).or_default().push(bytes);
        }
        let count = files.len();
        for (i, (file, bytes)) in files.iter().enumerate() {
            assert_eq!(*file, format!("model-{:05}-of-{count:05}.safetensors", i + 1));
            let fits = bytes.iter().sum::<usize>() as u64 <= limit;
            assert!(fits || bytes.len() == 1, "{file} of {count} has {bytes:?}, limit {limit}");
        }
        let most = 2 * whole.bytes() / limit + 1;
        assert!(count > 1 && count as u64 <= most, "{count} files, limit {limit}");
    }
}

#[test]
fn what_exists_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), "mine").unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "mine, too").unwrap();
    for taken in [&folder, &file] {
        let error = write("tiny", None, 0, taken).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        let (text, path) = (error.to_string(), taken.display().to_string());
        assert!(text.contains("exists") && text.contains(&path), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
    assert_eq!(names(parent.path()), ["file", "model"]);
    assert_eq!(names(&folder), ["config.json"]);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"mine");
    assert_eq!(fs::read(&file).unwrap(), b"mine, too");
}

#[test]
fn nothing_half_written_is_left_behind() {
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("model");
    // Someone else takes the place while the files are being written.
    let mut sibling = Vec::new();
    let result = synth::write("tiny", None, 0, &output, &mut |_, _| {
        sibling = names(parent.path());
        let _ = fs::create_dir(&output);
        fs::write(output.join("theirs"), "").unwrap();
        Ok(())
    });
    assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    let partial = format!("model.partial-{}", std::process::id());
    assert!(sibling.contains(&partial), "{sibling:?}");
    assert_eq!(names(parent.path()), ["model"]);
    assert_eq!(names(&output), ["theirs"]);
    fs::remove_dir_all(&output).unwrap();

    let stopped = synth::write("tiny", None, 0, &output, &mut |_, _| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(names(parent.path()), [""; 0]);

    let stop = || synth::write("tiny", None, 0, &output, &mut |_, _| panic!("stopped by the test"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(stop)).is_err());
    assert_eq!(names(parent.path()), [""; 0]);

    let nowhere = parent.path().join("no/model");
    assert!(matches!(write("tiny", None, 0, &nowhere), Err(Error::Io { .. })));
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn an_empty_folder_and_a_trailing_slash_will_do() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("empty")).unwrap();
    for name in ["empty", "new/"] {
        write("tiny", Some(1), 0, &parent.path().join(name)).unwrap();
    }
    assert_eq!(names(parent.path()), ["empty", "new"]);
    for name in ["empty", "new"] {
        let files = ["config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(names(&parent.path().join(name)), files);
    }
}

#[test]
fn an_unknown_shape_gets_the_list_of_the_known() {
    let parent = tempfile::tempdir().unwrap();
    let error = write("gritlm-70b", None, 0, &parent.path().join("model")).unwrap_err();
    assert!(matches!(error, Error::Option { .. }), "{error:?}");
    for like in synth::SHAPES.iter().chain(&["gritlm-70b"]) {
        assert!(error.to_string().contains(like), "{error}");
    }
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn layers_that_no_model_has_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    for layers in [0, 1025] {
        let error = write("tiny", Some(layers), 0, &parent.path().join("model")).unwrap_err();
        assert!(matches!(error, Error::Option { option: "layers", .. }), "{error:?}");
        assert!(error.to_string().ends_with(&layers.to_string()), "{error}");
    }
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn a_shape_that_would_not_open_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let tiny = synth::shape("tiny").unwrap();
    let uneven = Config { kv_heads: 3, ..tiny.clone() };
    let small = Config { vocab: 259, ..tiny };
    for (config, word) in [(uneven, "num_key_value_heads"), (small, "vocab_size")] {
        let output = parent.path().join("model");
        let error =
            synth::write_config(&config, 0, &output, 1 << 30, &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Model(_)) && error.to_string().contains(word), "{error}");
    }
    assert_eq!(names(parent.path()), [""; 0]);
}
