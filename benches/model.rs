//! Measures the speed of a whole model, each figure as a share of a limit measured in the same
//! run.
//!
//!     cargo bench --bench model [-- --model DIR] [--repeats N] [--output FILE]
//!
//! Without `--model` a checkpoint of the `1b` shape is written once to `target/bench/1b` (2.2 GB).
//!
//! * **decode**: one sequence, one token per step. The limit is reading: every step reads all
//!   weights except the embedding table once, so the share is (those bytes / step time) ÷ (read
//!   bandwidth of all threads over the same mapped file).
//! * **embed**: 64 texts of 128 tokens. The limit is arithmetic: the share is (FLOPs of all
//!   matrix products, without attention / time) ÷ (rate of the `gemm` crate in f32, with AVX-512,
//!   for the same shapes and number of rows).
//!
//! Limit and measurement alternate, and the share is the median of the ratios of the pairs: on a
//! shared machine both vary together.

use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::config::Config;
use gritlm::model::ops::{Mask, Pooling, SampleParams};
use gritlm::model::weights::Weights;
use gritlm::{Engine, Options};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

const TEXTS: usize = 64;
const LENGTH: usize = 128;
const STEPS: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let folder = match value("--model") {
        Some(folder) => PathBuf::from(folder),
        None => default_checkpoint(),
    };
    let repeats = value("--repeats").map_or(5, |n| n.parse().expect("--repeats: a number"));
    let options = Options::default();
    let engine = Engine::open(folder.to_str().expect("a UTF-8 path"), &options).expect("a model");
    let config = engine.config().clone();
    let weights = Weights::open(&folder, &config).expect("a checkpoint");
    println!("{} on {}", folder.display(), engine.device());

    let rows = [
        decode(&engine, &config, &weights, repeats),
        embed(&engine, &config, options.batch_tokens, repeats),
    ];
    if let Some(path) = value("--output") {
        let record = json!({ "model": folder.file_name().map(|n| n.to_string_lossy()),
            "device": engine.device(), "repeats": repeats, "rows": rows });
        std::fs::write(path, format!("{record:#}\n")).expect("--output: a file");
    }
}

fn default_checkpoint() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/1b");
    if !folder.exists() {
        std::fs::create_dir_all(folder.parent().expect("a parent")).expect("target/bench");
        gritlm::synth::write("1b", None, 0, &folder, &mut |_, _| Ok(())).expect("a checkpoint");
    }
    folder
}

