//! `gritlm inspect`, `devices` and `synth`.

use super::args::{Global, Inspect, Synth};
use super::output::{Out, Progress};
use crate::error::Result;
use gritlm::backend::wgpu_row_bytes;
use gritlm::{Checkpoint, synth as writer};
use gritlm_model::adapter::Adapter;
use gritlm_model::config::Config;
use gritlm_model::weights::{Dtype, Expected, Tensor, Weights};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn inspect(args: &Inspect, global: &Global, out: &mut Out) -> Result<()> {
    let checkpoint = Checkpoint::open(&global.model, true)?;
    let checkpoint = checkpoint.with_adapter(global.adapter.as_deref())?;
    let Checkpoint { config: c, tokenizer, weights, adapter, .. } = checkpoint;
    let generates = weights.has_head(&c);
    let missing = if generates { 0 } else { (c.vocab * c.dim) as u64 };
    let parameters = c.parameters() - missing;
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    for (_, tensor) in weights.tensors() {
        *dtypes.entry(tensor.dtype().to_string()).or_default() += tensor.stored().len() as u64;
    }
    let architecture = c.family.to_string();
    let stored = weights.bytes();
    let memory = memory(&c, &weights, global);
    let tensors = || weights.tensors().map(|(name, t)| (name, t.dtype().to_string(), t.shape()));

    if out.json() {
        let files: Vec<_> = weights
            .shards()
            .iter()
            .map(|(path, bytes)| json!({ "path": path, "bytes": bytes }))
            .collect();
        let memory: Vec<_> = memory
            .iter()
            .map(|one| {
                json!({ "device": one.device, "format": one.format, "weights_bytes": one.weights,
                        "kv_bytes_per_token": one.per_token })
            })
            .collect();
        let mut all = json!({
            "model": global.model, "architecture": architecture, "parameters": parameters,
            "generates": generates,
            "config": {
                "dim": c.dim, "layers": c.layers, "heads": c.heads, "kv_heads": c.kv_heads,
                "head_dim": c.head_dim, "hidden": c.hidden, "vocab": c.vocab,
                "rope_theta": c.rope_theta,
                "rope_scaling": c.rope_scaling.as_ref().map(ToString::to_string), "norm_eps": c.norm_eps, "window": c.window,
                "max_positions": c.max_positions, "bos": c.bos, "eos": c.eos, "tied": c.tied,
                "experts": c.experts.map(|e| e.count), "top_k": c.experts.map(|e| e.top_k),
            },
            "tokenizer": { "tokens": tokenizer.vocab() },
            "adapter": adapter.as_ref().map(describe),
            "dtypes": dtypes, "bytes": stored, "files": files, "memory": memory,
        });
        if args.tensors {
            all["tensors"] = tensors()
                .map(|(name, dtype, shape)| json!({ "name": name, "dtype": dtype, "shape": shape }))
                .collect();
        }
        return out.object(&all);
    }

    out.line(format!("{}: {architecture}, {} parameters", global.model, grouped(parameters)))?;
    out.line(format!(
        "  dim {}, layers {}, heads {} ({} key/value) of {}, hidden {}, vocab {}",
        c.dim, c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab
    ))?;
    if let Some(experts) = c.experts {
        out.line(format!("  experts {}, {} per token", experts.count, experts.top_k))?;
    }
    if !generates {
        out.line("  no lm_head: it can only embed")?;
    }
    if let Some(scaling) = &c.rope_scaling {
        out.line(format!("  rotary frequencies scaled: {scaling}"))?;
    }
    if let Some(adapter) = &adapter {
        let lora = adapter.lora();
        out.line(format!(
            "  adapter {}: LoRA of rank {}, scale {}, in {} matrices",
            adapter.path().display(),
            lora.rank,
            lora.scale(),
            adapter.pairs().len()
        ))?;
    }
    let window = c.window.map_or("none".into(), |w| format!("{w} tokens"));
    out.line(format!(
        "  positions {}, window {window}, rope theta {}, eps {}, tokenizer {} tokens",
        c.max_positions,
        c.rope_theta,
        c.norm_eps,
        tokenizer.vocab()
    ))?;
    let stored: Vec<String> =
        dtypes.iter().map(|(dtype, &bytes)| format!("{dtype} {}", gib(bytes))).collect();
    out.line(format!("  {} files, {}", weights.shards().len(), stored.join(", ")))?;
    out.line("Memory:")?;
    for Memory { device, format, weights, per_token } in memory {
        out.line(format!(
            "  {device:<5} {:>10} + {:>9} per 1000 tokens   ({format})",
            gib(weights),
            gib(1000 * per_token as u64)
        ))?;
    }
    if args.tensors {
        out.line("Tensors:")?;
        for (name, dtype, shape) in tensors() {
            out.line(format!("  {dtype:<6} {shape:?} {name}"))?;
        }
    }
    Ok(())
}

