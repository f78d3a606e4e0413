//! Adapters in PEFT's format: merged while loading and on disk, the same bits; bad ones by name.

use crate::cli::run;
use crate::serve_clients::{evaluation, runs};
use crate::support::{close, data};
use crate::train_lora::in_f32;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::adapter::{Adapter, Lora, adaptable, names};
use gritlm::model::config::Config;
use gritlm::model::reference::{self, relative_error};
use gritlm::model::weights::Dtype;
use gritlm::{Checkpoint, Device, Embed, Engine, Options};
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The matrices of an adapter, by their names in PEFT's files.
pub(crate) type Pairs = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) fn config(model: &str) -> Config {
    Config::open(&data(model).join("config.json")).unwrap()
}

/// Returns random matrices for some modules, each entry a tenth or so.
pub(crate) fn random(config: &Config, rank: usize, targets: &[&str], seed: u64) -> Pairs {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pairs = Pairs::new();
    for tensor in adaptable(config) {
        let module = tensor.name.trim_end_matches(".weight");
        if !targets.iter().any(|target| module.ends_with(&format!(".{target}"))) {
            continue;
        }
        let [a, b] = names(&tensor.name);
        for (name, shape) in [(a, [rank, tensor.shape[1]]), (b, [tensor.shape[0], rank])] {
            let values = (0..shape[0] * shape[1]).map(|_| 0.2 * random.f32() - 0.1).collect();
            pairs.insert(name, (shape.into(), values));
        }
    }
    pairs
}

pub(crate) fn options(rank: usize, targets: &[&str]) -> Value {
    json!({ "peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank, "lora_dropout": 0.1,
        "target_modules": targets, "bias": "none", "use_rslora": false, "fan_in_fan_out": false,
        "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": false,
        "init_lora_weights": true, "inference_mode": true, "task_type": "CAUSAL_LM" })
}

pub(crate) fn write(folder: &Path, options: &Value, pairs: &Pairs) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), options.to_string()).unwrap();
    let views = pairs.iter().map(|(name, (shape, values))| {
        let view = TensorView::new(Stored::F32, shape.clone(), bytemuck::cast_slice(values));
        (name, view.unwrap())
    });
    serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
}

const ALL: [&str; 11] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "w1",
    "w2",
    "w3",
    "gate",
];

