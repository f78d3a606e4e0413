//! Training of adapters: their gradients are those of the merged model, and of the loss.

use crate::adapter::{Pairs, write};
use crate::cli::run;
use crate::support::{Reference, data, say};
use crate::train_golden::{Batch, batch};
use gritlm::model::adapter::{Adapter, adaptable, names};
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::AdamW;
use gritlm::model::reference::{self, relative_error};
use gritlm::model::weights::{Dtype, Tensor};
use gritlm::{Checkpoint, Device, Embed, Engine, Options};
use gritlm_train::{Adapt, Lora, Objective, Plan, Trainer};
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MODELS: [&str; 3] = ["mistral-tiny", "mistral-odd", "mixtral-tiny"];

/// A copy of a model whose weights are f32, so that merging an adapter rounds nothing.
pub(crate) fn in_f32(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(data(model).join(file), folder.path().join(file)).unwrap();
    }
    let base = Checkpoint::open(data(model).to_str().unwrap(), false).unwrap();
    let all: Vec<(String, Tensor)> = base
        .weights
        .tensors()
        .map(|(name, tensor)| (name.to_string(), tensor.to_dtype(Dtype::F32)))
        .collect();
    let views = all.iter().map(|(name, tensor)| {
        (name, TensorView::new(Stored::F32, tensor.shape().into(), tensor.bytes()).unwrap())
    });
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

fn open(folder: &Path, adapter: Option<&Path>) -> Checkpoint {
    let checkpoint = Checkpoint::open(folder.to_str().unwrap(), false).unwrap();
    checkpoint.with_adapter(adapter).unwrap()
}

fn adapt(rank: usize, targets: &[&str]) -> Adapt<'static> {
    let mut lora = Lora::new(rank).alpha(1.5 * rank as f64);
    if !targets.is_empty() {
        lora = lora.targets(targets.iter().map(ToString::to_string).collect());
    }
    Adapt { lora, seed: 3, base: "base" }
}

/// A trainer of an adapter that has taken two steps, so that B is not 0.
fn trained(
    base: &Checkpoint,
    adapt: &Adapt<'_>,
    chunk: usize,
    reference: &Reference,
) -> Trainer<Cpu> {
    let trainer = Trainer::lora(Cpu, base, Objective::default(), chunk, true, adapt).unwrap();
    let mut trainer = trainer.with_frequencies(reference.engine.frequencies());
    let Batch { queries, passages, answers } = batch(reference);
    for step in 1..=2 {
        trainer.gradients(&queries, &passages, &answers).unwrap();
        trainer.update(adamw(step)).unwrap();
    }
    trainer
}

fn adamw(step: u32) -> AdamW {
    AdamW {
        len: 0,
        step,
        rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        decay: 0.0,
        scale: 1.0,
    }
}

