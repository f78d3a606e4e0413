//! `gritlm train`: what a run writes, how it resumes, what it refuses.

use crate::cli::{objects, run};
use crate::shaders::covered;
use crate::support::{data, long};
use gritlm::model::cpu::Cpu;
use gritlm::model::reference::relative_error;
use gritlm::model::weights::Dtype;
use gritlm::{Checkpoint, Device, Embed, Engine, Options, dot};
use gritlm_shaders::adapters;
use gritlm_train::{Batching, Ended, Event, Next, train};
use pollster::block_on;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const DATA: &str = "examples/train";

fn options() -> gritlm_train::Options {
    gritlm_train::Options::default()
        .steps(Some(6))
        .batching(Batching::default().pairs(3).generative(2).seed(5))
        .learning_rate(1e-3)
        .chunk_tokens(256)
}

/// Runs until the watcher stops it after `stop` steps, if it does.
fn train_until(
    output: &Path,
    options: &gritlm_train::Options,
    stop: Option<usize>,
) -> gritlm_train::Result<Ended> {
    let model = data("mistral-tiny").display().to_string();
    let checkpoint = Checkpoint::open(&model, false).unwrap();
    let mut done = 0;
    train(Cpu, &model, &checkpoint, [Path::new(DATA), output], options, &mut |event| {
        if let Event::Step(step) = event {
            done = step.step;
        }
        if Some(done) == stop { Next::Stop } else { Next::Go }
    })
}

/// Returns the lines of a run's metrics, without how long they took.
fn metrics(output: &Path) -> Vec<Value> {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let mut lines = objects(&text);
    for line in &mut lines {
        let speed = line.as_object_mut().unwrap().remove("tokens_per_second").unwrap();
        assert!(speed.as_f64().unwrap() > 0.0);
    }
    lines
}

fn weights(output: &Path) -> Vec<u8> {
    fs::read(output.join("model.safetensors")).unwrap()
}

/// Names of all entries, sorted.
fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_program_trains_a_model_that_loads() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let out = output.to_str().unwrap();
    let base = ["train", "--model", "demo", "--data", DATA, "--output", out, "--steps", "4"];
    let batch = ["--batch", "4", "--generative-batch", "4", "--seed", "1", "--dimensions", "64,32"];
    let rates = ["--learning-rate", "1e-4", "--temperature", "0.05", "--save-every", "2"];
    let args = [&base[..], &batch, &rates].concat();
    let evaluation = ["--eval-data", DATA, "--eval-every", "2", "--format", "json"];
    let ran = run(&[&args[..], &evaluation].concat(), "");
    let stderr = ran.stderr.clone();
    let found = objects(&ran.ok());
    let lines = metrics(&output);
    assert_eq!(lines.len(), 4);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], i as u64 + 1);
        for loss in ["loss_rep", "loss_gen", "gradient_norm"] {
            assert!(line[loss].as_f64().unwrap() > 0.0, "{line}");
        }
        assert_eq!(line.get("eval_recall_at_10").is_some(), i % 2 == 1, "{line}");
    }
    assert_eq!(found[0]["evaluation"]["eval_loss"], lines[3]["eval_loss"]);
    assert!(lines[3]["eval_loss"].as_f64() < lines[1]["eval_loss"].as_f64());
    assert!(stderr.contains("memory: ") && stderr.contains("step 4/4: loss_rep "), "{stderr}");
    let names = entries(&output);
    assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("state-")), "{names:?}");

    let options = Options::default().device(Device::Cpu);
    let trained = Engine::open(output.to_str().unwrap(), &options).unwrap();
    let demo = Engine::open("demo", &options).unwrap();
    let texts = ["chess for the desktop"];
    let vectors = [&trained, &demo].map(|engine| engine.embed(&texts, &Embed::default()).unwrap());
    assert_eq!(vectors[0][0].tokens, vectors[1][0].tokens);
    assert_ne!(vectors[0][0].vector, vectors[1][0].vector);

    // Again: it has ended, and says so without a step.
    let again = run(&args, "");
    let stderr = again.stderr.clone();
    again.ok();
    assert!(!stderr.contains("step "), "{stderr}");
    assert_eq!(metrics(&output).len(), 4);
}

