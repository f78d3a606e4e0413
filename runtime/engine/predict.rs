//! Predicts what the CUDA kernels of a model's steps would take on a GPU that is not there.
//!
//! A model with random weights runs on a planned device; see `gritlm_kernels::plan`. Each launch that
//! it asks for is predicted from the compiled kernel. Every figure is a prediction.

use crate::batch::{Sequence, Want};
use crate::{Attn, Engine, Options, Result};
use gritlm_kernels::Cuda;
use gritlm_kernels::plan::Planned;
pub use gritlm_kernels::plan::Predictor;
use gritlm_model::ops::{Mask, SampleParams};
use serde::Serialize;
use std::collections::HashMap;

/// What bounds a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A matrix product on the tensor cores.
    Product,
    /// Attention of many queries.
    Attention,
    /// What moves bytes and computes little.
    Memory,
    /// All launches of a decode step.
    Step,
}

/// A kernel at a number of rows, or a decode step.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// File stem of the kernel, or `decode step`.
    pub kernel: String,
    /// The rest of the entry point's name.
    pub variant: String,
    /// Rows of the batch.
    pub rows: usize,
    /// Launches like this one in a step.
    pub launches: usize,
    /// Blocks of a launch.
    pub blocks: u64,
    /// Blocks on a multiprocessor at a time.
    pub resident: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread spills.
    pub spills: u32,
    /// What bounds it.
    pub class: Class,
    /// Bytes that a launch has to move at least.
    pub bytes: u64,
    /// Operations of a launch.
    pub flops: u64,
    /// Instructions of an iteration of the main loop by a warp.
    pub loop_instructions: u32,
    /// Cycles of an iteration by all resident blocks; 0 where it is too short to tell.
    pub loop_cycles: f64,
    /// Time of a launch, in microseconds.
    pub predicted_us: f64,
    /// What it is compared with.
    pub limit: String,
    /// Its share of the limit.
    pub predicted_share: f64,
    /// Architecture that the kernel was compiled for.
    pub arch: String,
    /// Version of NVRTC that compiled it.
    pub compiler: String,
}

/// Sequences of a decode step, and the tokens before it in each.
const DECODE: [usize; 6] = [1, 4, 8, 16, 32, 128];
const CONTEXT: usize = 512;

/// Tokens of a sequence that is read at once.
const PREFILL: [usize; 4] = [128, 512, 2048, 4096];

/// Predicts decode steps and prefills of a model of this shape; of a predictor that has not all
/// kernels, their launches only. Launches whose kernel the model does not know have no row.
///
/// # Errors
/// When the shape is unknown.
pub fn predict(predictor: &Predictor, like: &str) -> Result<Vec<Row>> {
    let (ops, plan) = Cuda::planned(predictor.arch())?;
    let longest = PREFILL[PREFILL.len() - 1];
    let kv_tokens = DECODE[DECODE.len() - 1] * (CONTEXT + 128) + longest + 128;
    let options = Options::default().kv_tokens(kv_tokens);
    let engine = Engine::random_on(ops, like, None, &options)?;
    let planned = || {
        let mut plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut *plan)
    };
    let run = |sequences: usize, past: usize, tokens: usize, mask: Mask| -> Result<Vec<Planned>> {
        let ids = vec![1; past.max(tokens)];
        let mut caches: Vec<_> = (0..sequences).map(|_| engine.cache()).collect();
        for cache in caches.iter_mut().filter(|_| past > 0) {
            let tokens = &ids[..past];
            engine.run(&mut [Sequence { tokens, cache, mask, want: Want::Nothing }])?;
        }
        let step = |cache| {
            let want = if past > 0 { Want::Token(SampleParams::greedy()) } else { Want::Nothing };
            Sequence { tokens: &ids[..tokens], cache, mask, want }
        };
        planned();
        engine.run(&mut caches.iter_mut().map(step).collect::<Vec<_>>())?;
        Ok(planned())
    };

    let (major, minor) = predictor.compiler();
    let compiler = format!("{major}.{minor}");
    let mut all = Rows { predictor, compiler, known: HashMap::new(), rows: Vec::new() };
    for sequences in DECODE {
        let step = run(sequences, CONTEXT, 1, engine.generation_mask())?;
        all.add(sequences, &step, true)?;
    }
    for tokens in PREFILL {
        all.add(tokens, &run(1, 0, tokens, engine.generation_mask())?, false)?;
    }
    // Only attention differs.
    let mut both = run(1, 0, longest, engine.embedding_mask(Attn::Bbcc))?;
    both.retain(|launch| launch.source == "attention");
    all.add(longest, &both, false)?;
    Ok(all.rows)
}