/// Whether a merged matrix is W + scale · B · A, rounded once to the format of W.
#[test]
fn merged_is_the_formula() {
    for (model, targets) in [
        ("mistral-tiny", ALL.as_slice()),
        ("mistral-odd", &["q_proj", "down_proj"]),
        ("mixtral-tiny", &ALL),
        ("mixtral-tiny", &["w2", "gate"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (config, rank) = (config(model), 3);
        let pairs = random(&config, rank, targets, 5);
        for rslora in [false, true] {
            let mut options = options(rank, targets);
            options["use_rslora"] = rslora.into();
            write(folder.path(), &options, &pairs);
            let scale = if rslora { 9.0 / 3f64.sqrt() } else { 3.0 };
            let base = Checkpoint::open(data(model).to_str().unwrap(), false).unwrap();
            let adapter = Adapter::open(folder.path(), &config).unwrap();
            assert_eq!(adapter.pairs().len(), pairs.len() / 2);
            for (name, tensor) in base.weights.tensors() {
                let [a, b] = names(name);
                let merged = adapter.merged(name, tensor, tensor.dtype());
                assert_eq!(merged.dtype(), tensor.dtype());
                let Some((_, a)) = pairs.get(&a) else {
                    assert_eq!(merged.bytes(), tensor.bytes(), "{name}");
                    continue;
                };
                let ba = [pairs[&b].1.as_slice(), a];
                let ones = vec![1.0; tensor.matrix_shape().1];
                let expected = reference::merge(scale, &tensor.to_f32(), ba, &ones);
                let exact = adapter.merged(name, tensor, Dtype::F32).to_f32();
                assert!(relative_error(&exact, &expected) < 1e-6, "{name}");
                let rounded = relative_error(&merged.to_f32(), &expected);
                assert!(rounded < 0.002, "{name}: {rounded:.1e}");
                assert_eq!(
                    merged.bytes(),
                    adapter.merged(name, tensor, Dtype::F32).to_dtype(tensor.dtype()).bytes()
                );
                assert!(relative_error(&tensor.to_f32(), &expected) > 0.01, "{name}: no change");
            }
        }
    }
}

/// The library itself computes with an adapter of ours what we do, and we what it does with its own.
#[test]
fn peft_and_gritlm_agree() {
    let Some(python) = evaluation("peft_and_gritlm_agree") else { return };
    let (base, output) = (in_f32("mistral-tiny"), tempfile::tempdir().unwrap());
    let (model, ours) = (config("mistral-tiny"), output.path().join("ours"));
    let targets = ["q_proj", "v_proj", "down_proj"];
    let mut options = options(3, &targets);
    options["base_model_name_or_path"] = base.path().to_str().unwrap().into();
    write(&ours, &options, &random(&model, 3, &targets, 9));
    let tokens = [1, 5, 9, 20, 33, 47, 60];
    let given =
        json!({ "base": base.path(), "adapter": ours, "tokens": tokens, "output": output.path() });
    runs(&python, "peft_adapter.py", &given);
    let found = fs::read(output.path().join("logits.json")).unwrap();
    let found: BTreeMap<String, Vec<f32>> = serde_json::from_slice(&found).unwrap();
    let logits = |adapter: Option<&str>| {
        let path = adapter.map(|name| output.path().join(name));
        let options = Options::default().device(Device::Cpu).adapter(path);
        let engine = Engine::open(base.path().to_str().unwrap(), &options).unwrap();
        let (mut cache, mask) = (engine.cache(), engine.generation_mask());
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want: Want::AllLogits };
        match engine.run(&mut [sequence]).unwrap().pop() {
            Some(Output::Logits(logits)) => logits,
            other => panic!("expected logits, found {other:?}"),
        }
    };
    let plain = logits(None);
    assert_eq!(found.len(), 4);
    for (name, expected) in &found {
        let here = logits(Some(name));
        close(&format!("logits with {name}"), &here, expected, 1e-5);
        assert!(relative_error(&plain, &here) > 1e-3, "{name} changes nothing");
    }
}

/// A name for all linear modules, a subset of layers, the names of a bare model, other formats.
#[test]
fn forms_of_an_adapter() {
    let (model, folder) = (config("mistral-tiny"), tempfile::tempdir().unwrap());
    let open = || Adapter::open(folder.path(), &model).unwrap();
    let pairs = random(&model, 2, &ALL, 1);
    let mut options = options(2, &[]);
    options["target_modules"] = "all-linear".into();
    write(folder.path(), &options, &pairs);
    let all = open();
    assert_eq!(all.pairs().len(), 7 * model.layers);
    let bare: Pairs = pairs
        .iter()
        .map(|(name, values)| (name.replacen("model.model.", "model.", 1), values.clone()))
        .collect();
    write(folder.path(), &options, &bare);
    assert_eq!(open().fingerprint(), all.fingerprint());
    options["layers_to_transform"] = json!([1]);
    let one: Pairs = pairs
        .iter()
        .filter(|(n, _)| n.contains("layers.1."))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    write(folder.path(), &options, &one);
    assert_eq!(open().pairs().len(), 7);
    // What this program writes it reads.
    let text = Lora::new(2).alpha(3.0).dropout(0.5).to_json("base", &model);
    let lora = Lora::parse(text.as_bytes(), Path::new("x")).unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.dropout, lora.targets.len()), (2, 3.0, 0.5, 7));
}