/// What an evaluation tells is what the engine finds with the trained model.
#[test]
fn an_evaluation_is_what_the_engine_finds() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let options = options().evaluation(Some(DATA.into())).dtype(Dtype::F32);
    let Ended::Done { evaluation: Some(found) } = train_until(&output, &options, None).unwrap()
    else {
        panic!("expected an evaluation");
    };
    let engine = Options::default().device(Device::Cpu);
    let engine = Engine::open(output.to_str().unwrap(), &engine).unwrap();
    let vector = |of: &Value| {
        let (instruction, text) = match of {
            Value::Array(both) => (both[0].as_str().unwrap(), both[1].as_str().unwrap()),
            text => ("", text.as_str().unwrap()),
        };
        engine.embed(&[text], &Embed::with_instruction(instruction)).unwrap().remove(0).vector
    };
    let pairs = objects(&fs::read_to_string(format!("{DATA}/pairs.jsonl")).unwrap());
    // The first positive passages, and all negative ones.
    let firsts = pairs.iter().map(|line| &line["pos"][0]);
    let negatives = pairs.iter().flat_map(|line| line["neg"].as_array().unwrap());
    let mut passages: Vec<&Value> = Vec::new();
    for one in firsts.chain(negatives) {
        if !passages.contains(&one) {
            passages.push(one);
        }
    }
    let vectors: Vec<Vec<f32>> = passages.iter().map(|one| vector(one)).collect();
    let ranks: Vec<usize> = pairs
        .iter()
        .map(|line| {
            let query = vector(&line["query"]);
            let wanted = passages.iter().position(|one| *one == &line["pos"][0]).unwrap();
            let own = dot(&query, &vectors[wanted]);
            vectors.iter().filter(|other| dot(&query, other) > own).count()
        })
        .collect();
    // Some are found at once, and some are not found: otherwise the shares would say little.
    assert!(ranks.contains(&0) && ranks.iter().any(|&rank| rank >= 10), "{ranks:?}");
    let mean = |gain: &dyn Fn(usize) -> f64| {
        Some(ranks.iter().map(|&rank| gain(rank)).sum::<f64>() / ranks.len() as f64)
    };
    assert_eq!(found.recall_at_1, mean(&|rank| f64::from(u8::from(rank == 0))));
    assert_eq!(found.recall_at_10, mean(&|rank| f64::from(u8::from(rank <= 9))));
    let gain = |rank: usize| if rank <= 9 { ((rank + 2) as f64).log2().recip() } else { 0.0 };
    assert!((found.ndcg_at_10.unwrap() - mean(&gain).unwrap()).abs() < 1e-12);
    assert!(found.loss.unwrap() > 0.0);
}

/// Stopped and resumed at every step, a run takes the same steps to the last bit.
#[test]
fn a_resumed_run_has_the_bits_of_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    assert!(matches!(train_until(&whole, &options(), None).unwrap(), Ended::Done { .. }));
    for every in [1, 4] {
        let cut = folder.path().join(format!("cut-{every}"));
        let options = options().save_every(every);
        for stop in [1, 2, 5] {
            assert_eq!(train_until(&cut, &options, Some(stop)).unwrap(), Ended::Stopped(stop));
        }
        // What a run that was killed leaves: a state that is not whole, and lines of steps after
        // the last whole one.
        fs::create_dir_all(cut.join("state-6.partial/weights")).unwrap();
        let mut text = fs::read_to_string(cut.join("metrics.jsonl")).unwrap();
        text += "{\"step\": 6, \"tokens_per_second\": 1.0}\n{\"st";
        fs::write(cut.join("metrics.jsonl"), text).unwrap();
        assert!(matches!(train_until(&cut, &options, None).unwrap(), Ended::Done { .. }));
        assert_eq!(metrics(&cut), metrics(&whole));
        assert!(weights(&cut) == weights(&whole), "other weights");
        assert!(!cut.join("state-6.partial").exists());
    }
}