/// Returns what an adapter is.
fn describe(adapter: &Adapter) -> Value {
    let lora = adapter.lora();
    json!({
        "path": adapter.path(), "rank": lora.rank, "alpha": lora.alpha, "scale": lora.scale(),
        "target_modules": lora.targets, "matrices": adapter.pairs().len(),
    })
}

/// What a backend keeps in memory.
struct Memory {
    device: &'static str,
    format: String,
    /// Bytes of the weights.
    weights: u64,
    /// Bytes of keys and values per token.
    per_token: usize,
}

/// Returns what each backend that takes the model keeps in memory: the CPU computes on the mapped
/// file, unless weights are quantised while they are loaded; the GPU backends hold them as stored,
/// CUDA in bf16.
fn memory(config: &Config, weights: &Weights, global: &Global) -> Vec<Memory> {
    let kept = |name: &str, tensor: &Tensor| {
        let shaped = Expected { name: name.into(), shape: tensor.shape().into() };
        global.weights.and_then(|to| to.of(&shaped, config)).unwrap_or(tensor.dtype())
    };
    let tensors: Vec<(Dtype, (usize, usize))> =
        weights.tensors().map(|(name, t)| (kept(name, t), t.matrix_shape())).collect();
    let bytes = |of: &dyn Fn(Dtype, usize) -> u64| -> u64 {
        tensors.iter().map(|&(dtype, (rows, cols))| rows as u64 * of(dtype, cols)).sum()
    };
    let own = bytes(&|dtype, cols| dtype.bytes(cols) as u64);
    let all = tensors.iter().map(|&(dtype, _)| dtype).collect::<BTreeSet<_>>();
    let names = all.iter().map(|dtype| dtype.to_string().to_lowercase()).collect::<Vec<_>>();
    let names = names.join(", ");
    let cache = global.kv_type.unwrap_or(Dtype::F32);
    let place = if global.weights.is_some() { "weights in " } else { "mapped file, " };
    let row = |device, format, weights, dtype| Memory {
        device,
        format,
        weights,
        per_token: config.kv_bytes_per_token(dtype),
    };
    let lower = cache.to_string().to_lowercase();
    let mut rows = vec![row("cpu", format!("{place}{names}; {lower} cache"), own, cache)];
    if !all.iter().any(|dtype| dtype.is_quantized()) {
        let halves = bytes(&|_, cols| 2 * cols as u64);
        rows.push(row("cuda", "bf16 weights and cache".into(), halves, Dtype::Bf16));
    }
    let padded = bytes(&wgpu_row_bytes);
    rows.push(row("wgpu", format!("{names}; {lower} cache"), padded, cache));
    rows
}

pub(super) fn devices(out: &mut Out) -> Result<()> {
    for d in gritlm::devices() {
        if out.json() {
            out.object(&d)?;
        } else {
            let mark = if d.available { "yes" } else { "no" };
            out.line(format!("{:<6} {mark:<4} {}", d.device, d.description))?;
        }
    }
    Ok(())
}

pub(super) fn synth(args: &Synth, out: &mut Out) -> Result<()> {
    super::handle_interrupt();
    let mut progress = Progress::bytes("writing");
    let report =
        writer::write(&args.like, args.layers, args.seed, &args.output, &mut |done, total| {
            Ok(progress.of(done, total)?)
        })?;
    drop(progress);
    let folder = args.output.display().to_string();
    if out.json() {
        return out.object(&json!({
            "output": folder, "files": report.files, "bytes": report.bytes,
            "parameters": report.parameters,
        }));
    }
    out.line(format!(
        "{folder}: {} files, {}, {} parameters of random weights",
        report.files,
        gib(report.bytes),
        grouped(report.parameters)
    ))
}

/// Formats 7241732096 as "7,241,732,096".
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn gib(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
