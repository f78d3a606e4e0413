//! peer-candle: how fast candle runs a Mistral checkpoint on the CPU, for comparison with ours.
//!
//! `decode`: prefill a prompt, then greedy steps of one token with the KV cache; tokens per
//!           second of the median step.
//! `embed`:  sequences of equal length in batches, each with a fresh KV cache; tokens per second
//!           of the median repeat over all texts.
//!
//! Reads a folder in the published layout (config.json, model.safetensors or its shards), feeds
//! seeded random token ids, warms each operation up once, and writes JSON that
//! `gritlm bench --peer` takes:
//!
//!     RUSTFLAGS="-C target-cpu=native" cargo run --release -- --model DIR [--dtype f32|bf16]

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::mistral::{Config, Model};
use clap::Parser;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// candle allocates every result anew. glibc maps large ones afresh each time, at 16 bytes into a
/// page: page faults, and weights off the cache line. With mimalloc candle runs up to 1.6x faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// candle does not export its version; this repeats the exact pin in Cargo.toml.
const CANDLE_VERSION: &str = "0.11.1";

/// Measures candle on the CPU with a Mistral checkpoint.
#[derive(Parser)]
struct Args {
    /// Checkpoint folder: config.json and model.safetensors, or shards with their index
    #[arg(long)]
    model: PathBuf,
    /// Type that weights are converted to and activations are computed in
    #[arg(long, value_parser = ["f32", "bf16"], default_value = "f32")]
    dtype: String,
    /// embed: number of sequences
    #[arg(long, default_value = "64")]
    texts: NonZeroUsize,
    /// embed: tokens of each sequence
    #[arg(long, default_value = "128")]
    length: NonZeroUsize,
    /// embed: sequences of one forward pass
    #[arg(long, default_value = "8")]
    batch: NonZeroUsize,
    /// decode: tokens before the first step
    #[arg(long, default_value = "16")]
    prompt: NonZeroUsize,
    /// decode: timed steps
    #[arg(long, default_value = "32")]
    steps: NonZeroUsize,
    /// embed: timed passes over all sequences
    #[arg(long, default_value = "3")]
    repeats: NonZeroUsize,
    /// Write the JSON here instead of standard output
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // candle's own pool: without it every parallel operation enters the pool from outside, which
    // costs a hand-over to another thread each time.
    match Device::Cpu.with_context(|| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The first line only: where RUST_BACKTRACE is set, candle's messages go on with it.
            let message = format!("{error:#}");
            eprintln!("peer-candle: {}", message.lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let (texts, length) = (args.texts.get(), args.length.get());
    let (prompt, steps) = (args.prompt.get(), args.steps.get());
    let path = args.model.join("config.json");
    let config = read_config(&path).with_context(|| path.display().to_string())?;
    let longest = length.max(prompt + steps);
    let limit = config.max_position_embeddings;
    ensure!(longest <= limit, "{longest} tokens exceed the model's maximum of {limit} positions");
    let mut model = load(&args.model, &config, args.dtype.parse()?)?;

    let mut rng = StdRng::seed_from_u64(0);
    let mut random_ids = |rows: usize, columns: usize| {
        let ids = (0..rows * columns).map(|_| rng.random_range(0..config.vocab_size as u32));
        Tensor::from_vec(ids.collect(), (rows, columns), &Device::Cpu)
    };

    let ids = random_ids(1, prompt)?;
    decode(&mut model, &ids, 1)?;
    let decode_s = Spread::of(decode(&mut model, &ids, steps)?);

    let ids = random_ids(texts, length)?;
    let batch = args.batch.get().min(texts);
    let logits = embed(&mut model, &ids.narrow(0, 0, batch)?)?;
    let sum = logits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    ensure!(sum.is_finite(), "the model gives logits that are not finite");
    let mut passes = Vec::new();
    for _ in 0..args.repeats.get() {
        let start = Instant::now();
        for first in (0..texts).step_by(batch) {
            let rows = batch.min(texts - first);
            embed(&mut model, &ids.narrow(0, first, rows)?)?;
        }
        passes.push(start.elapsed().as_secs_f64());
    }
    let embed_s = Spread::of(passes);

    // Absolute, so that `.` has a name too.
    let folder = std::path::absolute(&args.model)?;
    let model = folder.file_name().unwrap_or_default().to_string_lossy();
    let row = |op: &str, shape: String, tokens: usize, seconds: &Spread| {
        json!({
            "peer": format!("candle {CANDLE_VERSION}, {}", args.dtype), "device": "cpu",
            "op": op, "shape": format!("{shape} of {model}"), "us": seconds.median * 1e6,
            "tokens_s": tokens as f64 / seconds.median,
            "min_us": seconds.min * 1e6, "max_us": seconds.max * 1e6,
            "threads": candle_core::utils::get_num_threads(),
        })
    };
    let report = json!([
        row("decode", format!("batch 1, context {prompt}"), 1, &decode_s),
        row("embed", format!("{texts} x {length} tokens"), texts * length, &embed_s),
    ]);
    write(&report, args.output.as_deref())
}

/// Prefills `ids`, then returns the seconds of each greedy step.
fn decode(model: &mut Model, ids: &Tensor, steps: usize) -> Result<Vec<f64>> {
    let prompt = ids.dim(1)?;
    let greedy = |logits: Tensor| logits.flatten_all()?.argmax(0)?.to_scalar::<u32>();
    model.clear_kv_cache();
    let mut token = greedy(model.forward(ids, 0)?)?;
    let mut seconds = Vec::with_capacity(steps);
    for position in prompt..prompt + steps {
        let start = Instant::now();
        let input = Tensor::new(&[[token]], &Device::Cpu)?;
        token = greedy(model.forward(&input, position)?)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// One pass over `ids` (rows, length), without a mask: GritLM embeds with bidirectional
/// attention, and candle saves the mask's addition. The public model returns no hidden states,
/// only the logits of the last position; `lm_head` on one row per sequence is negligible, and
/// about what pooling would cost.
fn embed(model: &mut Model, ids: &Tensor) -> Result<Tensor> {
    model.clear_kv_cache();
    let hidden = model.embed_tokens().forward(ids)?;
    Ok(model.forward_embeds(&hidden, None, 0)?)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path)?;
    Ok(serde_json::from_str(&text)?)
}

fn read_config(path: &Path) -> Result<Config> {
    let config = read_json(path)?;
    // Other families share Mistral's tensor names and would be measured as what they are not.
    let family = &config["model_type"];
    ensure!(family == "mistral", "model_type is {family}, not \"mistral\"");
    Ok(serde_json::from_value(config)?)
}

/// The weight files that an index names, each once.
fn read_index(path: &Path) -> Result<Vec<PathBuf>> {
    let index = read_json(path)?;
    let map = index["weight_map"].as_object().context("no weight_map")?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(files.into_iter().map(|file| path.with_file_name(file)).collect())
}

fn load(folder: &Path, config: &Config, dtype: DType) -> Result<Model> {
    let index = folder.join("model.safetensors.index.json");
    let files = if index.exists() {
        read_index(&index).with_context(|| index.display().to_string())?
    } else {
        vec![folder.join("model.safetensors")]
    };
    // SAFETY: the checkpoint must not change while it is mapped; we only read it.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu) };
    weights
        .and_then(|weights| Model::new(config, weights))
        .with_context(|| format!("loading {}", folder.display()))
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one value.
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len() - 1;
        let median = seconds[last / 2].midpoint(seconds[last.div_ceil(2)]);
        Self { median, min: seconds[0], max: seconds[last] }
    }
}

fn write(report: &Value, output: Option<&Path>) -> Result<()> {
    let Some(path) = output else {
        println!("{report}");
        return Ok(());
    };
    // Renamed into place, so that a reader never sees half a report.
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, format!("{report}\n"))
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("writing {}", path.display()))
}