/// Returns random ids, the same in each run; no tokenizer would produce such a sequence.
fn ids(n: usize, seed: u64, vocab: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % vocab as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn decode(engine: &Engine, config: &Config, weights: &Weights, repeats: usize) -> Value {
    let table = (config.vocab * config.dim * 2) as u64;
    let bytes = (weights.bytes() - if config.tied { 0 } else { table }) as f64;
    let mask = engine.generation_mask();
    let draw = SampleParams::greedy();
    let mut cache = engine.cache();
    let mut tokens = ids(16, 1, config.vocab);
    let mut step = || {
        let want = Want::Token(draw.clone());
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want };
        match engine.run(&mut [sequence]).expect("a step").remove(0) {
            Output::Token(drawn) => tokens = vec![drawn.token],
            other => panic!("expected a token, found {other:?}"),
        }
    };
    step();
    step();
    let (mut times, mut limits, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeats {
        let limit = read_bandwidth(weights);
        let mut steps: Vec<f64> = (0..STEPS).map(|_| seconds(&mut step)).collect();
        let time = median(&mut steps);
        times.push(time);
        limits.push(limit);
        shares.push(bytes / time / limit);
    }
    let (time, limit, share) = (median(&mut times), median(&mut limits), median(&mut shares));
    println!(
        "decode  {:7.2} tokens/s  {:6.1} GB/s of {:6.1} GB/s read  share {share:.2}",
        1.0 / time,
        bytes / time / 1e9,
        limit / 1e9
    );
    json!({ "op": "decode", "tokens_per_s": 1.0 / time, "median_s": time, "min_s": times[0],
        "max_s": times[times.len() - 1], "bytes": bytes, "gb_per_s": bytes / time / 1e9,
        "limit": "read bandwidth", "limit_gb_per_s": limit / 1e9, "share": share })
}

/// Returns the bytes per second at which all threads add up the words of the checkpoint in order.
fn read_bandwidth(weights: &Weights) -> f64 {
    let tensors: Vec<&[u8]> = weights.tensors().map(|(_, t)| t.bytes()).collect();
    let time = seconds(|| {
        let sum = tensors
            .iter()
            .map(|bytes| {
                // The tensors of a checkpoint begin at multiples of 8.
                let words: &[u64] = bytemuck::cast_slice(bytes);
                let add = |part: &[u64]| part.iter().fold(0u64, |s, &w| s.wrapping_add(w));
                words.par_chunks(1 << 16).map(add).reduce(|| 0, u64::wrapping_add)
            })
            .fold(0, u64::wrapping_add);
        black_box(sum);
    });
    weights.bytes() as f64 / time
}

/// Returns (inner, outer) of a layer's matrix products.
fn products(c: &Config) -> [(usize, usize); 4] {
    let heads = c.heads * c.head_dim;
    [(c.dim, c.qkv_rows()), (heads, c.dim), (c.dim, 2 * c.hidden), (c.hidden, c.dim)]
}

fn embed(engine: &Engine, config: &Config, batch: usize, repeats: usize) -> Value {
    let texts: Vec<Vec<u32>> =
        (0..TEXTS).map(|i| ids(LENGTH, 2 + i as u64, config.vocab)).collect();
    let per_token: usize = products(config).iter().map(|(k, n)| 2 * k * n).sum();
    let flops = (per_token * config.layers * TEXTS * LENGTH) as f64;
    let run = || {
        for texts in texts.chunks((batch / LENGTH).max(1)) {
            let mut caches: Vec<_> = texts.iter().map(|_| engine.cache()).collect();
            let want = Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true };
            let mask = Mask::Bidirectional { window: None };
            let mut sequences: Vec<Sequence<'_>> = texts
                .iter()
                .zip(&mut caches)
                .map(|(tokens, cache)| Sequence { tokens, cache, mask, want: want.clone() })
                .collect();
            black_box(engine.run(&mut sequences).expect("a pass"));
        }
    };
    let mut products = Gemm::new(config, batch);
    products.rate();
    let (mut times, mut limits, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeats {
        let before = products.rate();
        let time = seconds(run);
        // The run takes long enough for the machine's speed to change, so the limit is the mean
        // of before and after.
        let limit = (before + products.rate()) / 2.0;
        times.push(time);
        limits.push(limit);
        shares.push(flops / time / limit);
    }
    let (time, limit, share) = (median(&mut times), median(&mut limits), median(&mut shares));
    let tokens = (TEXTS * LENGTH) as f64 / time;
    println!(
        "embed   {tokens:7.1} tokens/s  {:6.1} GFLOP/s of {:6.1} GFLOP/s gemm f32  share {share:.2}",
        flops / time / 1e9,
        limit / 1e9
    );
    json!({ "op": "embed", "texts": TEXTS, "length": LENGTH, "tokens_per_s": tokens,
        "median_s": time, "min_s": times[0], "max_s": times[times.len() - 1], "flops": flops,
        "gflop_per_s": flops / time / 1e9, "limit": "gemm crate, f32",
        "limit_gflop_per_s": limit / 1e9, "share": share })
}

/// One layer's matrix products with the `gemm` crate, f32 on both sides, weights in rows as in
/// the checkpoint.
struct Gemm {
    rows: usize,
    products: [(usize, usize); 4],
    a: Vec<f32>,
    w: Vec<f32>,
    out: Vec<f32>,
}

impl Gemm {
    fn new(config: &Config, rows: usize) -> Self {
        let products = products(config);
        let largest = |f: fn((usize, usize)) -> usize| {
            products.iter().map(|&p| f(p)).max().unwrap_or_default()
        };
        let random = |n: usize| -> Vec<f32> {
            ids(n, 3, 1 << 16).iter().map(|&x| x as f32 / 65536.0 - 0.5).collect()
        };
        Self {
            rows,
            products,
            a: random(rows * largest(|(k, _)| k)),
            w: random(largest(|(k, n)| k * n)),
            out: vec![0.0; rows * largest(|(_, n)| n)],
        }
    }

    /// Returns the FLOPs per second over the layer.
    fn rate(&mut self) -> f64 {
        let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
        let (mut time, mut flops) = (0.0, 0.0);
        for (k, n) in self.products {
            time += seconds(|| {
                // SAFETY: the buffers are as large as the largest of these products needs, and
                // the strides are those of row-major arrays: out (rows, n), a (rows, k), w (n, k)
                // transposed.
                unsafe {
                    gemm::gemm(
                        self.rows,
                        n,
                        k,
                        self.out.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        self.a.as_ptr(),
                        1,
                        k as isize,
                        self.w.as_ptr(),
                        k as isize,
                        1,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        threads,
                    );
                }
            });
            flops += (2 * self.rows * k * n) as f64;
        }
        black_box(&self.out);
        flops / time
    }
}