fn program(output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    let model = data("mistral-tiny").display().to_string();
    let output = output.to_str().unwrap();
    command.args(["train", "--model", &model, "--data", DATA, "--output", output]);
    command.args(["--steps", "12", "--batch", "3", "--generative-batch", "2", "--save-every", "1"]);
    command.args(["--chunk-tokens", "256"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Killed at random moments, a run goes on from its last whole state and ends with the bits of one
/// that was left alone.
#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let start = std::time::Instant::now();
    assert!(program(&whole).status().unwrap().success());
    let took = start.elapsed();
    let mut random = fastrand::Rng::with_seed(17);
    for _ in 0..if long() { 20 } else { 5 } {
        let mut child = program(&cut).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(took.as_secs_f64() * random.f64()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(program(&cut).status().unwrap().success());
    assert_eq!(metrics(&cut), metrics(&whole));
    assert!(weights(&cut) == weights(&whole), "other weights");
}

/// Files that may not grow beyond a size are a disk that is full there.
#[test]
#[cfg(unix)]
fn a_full_disk_keeps_what_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    assert!(program(&whole).status().unwrap().success());
    let run = |output: &Path, blocks: u32| {
        let program = program(output);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]);
        shell.arg(program.get_program()).args(program.get_args());
        let output = shell.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let error = stderr.lines().find(|line| line.starts_with("error: ")).map(str::to_string);
        (output.status.code(), error)
    };
    // Weights in f32 take 2.7 MB.
    let (code, error) = run(&cut, 1000);
    assert_eq!(code, Some(1));
    let error = error.unwrap();
    assert!(error.contains("model.safetensors: "), "{error}");
    assert!(!entries(&cut).iter().any(|name| name.starts_with("state-")), "{:?}", entries(&cut));
    assert_eq!(run(&cut, 1_000_000), (Some(0), None));
    assert_eq!(metrics(&cut), metrics(&whole));
    assert!(weights(&cut) == weights(&whole), "other weights");
}

#[test]
fn runs_that_cannot_be_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out").display().to_string();
    let base = ["train", "--model", "demo", "--data", DATA, "--output", &output, "--batch", "4"];
    let with = |more: &[&str]| -> Vec<String> {
        base.iter().chain(more).map(ToString::to_string).collect()
    };
    for (more, parts) in [
        (vec!["--steps", "0"], vec!["--steps: expected 1 or more, found 0"]),
        (vec!["--learning-rate", "0"], vec!["--learning-rate: expected a number above 0"]),
        (vec!["--temperature", "0"], vec!["--temperature: expected a number above 0"]),
        (vec!["--max-spike=-1"], vec!["--max-spike: expected a number from 0 on"]),
        (vec!["--warmup", "2"], vec!["--warmup: expected a share from 0 to 1"]),
        (vec!["--dimensions", "500"], vec!["--dimensions: expected 1 to 192, found 500"]),
        (vec!["--chunk-tokens", "0"], vec!["--chunk-tokens: expected 1 or more tokens"]),
    ] {
        run(&with(&more), "").fails(2, &parts);
        assert!(!Path::new(&output).exists());
    }
    let device = with(&["--device", "cuda"]);
    run(&device, "").fails(1, &["device cuda:0: there are no CUDA kernels for training yet"]);
    let memory = with(&["--chunk-tokens", "1000000000"]);
    run(&memory, "").fails(1, &["it does not fit; with --chunk-tokens "]);

    // A folder of something else, and one of another run.
    fs::create_dir(&output).unwrap();
    fs::write(PathBuf::from(&output).join("notes.txt"), "mine").unwrap();
    run(&with(&[]), "").fails(1, &["expected an empty folder", "notes.txt"]);
    fs::remove_file(PathBuf::from(&output).join("notes.txt")).unwrap();
    run(&with(&["--steps", "1"]), "").ok();
    let other = with(&["--steps", "1", "--learning-rate", "1e-3"]);
    run(&other, "")
        .fails(1, &["training.json: the run that began here has learning_rate 0.00002", "0.001"]);
    fs::write(PathBuf::from(&output).join("training.json"), "{").unwrap();
    run(&with(&["--steps", "1"]), "").fails(1, &["training.json: expected the options of a run"]);
}

/// A damaged state names its file; it is not trained from.
#[test]
fn a_damaged_state_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    train_until(&output, &options(), Some(2)).unwrap();
    let file = output.join("state-2/first/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 7]).unwrap();
    let error = train_until(&output, &options(), None).unwrap_err().to_string();
    assert!(error.contains("first/model.safetensors") && error.contains("cut off"), "{error}");
    fs::write(&file, bytes).unwrap();
    assert!(matches!(train_until(&output, &options(), None).unwrap(), Ended::Done { .. }));
}