/// Both losses together, in the model with all weights trained.
fn loss(base: &Path, adapter: &Path, reference: &Reference) -> (f64, Trainer<Cpu>) {
    let merged = open(base, Some(adapter));
    let trainer = Trainer::new(Cpu, &merged, Objective::default(), 4096, true).unwrap();
    let mut trainer = trainer.with_frequencies(reference.engine.frequencies());
    let Batch { queries, passages, answers } = batch(reference);
    let losses = trainer.gradients(&queries, &passages, &answers).unwrap();
    (losses.rep.unwrap() + losses.generative.unwrap(), trainer)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn gradients_of_the_merged_model_and_of_the_loss() {
    for (model, targets) in [
        ("mistral-tiny", [].as_slice()),
        ("mistral-odd", &["v_proj", "o_proj", "gate_proj"]),
        ("mixtral-tiny", &["q_proj", "k_proj", "w1", "w2", "w3", "gate"]),
    ] {
        let (reference, folder) = (Reference::open(model), in_f32(model));
        let base = open(folder.path(), None);
        let (adapt, rank) = (adapt(3, targets), 3);
        let scale = f64::from(adapt.lora.scale());
        let mut trainer = trained(&base, &adapt, 4096, &reference);
        let Batch { queries, passages, answers } = batch(&reference);
        let losses = trainer.gradients(&queries, &passages, &answers).unwrap();
        let path = folder.path().join("adapter");
        trainer.save_adapter(&path).unwrap();

        // From the gradients of all weights of the merged model.
        let (whole, full) = loss(folder.path(), &path, &reference);
        let own = losses.rep.unwrap() + losses.generative.unwrap();
        assert!((own - whole).abs() < 1e-5 * whole, "{model}: {own} and {whole}");
        let adapter = Adapter::open(&path, &base.config).unwrap();
        let (mut worst, mut pairs, mut gradients) = (0.0f64, Pairs::new(), Pairs::new());
        for (name, [a, b]) in adapter.pairs() {
            let (dw, cols) = (full.gradient(name).unwrap(), a.shape()[1]);
            let ba = [b.to_f32(), a.to_f32()];
            assert!(norm(&ba[0]) > 0.0, "{name}: B is 0");
            let ones = vec![1.0f32; cols];
            let expected = reference::merge_backward(scale, &dw, [&ba[0], &ba[1]], &ones);
            let [a_name, b_name] = names(name);
            for (which, key, tensor) in [(1, a_name, a), (0, b_name, b)] {
                let found = trainer.gradient(&key).unwrap();
                let error = relative_error(&found, &expected[which]);
                assert!(error < 1e-4, "{model}: {key}: {error:.1e}");
                worst = worst.max(error);
                gradients.insert(key.clone(), (tensor.shape().into(), found));
                pairs.insert(key, (tensor.shape().into(), ba[which].clone()));
            }
        }
        say(&format!("gradients of adapters in {model}: largest error {worst:.1e}"));
        let count =
            adaptable(&base.config).iter().filter(|tensor| adapt.lora.has(&tensor.name)).count();
        assert_eq!((adapter.pairs().len(), adapter.lora().rank), (count, rank));
        assert!(trainer.gradient("model.norm.weight").is_err());

        // From the loss, along the gradients of A and those of B.
        for which in ["lora_A", "lora_B"] {
            let chosen = |name: &&String| name.contains(which);
            let length = gradients.keys().filter(chosen).map(|name| norm(&gradients[name].1));
            let length = length.map(|n| n * n).sum::<f64>().sqrt();
            let at = |step: f64| {
                let mut moved = pairs.clone();
                for (name, (_, values)) in moved.iter_mut().filter(|(name, _)| chosen(name)) {
                    for (value, slope) in values.iter_mut().zip(&gradients[name].1) {
                        *value += (step * f64::from(*slope) / length) as f32;
                    }
                }
                let other = folder.path().join("moved");
                let options = fs::read(path.join("adapter_config.json")).unwrap();
                write(&other, &serde_json::from_slice::<Value>(&options).unwrap(), &moved);
                loss(folder.path(), &other, &reference).0
            };
            // A smaller step crosses fewer changes of the chosen experts, where the loss jumps.
            let step = if model == "mixtral-tiny" { 0.001 } else { 0.01 } / length;
            let found = (at(step) - at(-step)) / (2.0 * step);
            let error = (found - length).abs() / length;
            say(&format!("slope along {which} in {model}: {found:.5}, {length:.5}"));
            assert!(error < 0.01, "{model}: {which}: slope {found}, gradient {length}");
        }
    }
}

/// However a batch is cut, whatever is kept, and twice.
#[test]
fn any_cut_gives_the_gradients_of_the_whole() {
    for model in MODELS {
        let (reference, folder) = (Reference::open(model), in_f32(model));
        let base = open(folder.path(), None);
        let adapt = Adapt { lora: adapt(2, &[]).lora.dropout(0.25), ..adapt(2, &[]) };
        let Batch { queries, passages, answers } = batch(&reference);
        let gradients = |chunk, keep_all| {
            let objective = Objective::default();
            let trainer = Trainer::lora(Cpu, &base, objective, chunk, keep_all, &adapt).unwrap();
            let mut trainer = trainer.with_frequencies(reference.engine.frequencies());
            let mut all = Vec::new();
            for step in 1..=2 {
                trainer.gradients(&queries, &passages, &answers).unwrap();
                if step == 1 {
                    // B's only: a difference of a bit in them moves AdamW's first step.
                    for tensor in adaptable(&base.config) {
                        all.extend(trainer.gradient(&names(&tensor.name)[1]).unwrap_or_default());
                    }
                    trainer.update(adamw(step)).unwrap();
                }
            }
            let norm = trainer.gradient_norm().unwrap();
            (all, norm)
        };
        let (whole, norm) = gradients(4096, true);
        assert!(norm.is_finite() && norm > 0.0);
        assert_eq!(gradients(4096, true), (whole.clone(), norm));
        for (chunk, keep_all) in [(4096, false), (40, true), (1, false)] {
            let (found, _) = gradients(chunk, keep_all);
            let error = relative_error(&found, &whole);
            assert!(error < 1e-5, "{model}, chunks of {chunk}: error {error:.1e}");
        }
    }
}

/// A new adapter changes nothing: B is 0. Dropout drops columns of A in steps, and none else.
#[test]
fn starts_and_dropout() {
    let (reference, folder) = (Reference::open("mistral-tiny"), in_f32("mistral-tiny"));
    let base = open(folder.path(), None);
    let Batch { queries, passages, answers } = batch(&reference);
    let trainer = |dropout: f64, seed: u64| {
        let adapt = Adapt { lora: adapt(2, &[]).lora.dropout(dropout), seed, base: "base" };
        trained(&base, &adapt, 4096, &reference)
    };
    let new = Trainer::lora(Cpu, &base, Objective::default(), 4096, true, &adapt(2, &[])).unwrap();
    let mut new = new.with_frequencies(reference.engine.frequencies());
    let full = Trainer::new(Cpu, &base, Objective::default(), 4096, true).unwrap();
    let mut full = full.with_frequencies(reference.engine.frequencies());
    let [a, b] = [new.embed(&queries).unwrap(), full.embed(&queries).unwrap()];
    assert!(relative_error(&a, &b) < 1e-6);
    let path = folder.path().join("new");
    new.save_adapter(&path).unwrap();
    let adapter = Adapter::open(&path, &base.config).unwrap();
    for [a, b] in adapter.pairs().values() {
        let (a, bound) = (a.to_f32(), 1.0 / (a.shape()[1] as f32).sqrt());
        assert!(b.to_f32().iter().all(|&b| b == 0.0));
        assert!(a.iter().all(|a| a.abs() <= bound));
        let deviation = norm(&a) / (a.len() as f64).sqrt() / f64::from(bound);
        assert!((deviation - 3f64.sqrt().recip()).abs() < 0.1, "{deviation}");
    }

    let mut dropped = trainer(0.25, 3);
    let before = dropped.loss(&answers).unwrap();
    let losses = dropped.gradients(&queries, &passages, &answers).unwrap();
    assert_eq!(dropped.loss(&answers).unwrap(), before);
    assert_ne!(losses.generative, before);
    dropped.save_adapter(&path).unwrap();
    // Vectors are those of the merged model: nothing is dropped.
    let merged = open(folder.path(), Some(&path));
    let merged = Trainer::new(Cpu, &merged, Objective::default(), 4096, true).unwrap();
    let mut merged = merged.with_frequencies(reference.engine.frequencies());
    let [a, b] = [dropped.embed(&queries).unwrap(), merged.embed(&queries).unwrap()];
    assert!(relative_error(&a, &b) < 1e-5);
    let adapter = Adapter::open(&path, &base.config).unwrap();
    let (mut gone, mut all, mut masked) = (0, 0, Pairs::new());
    for tensor in adaptable(&base.config) {
        let cols = tensor.shape[1];
        let da = dropped.gradient(&names(&tensor.name)[0]).unwrap();
        let zero = |c: &usize| (0..2).all(|r| da[r * cols + c] == 0.0);
        gone += (0..cols).filter(zero).count();
        all += cols;
        let [a, b] = &adapter.pairs()[&tensor.name];
        let [a_name, b_name] = names(&tensor.name);
        let kept = |(i, a): (usize, f32)| if zero(&(i % cols)) { 0.0 } else { a / 0.75 };
        let dropped = a.to_f32().into_iter().enumerate().map(kept).collect();
        masked.insert(a_name, (a.shape().into(), dropped));
        masked.insert(b_name, (b.shape().into(), b.to_f32()));
    }
    // The step has computed with the columns that are left.
    let options = fs::read(path.join("adapter_config.json")).unwrap();
    write(&path, &serde_json::from_slice(&options).unwrap(), &masked);
    let (whole, _) = loss(folder.path(), &path, &reference);
    let own = losses.rep.unwrap() + losses.generative.unwrap();
    assert!((own - whole).abs() < 1e-5 * whole, "{own} and {whole}");
    let share = gone as f64 / all as f64;
    assert!((share - 0.25).abs() < 0.05, "{share}");
    // Other columns in each step, other ones for each seed.
    let key = &names("model.layers.0.self_attn.q_proj.weight")[0];
    let zeros = |trainer: &mut Trainer<Cpu>| {
        trainer.gradient(key).unwrap().iter().map(|&g| g == 0.0).collect::<Vec<_>>()
    };
    let first = zeros(&mut dropped);
    dropped.update(adamw(3)).unwrap();
    dropped.gradients(&queries, &passages, &answers).unwrap();
    assert_ne!(zeros(&mut dropped), first);
    let mut other = trainer(0.25, 4);
    other.gradients(&queries, &passages, &answers).unwrap();
    assert_ne!(zeros(&mut other), first);
}

fn examples() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/train").display().to_string()
}

