//! Training steps, and the same steps in PyTorch.
//!
//!     cargo bench --bench train -- --model M --data DIR --output DIR [--steps 100] [--batch 8]
//!         [--generative-batch 8] [--chunk-tokens 4096] [--recompute] [--peer FILE]
//!
//! Writes `OUTPUT/model`, the start in f32, and `OUTPUT/steps.jsonl`, a line a step with the token
//! ids of its batch, both losses, the norm of the gradient and the seconds it took. The script
//! `benches/peers/torch/train.py OUTPUT` takes the same steps and writes a file of the same form,
//! without ids; `--peer FILE` compares the curves of an earlier run here with it. Prints tokens per
//! second and the largest resident memory of the process.

use gritlm::Checkpoint;
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::AdamW;
use gritlm::model::weights::Dtype;
use gritlm_train::{
    Batches, Batching, Data, Encoder, Lengths, Objective, Text, Trainer, write_checkpoint,
};
use serde_json::{Value, json};
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(clap::Parser)]
struct Args {
    /// A checkpoint, as for `gritlm`
    #[arg(long, default_value = "demo")]
    model: String,
    /// A folder of training data, as for `gritlm train`
    #[arg(long, default_value = "examples/train")]
    data: PathBuf,
    /// A folder for the start and the steps
    #[arg(long)]
    output: PathBuf,
    #[arg(long, default_value_t = 100)]
    steps: usize,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 8)]
    generative_batch: usize,
    #[arg(long, default_value_t = 128)]
    max_len: usize,
    #[arg(long, default_value_t = 4096)]
    chunk_tokens: usize,
    /// Run layers again instead of keeping their activations
    #[arg(long)]
    recompute: bool,
    /// Steps of another program on those of an earlier run
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args: Args = clap::Parser::parse();
    let steps = args.output.join("steps.jsonl");
    if let Some(peer) = &args.peer {
        return compare(&read(&steps)?, &read(peer)?);
    }
    let checkpoint = Checkpoint::open(&args.model, true)?;
    let start = args.output.join("model");
    fs::create_dir_all(&start)?;
    let lengths = Lengths::default()
        .query_max_len(args.max_len)
        .passage_max_len(args.max_len)
        .generative_max_len(args.max_len);
    let encoder = Encoder::new(&checkpoint.tokenizer, &checkpoint.config, lengths)?;
    let data = Data::open(&args.data, &encoder, 2)?;
    let batching = Batching::default().pairs(args.batch).generative(args.generative_batch);
    let batches = Batches::new(&data, batching)?;
    let objective = Objective::default();
    let mut trainer =
        Trainer::new(Cpu, &checkpoint, objective, args.chunk_tokens, !args.recompute)?;
    write_checkpoint(&trainer, &checkpoint, Dtype::F32, &start)?;

    let mut file = File::create(&steps)?;
    let (mut tokens, mut seconds) = (0, 0.0);
    for step in 1..=args.steps {
        let batch = encoder.batch(&batches.batch(step - 1)?)?;
        let start = Instant::now();
        let losses = trainer.gradients(&batch.queries, &batch.passages, &batch.answers)?;
        let norm = trainer.gradient_norm()?;
        let rate = 2e-5 * (args.steps + 1 - step) as f64 / args.steps as f64;
        trainer.update(AdamW {
            len: 0,
            step: step as u32,
            rate: rate as f32,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            decay: 0.0,
            scale: (1.0 / norm.max(1.0)) as f32,
        })?;
        let took = start.elapsed().as_secs_f64();
        // The first step makes the buffers.
        if step > 1 {
            (tokens, seconds) = (tokens + losses.tokens, seconds + took);
        }
        let texts = |texts: &[Text]| -> Vec<Value> {
            texts.iter().map(|t| json!({ "tokens": t.tokens, "skip": t.skip })).collect()
        };
        let answers: Vec<Value> = batch
            .answers
            .iter()
            .map(|a| json!({ "tokens": a.tokens, "targets": a.targets }))
            .collect();
        let line = json!({
            "step": step, "loss_rep": losses.rep, "loss_gen": losses.generative,
            "gradient_norm": norm, "learning_rate": rate, "seconds": took,
            "tokens": losses.tokens, "queries": texts(&batch.queries),
            "passages": texts(&batch.passages), "answers": answers,
        });
        writeln!(file, "{line}")?;
    }
    println!("{:.0} tokens/s, {:.2} GB resident at most", tokens as f64 / seconds, resident()?);
    Ok(())
}

/// Returns the largest resident memory of this process in GB.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1024.0 / 1e9)
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Prints how far two curves are apart: the mean and the largest difference of each loss, relative
/// to its mean.
fn compare(ours: &[Value], theirs: &[Value]) -> Result<()> {
    for key in ["loss_rep", "loss_gen"] {
        let pairs: Vec<(f64, f64)> = ours
            .iter()
            .zip(theirs)
            .filter_map(|(a, b)| Some((a.get(key)?.as_f64()?, b.get(key)?.as_f64()?)))
            .collect();
        let mean = pairs.iter().map(|(a, _)| a).sum::<f64>() / pairs.len() as f64;
        let apart: Vec<f64> = pairs.iter().map(|(a, b)| (a - b).abs() / mean).collect();
        let largest = apart.iter().copied().fold(0.0, f64::max);
        let average = apart.iter().sum::<f64>() / apart.len() as f64;
        println!(
            "{key}: {} steps, apart by {average:.1e} on average, {largest:.1e} at most",
            pairs.len()
        );
    }
    Ok(())
}