#[test]
fn merged_on_disk_and_at_load() {
    for model in ["mistral-tiny", "mixtral-tiny"] {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, merged) = (folder.path().join("adapter"), folder.path().join("merged"));
        write(&adapter, &options(2, &ALL), &random(&config(model), 2, &ALL, 7));
        let (path, adapter) = (data(model).display().to_string(), adapter.display().to_string());
        let out = merged.display().to_string();
        let line = run(&["merge", &path, &out, "--adapter", &adapter], "").ok();
        assert!(line.contains("tensors merged"), "{line}");
        assert!(!folder.path().join("merged.partial").exists());
        // Once more: it is there.
        run(&["merge", &path, &out, "--adapter", &adapter], "").fails(1, &["merged", "new folder"]);
        run(&["merge", &path, "other"], "").fails(2, &["--adapter", "nothing"]);

        let on_disk = Checkpoint::open(&out, false).unwrap();
        let at_load = Checkpoint::open(&path, false).unwrap();
        let at_load = at_load.with_adapter(Some(adapter.as_ref())).unwrap();
        assert_eq!(on_disk.config, at_load.config);
        for (name, tensor) in at_load.weights.tensors() {
            let other = on_disk.weights.get(name).unwrap();
            assert_eq!((other.dtype(), other.bytes()), (tensor.dtype(), tensor.bytes()), "{name}");
        }

        let device = Options::default().device(Device::Cpu);
        let open = |model: &str, adapter: Option<&str>| {
            Engine::open(model, &device.clone().adapter(adapter.map(Into::into))).unwrap()
        };
        let embed = |engine: &Engine| {
            engine.embed(&["some text of mine"], &Embed::default()).unwrap()[0].vector.clone()
        };
        let (base, loaded, disk) =
            (open(&path, None), open(&path, Some(&adapter)), open(&out, None));
        assert_eq!(embed(&loaded), embed(&disk));
        assert!(relative_error(&embed(&loaded), &embed(&base)) > 0.01);
        let prints = [&base, &loaded, &disk].map(Engine::fingerprint);
        assert!(prints[0] != prints[1] && prints[0] != prints[2]);

        // The program, command by command.
        let json = |args: &[&str]| {
            let args = [args, &["--device", "cpu", "--format", "json"]].concat();
            run(&args, "").ok()
        };
        for command in [
            vec!["embed", "a text"],
            vec!["generate", "--prompt", "a text", "--raw", "--max-tokens", "4"],
            vec!["similarity", "a text", "another"],
        ] {
            let with = |more: &[&str]| json(&[command.as_slice(), more].concat());
            let loaded = with(&["--model", &path, "--adapter", &adapter]);
            assert_eq!(loaded, with(&["--model", &out]), "{command:?}");
            assert_ne!(loaded, with(&["--model", &path]), "{command:?}");
        }
        let said: Value =
            serde_json::from_str(&json(&["inspect", "--model", &path, "--adapter", &adapter]))
                .unwrap();
        assert_eq!(said["adapter"]["rank"], 2);
        assert_eq!(said["adapter"]["scale"], 3.0);
        let said = run(&["inspect", "--model", &path, "--adapter", &adapter], "").ok();
        assert!(said.contains("LoRA of rank 2, scale 3, in "), "{said}");

        // Quantised while loading, or into a file: the merged weights.
        let file = folder.path().join("q.gguf").display().to_string();
        run(&["quantize", &path, &file, "--to", "q8_0", "--adapter", &adapter], "").ok();
        let quantised = device.clone().weights(Some("q8_0".parse().unwrap()));
        let quantised =
            Engine::open(&path, &quantised.adapter(Some(adapter.clone().into()))).unwrap();
        close("q8_0", &embed(&quantised), &embed(&open(&file, None)), 1e-6);
        // But an adapter cannot be merged into them.
        for args in [
            vec!["embed", "x", "--model", &file, "--adapter", &adapter],
            vec!["merge", &file, "other", "--adapter", &adapter],
        ] {
            run(&args, "").fails(1, &["q.gguf", "quantised weights", "found Q8_0"]);
        }
    }
}

/// A file of plain weights takes an adapter, whatever the order of its rows.
#[test]
fn into_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, adapter) = (data("mistral-tiny").display().to_string(), path("adapter"));
    write(Path::new(&adapter), &options(2, &ALL), &random(&config("mistral-tiny"), 2, &ALL, 9));
    run(&["quantize", &base, &path("bf16.gguf"), "--to", "bf16"], "").ok();
    run(&["merge", &path("bf16.gguf"), &path("merged"), "--adapter", &adapter], "").ok();
    let expected = Checkpoint::open(&base, false).unwrap();
    let expected = expected.with_adapter(Some(adapter.as_ref())).unwrap();
    let merged = Checkpoint::open(&path("merged"), false).unwrap();
    for (name, tensor) in expected.weights.tensors() {
        assert_eq!(merged.weights.get(name).unwrap().to_f32(), tensor.to_f32(), "{name}");
    }
    assert_eq!(merged.tokenizer.vocab(), expected.tokenizer.vocab());
}