/// Trains the demo model on the examples, four steps if it is not stopped.
fn train(output: &Path, more: &[&str]) -> crate::cli::Ran {
    let (data, output) = (examples(), output.display().to_string());
    let args = ["train", "--data", &data, "--output", &output, "--batch", "2", "--device", "cpu"];
    let more = [
        &[
            "--generative-batch",
            "1",
            "--steps",
            "4",
            "--save-every",
            "1",
            "--warmup",
            "0",
            "--learning-rate",
            "0.01",
            "--seed",
            "5",
        ],
        more,
    ]
    .concat();
    run(&[args.as_slice(), &more].concat(), "")
}

fn bytes(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_run_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let lora = ["--lora", "4", "--lora-alpha", "8", "--lora-targets", "q_proj,v_proj,down_proj"];
    let ran = train(&path("out"), &lora);
    assert!(ran.stderr.contains("memory: "), "{}", ran.stderr);
    ran.ok();
    let (out, model) = (path("out"), Checkpoint::open("demo", false).unwrap());
    let adapter = Adapter::open(&out.join("adapter"), &model.config).unwrap();
    let lora_of = adapter.lora();
    assert_eq!((lora_of.rank, lora_of.scale()), (4, 2.0));
    assert_eq!(lora_of.targets, ["q_proj", "v_proj", "down_proj"]);
    assert_eq!(adapter.pairs().len(), 3 * model.config.layers);
    let text = String::from_utf8(bytes(out.join("adapter/adapter_config.json"))).unwrap();
    assert!(text.contains("\"base_model_name_or_path\": \"demo\""), "{text}");
    assert!(out.join("metrics.jsonl").exists() && !out.join("state-3").exists());

    // The checkpoint in the output, the adapter merged by the program, and merged while loading.
    let [adapter, merged, trained] =
        [out.join("adapter"), path("merged"), out.clone()].map(|path| path.display().to_string());
    run(&["merge", "demo", &merged, "--adapter", &adapter], "").ok();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert_eq!(bytes(path("merged").join(file)), bytes(out.join(file)), "{file}");
    }
    let engine = |model: &str, adapter: Option<&str>| {
        let options = Options::default().device(Device::Cpu).adapter(adapter.map(Into::into));
        let engine = Engine::open(model, &options).unwrap();
        engine.embed(&["a text"], &Embed::default()).unwrap()[0].vector.clone()
    };
    let found = engine(&trained, None);
    assert_eq!(found, engine("demo", Some(&adapter)));
    assert!(relative_error(&found, &engine("demo", None)) > 1e-3);

    // The same seed, the same bits; another seed, a part of the modules, dropout: others.
    let values = |name: &str, more: &[&str]| {
        let ran = train(&path(name), &[lora.as_slice(), more].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        bytes(path(name).join("adapter/adapter_model.safetensors"))
    };
    let first = bytes(out.join("adapter/adapter_model.safetensors"));
    assert_eq!(values("again", &[]), first);
    let dropped = values("dropped", &["--lora-dropout", "0.3"]);
    assert_ne!(dropped, first);

    // Cut after two steps, and then gone on with: the same bits, dropout included.
    let halves = path("halves");
    copy_state_of(&halves, &[lora.as_slice(), &["--lora-dropout", "0.3"]].concat());
    assert_eq!(values("halves", &["--lora-dropout", "0.3"]), dropped);
    for file in ["model.safetensors", "config.json"] {
        assert_eq!(bytes(path("dropped").join(file)), bytes(halves.join(file)), "{file}");
    }
}