/// A loss that is not a number stops the run and names the samples; the state before it stays.
#[test]
fn numbers_that_are_not_finite_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let options = options().learning_rate(1e30).warmup(0.0).save_every(1);
    let error = train_until(&output, &options, None).unwrap_err().to_string();
    for part in ["of step ", "examples/train/pairs.jsonl:", "expected a finite number"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!output.join("model.safetensors").exists());
}

/// A gradient that is too long for those before it stops the run, names the samples, and counts the
/// steps before the run was resumed; the run may go on with another limit, and has its usual bits.
#[test]
fn a_spike_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let options = options().steps(Some(20)).save_every(1);
    train_until(&whole, &options, None).unwrap();
    // A limit below 1 takes every gradient for too long, once there are enough to compare with.
    let strict = options.clone().max_spike(0.001);
    for _ in 0..2 {
        let error = train_until(&cut, &strict, None).unwrap_err().to_string();
        let parts =
            ["gradient_norm of step 17 (", "examples/train/pairs.jsonl:", "`max_spike` says"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    train_until(&cut, &options, Some(18)).unwrap();
    let error = train_until(&cut, &strict, None).unwrap_err().to_string();
    assert!(error.contains("gradient_norm of step 19 ("), "{error}");
    train_until(&cut, &options, None).unwrap();
    assert_eq!(metrics(&cut), metrics(&whole));
    assert!(weights(&cut) == weights(&whole), "other weights");
}

/// The nearest passages that are not the query's own, and that are far enough.
#[test]
fn hard_negatives_are_near_and_not_too_near() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hard.jsonl").display().to_string();
    let pairs = format!("{DATA}/pairs.jsonl");
    let args = ["mine", "--model", "demo", "--data", &pairs, "--output", &file, "--negatives", "2"];
    let ran = run(&args, "").ok();
    let before = objects(&fs::read_to_string(&pairs).unwrap());
    assert!(ran.contains(&format!("{} pairs", before.len())), "{ran}");
    let mined = objects(&fs::read_to_string(&file).unwrap());
    assert_eq!(mined.len(), before.len());

    let engine = Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap();
    let vector = |of: &Value| {
        let (instruction, text) = match of {
            Value::Array(both) => (both[0].as_str().unwrap(), both[1].as_str().unwrap()),
            text => ("", text.as_str().unwrap()),
        };
        engine.embed(&[text], &Embed::with_instruction(instruction)).unwrap().remove(0).vector
    };
    let all: Vec<&Value> = before
        .iter()
        .flat_map(|line| ["pos", "neg"].map(|key| line[key].as_array().unwrap()))
        .flatten()
        .collect();
    let vectors: Vec<Vec<f32>> = all.iter().map(|one| vector(one)).collect();
    for (line, was) in mined.iter().zip(&before).take(5) {
        assert_eq!((&line["query"], &line["pos"]), (&was["query"], &was["pos"]));
        let negatives = line["neg"].as_array().unwrap();
        let positives = line["pos"].as_array().unwrap();
        assert_eq!(negatives.len(), 2);
        let query = vector(&line["query"]);
        let score = |of: &Value| gritlm::dot(&query, &vector(of));
        let best = positives.iter().map(score).fold(f32::MIN, f32::max);
        let (first, second) = (score(&negatives[0]), score(&negatives[1]));
        assert!(first >= second && first <= 0.95 * best + 1e-4, "{first} {second} {best}");
        // None that is nearer than the second one was allowed to be left out.
        let between = all.iter().zip(&vectors).filter(|(one, vector)| {
            let score = gritlm::dot(&query, vector);
            !positives.contains(one)
                && !negatives.contains(one)
                && score > second + 1e-4
                && score < 0.95 * best - 1e-4
        });
        assert_eq!(between.count(), 0);
    }
    let conversations = format!("{DATA}/conversations.jsonl");
    let args = ["mine", "--model", "demo", "--data", &conversations, "--output", &file];
    run(&args, "").fails(1, &["hard.jsonl: expected pairs to mine for"]);
}