#[test]
fn bad_adapters_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    let model = config("mistral-tiny");
    let (good, pairs) =
        (options(2, &["q_proj", "v_proj"]), random(&model, 2, &["q_proj", "v_proj"], 3));
    let refused = |parts: &[&str]| {
        let error = Adapter::open(&path, &model).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    refused(&["adapter_config.json", "No such file"]);
    write(&path, &good, &pairs);
    Adapter::open(&path, &model).unwrap();

    let field = |name: &str, value: Value, parts: &[&str]| {
        let mut options = good.clone();
        options[name] = value;
        write(&path, &options, &pairs);
        refused(&[&["adapter_config.json", name], parts].concat());
    };
    field("peft_type", "IA3".into(), &["expected \"LORA\", found \"IA3\""]);
    field("r", 0.into(), &["found 0"]);
    field("r", json!(2.5), &["found 2.5"]);
    field("lora_alpha", "16".into(), &["a finite number"]);
    field("bias", "all".into(), &["found \"all\""]);
    field("use_dora", true.into(), &["found true"]);
    field("fan_in_fan_out", true.into(), &["found true"]);
    field("modules_to_save", json!(["lm_head"]), &["found [\"lm_head\"]"]);
    field("rank_pattern", json!({ "q_proj": 4 }), &["found {\"q_proj\":4}"]);
    field("alpha_pattern", json!({ "q_proj": 4 }), &["q_proj"]);
    field("init_lora_weights", "pissa".into(), &["found \"pissa\""]);
    field("target_modules", "model\\.layers.*".into(), &["patterns are not supported"]);
    field("target_modules", json!([]), &["found []"]);
    field("target_modules", Value::Null, &["found nothing"]);
    field("target_modules", json!(["c_attn"]), &["some of q_proj, k_proj", "c_attn"]);
    field("layers_to_transform", json!("x"), &["numbers of layers"]);

    let file = |parts: &[&str], change: &dyn Fn(&mut Pairs)| {
        let mut pairs = pairs.clone();
        change(&mut pairs);
        write(&path, &good, &pairs);
        refused(&[&["adapter_model.safetensors"], parts].concat());
    };
    let [a, b] = names("model.layers.1.self_attn.v_proj.weight");
    file(&[&b, "found nothing"], &|pairs| drop(pairs.remove(&b)));
    file(&[&a, "found nothing"], &|pairs| drop(pairs.remove(&a)));
    file(&["z_proj", "a surplus tensor"], &|pairs| {
        pairs.insert(a.replace("v_proj", "z_proj"), pairs[&a].clone());
    });
    file(&["k_proj", "a surplus tensor"], &|pairs| {
        pairs.insert(a.replace("v_proj", "k_proj"), pairs[&a].clone());
    });
    file(&[&a, "finite", "found NaN"], &|pairs| pairs.get_mut(&a).unwrap().1[5] = f32::NAN);
    file(&[&b, "found inf"], &|pairs| pairs.get_mut(&b).unwrap().1[0] = f32::INFINITY);
    write(&path, &options(3, &["q_proj", "v_proj"]), &pairs);
    refused(&["lora_A", "expected [3, 128]", "found [2, 128]"]);
    // Of another model.
    write(&path, &good, &random(&config("mistral-odd"), 2, &["q_proj", "v_proj"], 3));
    refused(&["adapter_model.safetensors", "found ["]);
    // Cut, empty, not there, not JSON.
    write(&path, &good, &pairs);
    let whole = path.join("adapter_model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    fs::write(&whole, &bytes[..bytes.len() - 7]).unwrap();
    refused(&["adapter_model.safetensors", "cut off"]);
    fs::write(&whole, "").unwrap();
    refused(&["adapter_model.safetensors"]);
    fs::remove_file(&whole).unwrap();
    refused(&["adapter_model.safetensors", "No such file"]);
    fs::write(path.join("adapter_config.json"), "{").unwrap();
    refused(&["adapter_config.json", "not JSON"]);
    // As the program says it.
    let (model, adapter) = (data("mistral-tiny").display().to_string(), path.display().to_string());
    for args in [
        vec!["embed", "x", "--model", &model, "--adapter", &adapter],
        vec!["inspect", "--model", &model, "--adapter", &adapter],
        vec!["merge", &model, "nowhere", "--adapter", &adapter],
    ] {
        run(&args, "").fails(1, &["adapter_config.json", "not JSON"]);
    }
    assert!(!Path::new("nowhere").exists() && !Path::new("nowhere.partial").exists());
}

/// Any prefix and any changed byte of a file is an error or an adapter, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let (folder, model) = (tempfile::tempdir().unwrap(), config("mistral-tiny"));
    let path = folder.path();
    write(path, &options(1, &["k_proj"]), &random(&model, 1, &["k_proj"], 2));
    let mut random = fastrand::Rng::with_seed(1);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let whole = fs::read(path.join(name)).unwrap();
        for _ in 0..300 {
            let mut bytes = whole.clone();
            match random.bool() {
                true => bytes.truncate(random.usize(..whole.len())),
                false => bytes[random.usize(..whole.len().min(900))] = random.u8(..),
            }
            fs::write(path.join(name), bytes).unwrap();
            let _ = Adapter::open(path, &model);
        }
        fs::write(path.join(name), whole).unwrap();
    }
    Adapter::open(path, &model).unwrap();
}