/// Leaves in `output` what a run has there that was ended after its second step.
fn copy_state_of(output: &Path, more: &[&str]) {
    use gritlm_train::{Batching, Ended, Event, Next};
    let value = |flag: &str| {
        let at = more.iter().position(|arg| *arg == flag).unwrap();
        more[at + 1]
    };
    let lora = Lora::new(value("--lora").parse().unwrap())
        .alpha(value("--lora-alpha").parse().unwrap())
        .dropout(value("--lora-dropout").parse().unwrap())
        .targets(value("--lora-targets").split(',').map(String::from).collect());
    let options = gritlm_train::Options::default()
        .steps(Some(4))
        .batching(Batching::default().pairs(2).generative(1).seed(5))
        .warmup(0.0)
        .learning_rate(0.01)
        .save_every(1)
        .lora(Some(lora));
    let model = Checkpoint::open("demo", false).unwrap();
    let paths = [examples(), output.display().to_string()];
    let [data, output] = paths.each_ref().map(Path::new);
    let mut watch = |event: Event<'_>| match event {
        Event::Step(step) if step.step == 2 => Next::Stop,
        _ => Next::Go,
    };
    let ended = gritlm_train::train(Cpu, "demo", &model, [data, output], &options, &mut watch);
    assert_eq!(ended.unwrap(), Ended::Stopped(2));
    assert!(output.join("state-2/first/adapter_model.safetensors").exists());
}