fn copy_limit(rate: f64) -> String {
    format!("copy {:.1} TB/s", rate / 1e12)
}

fn rate_limit(by: &str, rate: f64) -> String {
    format!("{by} {:.0} TFLOP/s", rate / 1e12)
}

struct Rows<'a> {
    predictor: &'a Predictor,
    compiler: String,
    /// Rows by what is launched: the forward pass launches the same in each layer.
    known: HashMap<(String, u64, u64, u64), Row>,
    rows: Vec<Row>,
}

impl Rows<'_> {
    /// Adds a step's launches, one row for those that are alike, and one for all together.
    fn add(&mut self, rows: usize, step: &[Planned], decodes: bool) -> Result<()> {
        let first = self.rows.len();
        let mut whole = Row {
            kernel: "decode step".into(),
            variant: format!("context {CONTEXT}"),
            rows,
            launches: step.len(),
            blocks: 0,
            resident: 0,
            registers: 0,
            spills: 0,
            class: Class::Step,
            bytes: 0,
            flops: 0,
            loop_instructions: 0,
            loop_cycles: 0.0,
            predicted_us: 0.0,
            limit: String::new(),
            predicted_share: 0.0,
            arch: self.predictor.arch().into(),
            compiler: self.compiler.clone(),
        };
        for launch in step.iter().filter(|launch| self.predictor.has(launch)) {
            let key = (launch.entry.to_string(), launch.blocks, launch.bytes, launch.flops);
            let row = match self.known.get(&key) {
                Some(row) => row.clone(),
                None => self.row(launch)?,
            };
            self.known.insert(key, row.clone());
            if row.predicted_us.is_infinite() {
                // Attention on Hopper, which the model does not know yet, is no part of a decode step.
                continue;
            }
            whole.bytes += row.bytes;
            whole.flops += row.flops;
            whole.predicted_us += row.predicted_us;
            let same = |other: &Row| {
                (&other.variant, other.kernel.as_str(), other.blocks, other.bytes)
                    == (&row.variant, row.kernel.as_str(), row.blocks, row.bytes)
            };
            match self.rows[first..].iter_mut().find(|other| same(other)) {
                Some(other) => other.launches += 1,
                None => self.rows.push(Row { rows, ..row }),
            }
        }
        if decodes && step.iter().all(|launch| self.predictor.has(launch)) {
            let copy = self.predictor.gpu().copy;
            whole.limit = copy_limit(copy);
            whole.predicted_share = whole.bytes as f64 / copy / (whole.predicted_us * 1e-6);
            self.rows.push(whole);
        }
        Ok(())
    }

    fn row(&self, launch: &Planned) -> Result<Row> {
        let gpu = self.predictor.gpu();
        let predicted = self.predictor.predict(launch)?;
        let variant = launch.entry.strip_prefix(launch.source).unwrap_or(&launch.entry);
        let variant = variant.trim_start_matches('_').to_string();
        let reading = launch.bytes as f64 / gpu.copy;
        let (class, least, limit) = match (launch.source, launch.has_products()) {
            ("attention", true) if !variant.ends_with("split") => {
                let causal = usize::from(!variant.contains("causal"));
                let least = launch.flops as f64 / gpu.attention[causal];
                (Class::Attention, least, rate_limit(gpu.attention_by, gpu.attention[causal]))
            }
            ("attention", _) | (_, false) => (Class::Memory, reading, copy_limit(gpu.copy)),
            (_, true) => {
                let least = launch.flops as f64 / gpu.products;
                match least > reading {
                    true => (Class::Product, least, rate_limit("cuBLAS", gpu.products)),
                    false => (Class::Product, reading, copy_limit(gpu.copy)),
                }
            }
        };
        Ok(Row {
            kernel: launch.source.into(),
            variant,
            rows: 0,
            launches: 1,
            blocks: launch.blocks,
            resident: predicted.time.resident,
            registers: predicted.registers,
            spills: predicted.spills,
            class,
            bytes: launch.bytes,
            flops: launch.flops,
            loop_instructions: predicted.time.instructions,
            loop_cycles: predicted.time.step,
            predicted_us: predicted.time.seconds * 1e6,
            limit,
            predicted_share: least / predicted.time.seconds,
            arch: self.predictor.arch().into(),
            compiler: self.compiler.clone(),
        })
    }
}