/// From a config alone: the tokenizer comes from the data, and runs of one seed have the same bits.
#[test]
fn a_model_from_scratch() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("small.json");
    let fields = |vocab: usize, bos: usize| {
        format!(
            r#"{{"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
            "vocab_size": {vocab}, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
            "bos_token_id": {bos}, "eos_token_id": 2, "rope_theta": 10000.0,
            "sliding_window": null, "tie_word_embeddings": true, "hidden_act": "silu"}}"#
        )
    };
    fs::write(&config, fields(512, 1)).unwrap();
    let train = |name: &str, seed: &str| {
        let output = folder.path().join(name);
        let (config, out) = (config.to_str().unwrap(), output.to_str().unwrap());
        let args = ["train", "--config", config, "--data", DATA, "--output", out, "--seed", seed];
        let more = ["--steps", "20", "--batch", "4", "--generative-batch", "4"];
        let more = more.iter().chain(&["--learning-rate", "3e-3", "--save-type", "f32"]);
        let args: Vec<&str> = args.iter().chain(more).copied().collect();
        (run(&args, ""), output)
    };
    let start = gritlm_train::scratch(&config, Path::new(DATA), 0).unwrap();
    // Four projections add to the residual stream of two layers: theirs are half as large.
    for (name, expected) in
        [("self_attn.q_proj", 0.02), ("self_attn.o_proj", 0.01), ("mlp.down_proj", 0.01)]
    {
        let values = start.weights.get(&format!("model.layers.1.{name}.weight")).unwrap().to_f32();
        let squares: f32 = values.iter().map(|v| v * v).sum();
        let deviation = (squares / values.len() as f32).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.1, "{name}: {deviation}");
    }
    let (ran, first) = train("first", "0");
    ran.ok();
    let lines = metrics(&first);
    // Of 512 tokens any is as likely as another, at first.
    let start = lines[0]["loss_gen"].as_f64().unwrap();
    assert!((start - 512f64.ln()).abs() < 0.1, "{start}");
    assert!(lines[19]["loss_gen"].as_f64().unwrap() < start - 0.25, "{lines:?}");
    let trained = Engine::open(first.to_str().unwrap(), &Options::default()).unwrap();
    let text = "a graphical front end, für 漢字 🙂";
    let ids = trained.tokenizer().encode_continued(text).unwrap();
    assert_eq!(trained.tokenizer().decode(&ids).unwrap(), text);
    assert!(ids.len() < text.len() - 5, "nothing was learned: {} tokens", ids.len());
    assert_eq!(trained.config().vocab, 512);
    let (ran, again) = train("again", "0");
    ran.ok();
    assert!(weights(&again) == weights(&first), "other weights");
    assert_ne!(weights(&train("other", "1").1), weights(&first));

    fs::write(&config, fields(200, 1)).unwrap();
    train("few", "0").0.fails(1, &["small.json", "vocab_size"]);
    fs::write(&config, fields(512, 7)).unwrap();
    train("bos", "0").0.fails(1, &["small.json: expected bos_token_id 1", "found 7 and 2"]);
}

/// On a GPU the same steps have the CPU's losses, and the trained model loads.
#[test]
fn on_the_first_adapter() {
    let Some(adapter) = block_on(adapters()).into_iter().find(|a| a.lacks.is_none()) else {
        return covered("train_run::on_the_first_adapter", &[]);
    };
    let folder = tempfile::tempdir().unwrap();
    let model = data("mistral-odd").display().to_string();
    let train = |name: &str, device: &str| {
        let output = folder.path().join(name);
        let out = output.to_str().unwrap();
        let args = ["train", "--model", &model, "--data", DATA, "--output", out];
        let more =
            ["--steps", "3", "--batch", "2", "--generative-batch", "2", "--save-type", "f32"];
        let last = ["--chunk-tokens", "512", "--device", device];
        run(&[&args[..], &more, &last].concat(), "").ok();
        output
    };
    let here = train("cpu", "cpu");
    let there = train("gpu", &format!("wgpu:{}", adapter.label()));
    for (a, b) in metrics(&here).iter().zip(metrics(&there)) {
        for loss in ["loss_rep", "loss_gen", "gradient_norm"] {
            let (a, b) = (a[loss].as_f64().unwrap(), b[loss].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4 * a, "{loss}: {a} on the CPU, {b} on {}", adapter.label());
        }
    }
    let values = |output: &Path| {
        let bytes = weights(output);
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = all.names();
        names.sort();
        let values = names.iter().flat_map(|name| all.tensor(name).unwrap().data().to_vec());
        let values: Vec<u8> = values.collect();
        values.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<f32>>()
    };
    let error = relative_error(&values(&there), &values(&here));
    assert!(error < 1e-4, "weights are apart by {error:.1e}");
    Engine::open(there.to_str().unwrap(), &Options::default()).unwrap();
}