#[test]
fn what_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let refused = |code: i32, more: &[&str], parts: &[&str]| {
        train(&folder.path().join("out"), more).fails(code, parts);
    };
    refused(2, &["--lora", "0"], &["--lora: expected a rank from 1 to ", "found 0"]);
    refused(2, &["--lora", "99999999"], &["--lora: expected a rank from 1 to "]);
    refused(2, &["--lora", "2", "--lora-alpha", "0"], &["--lora-alpha", "found 0"]);
    refused(2, &["--lora", "2", "--lora-dropout", "1"], &["--lora-dropout", "found 1"]);
    let targets = ["--lora", "2", "--lora-targets", "q_proj,c_attn"];
    refused(2, &targets, &["--lora-targets: expected some of q_proj, k_proj", "found c_attn"]);
    refused(2, &["--lora-alpha", "4"], &["--lora"]);
    // Quantised weights cannot be merged with what is learned.
    let file = path("demo.gguf");
    run(&["quantize", "demo", &file, "--to", "q8_0"], "").ok();
    let more = ["--model", file.as_str(), "--lora", "2"];
    refused(1, &more, &["demo.gguf", "quantised weights", "found Q8_0"]);
    // A new adapter beside another one.
    let config = Checkpoint::open("demo", false).unwrap().config;
    let pairs = crate::adapter::random(&config, 2, &["q_proj"], 1);
    write(&folder.path().join("adapter"), &crate::adapter::options(2, &["q_proj"]), &pairs);
    let adapter = path("adapter");
    refused(
        2,
        &["--lora", "2", "--adapter", &adapter],
        &["--adapter: expected none while an adapter is trained"],
    );
    // But all weights of the merged model can be trained.
    train(&folder.path().join("all"), &["--adapter", &adapter, "--save-type", "f32"]).ok();
    // The options of another run.
    train(&folder.path().join("run"), &["--lora", "2"]).ok();
    let other = train(&folder.path().join("run"), &["--lora", "3"]);
    other.fails(1, &["training.json", "lora", "\"rank\":2", "\"rank\":3"]);
}

/// What is trained of a 7B model takes far less than the model.
#[test]
fn the_plan_of_memory() {
    let config = gritlm::synth::config("gritlm-7b", None).unwrap();
    let full = Plan::new(&config, 1024, false, None);
    let base = 2 * config.parameters();
    let plan = full.with_lora(&config, &Lora::new(16), base);
    // 16 · (rows + columns) of all projections; a layer's matrices.
    let adapter = 4 * 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336));
    let layer = 4 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336);
    assert_eq!(plan.weights, base + layer + adapter);
    assert_eq!((plan.gradients, plan.moments), (layer + adapter, 2 * adapter));
    assert!(plan.total() < full.total() / 5, "{plan}");
    let one = full.with_lora(&config, &Lora::new(16).targets(vec!["v_proj".into()]), base);
    assert_eq!(one.gradients, 4 * (16 * 32 * (4096 + 1024) + 4096 * (4096 + 2 * 1024)));
}
