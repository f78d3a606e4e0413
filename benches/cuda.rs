//! The CUDA backend's ops at GritLM-7B's and 8x7B's shapes beside their limits, or a whole model.
//!
//!     cargo bench --bench cuda [-- FILTER… --quick --repeats N --kernels DIR --output FILE]
//!     cargo bench --bench cuda -- --model DIR [--quick --kernels DIR --output FILE]
//!
//! Device time between CUDA events, the median of the repeats, and (largest − smallest) ÷ median as
//! their spread. Inputs are random; before every repeat a copy of 256 MiB takes what L2 holds. Each
//! result is first compared with sums in f64 at some places (the tests' case table compares all of
//! it, on smaller shapes); one that is wrong, or fails, is a row that says so, and the rest runs.
//!
//! * **copy**: of 1 GiB on the GPU, bytes read and written; **pinned**: to the GPU. They are the
//!   limits of what is bound by memory, and of loading.
//! * **matmul**: the limit of what is bound by arithmetic is what cuBLAS does, which
//!   `benches/peers/torch` measures; `benches/device.sh` puts both into one table. Here the share
//!   is null.
//! * **--model**: loading, the first token, decoding, prefill and embedding, by the clock.
//!
//! `--output` gets a JSON object a line, as soon as it is known; its names and shapes are those of
//! `benches/peers/torch`. A FILTER is how an op's name begins. `--quick` takes tiny shapes: whether
//! everything runs, not how fast.

use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::config::Config;
use gritlm::model::ops::{
    Attention, Draw, Expert, GateUp, Layout, LinearAdd, Logits, Mask, Ops, PAGE, PoolShape,
    PoolSpan, Pooling, Qkv, RmsNorm, Route, Search, Span,
};
use gritlm::model::weights::{Dtype, Tensor};
use gritlm::{Device, Engine};
use gritlm_kernels::{Buffer, Cuda, Matrix, Options};
use half::bf16;
use pollster::block_on;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Operations for a byte from which arithmetic is the limit: an H100 does 270 in the time of one.
const BALANCE: f64 = 250.0;

/// Largest relative error of what is computed from bf16.
const BOUND: f64 = 1e-2;

/// Rows of a result that are compared, at most: several tiles.
const COMPARED: usize = 512;

const EPS: f32 = 1e-5;

type Outcome<T> = Result<T, String>;

/// A model's sizes, and those of the cases.
struct Sizes {
    dim: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    vocab: usize,
    experts: usize,
    top_k: usize,
    rows: &'static [usize],
    expert_rows: &'static [usize],
    prefill: &'static [usize],
    batches: &'static [usize],
    contexts: &'static [usize],
    documents: usize,
    /// Bytes of a copy, and of what is copied before each repeat.
    copied: u64,
    displaced: u64,
}

const GRITLM: Sizes = Sizes {
    dim: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    hidden: 14336,
    vocab: 32000,
    experts: 8,
    top_k: 2,
    rows: &[1, 4, 16, 64, 512, 4096],
    expert_rows: &[1, 16, 512, 4096],
    prefill: &[512, 4096, 8192],
    batches: &[1, 8, 32],
    contexts: &[1024, 4096, 16384],
    documents: 100_000,
    copied: 1 << 30,
    // Read and written: a copy of 256 MiB.
    displaced: 512 << 20,
};

const QUICK: Sizes = Sizes {
    dim: 64,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    hidden: 96,
    vocab: 300,
    experts: 4,
    top_k: 2,
    rows: &[1, 16],
    expert_rows: &[1, 16],
    prefill: &[128],
    batches: &[2],
    contexts: &[256],
    documents: 500,
    copied: 1 << 16,
    displaced: 1 << 16,
};

struct Bench {
    cuda: Cuda,
    sizes: Sizes,
    filters: Vec<String>,
    repeats: usize,
    rows: Rows,
    /// Bytes per second of a copy.
    copy: f64,
}

/// Where rows go.
struct Rows(Option<File>);

/// What a case took.
struct Timed {
    /// Seconds of each repeat, sorted.
    seconds: Vec<f64>,
    bytes: f64,
    flops: f64,
}

fn main() {
    let (mut values, mut filters, mut quick) = (Vec::new(), Vec::new(), false);
    // Cargo adds --bench.
    let mut rest = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(arg) = rest.next() {
        match arg.strip_prefix("--") {
            Some("quick") => quick = true,
            Some(flag) => values.push((flag.to_string(), rest.next().expect("a value"))),
            None => filters.push(arg),
        }
    }
    let value = |flag: &str| values.iter().find(|(f, _)| f == flag).map(|(_, v)| v.clone());
    let kernels = value("kernels").map(PathBuf::from);
    let repeats = value("repeats").map_or(7, |n| n.parse().expect("--repeats: a number"));
    let rows = Rows(value("output").map(|path| File::create(path).expect("--output: a file")));
    let options = Options { profile: true, kernels: kernels.clone(), ..Options::default() };
    let cuda = Cuda::open(&options).unwrap_or_else(|problem| {
        eprintln!("not measured: {problem}");
        std::process::exit(1);
    });
    println!("{}", cuda.device());
    let sizes = if quick { QUICK } else { GRITLM };
    let mut bench = Bench { cuda, sizes, filters, repeats, rows, copy: 0.0 };
    bench.rates().expect("copies");
    if let Some(folder) = value("model") {
        // The model gets all of the memory; what is compiled now need not be then.
        let Bench { cuda, rows, copy, .. } = bench;
        drop(cuda);
        return Model::measure(&folder, kernels, quick, rows, copy).expect("a model");
    }
    bench.products();
    bench.attention();
    bench.experts();
    bench.small();
}

/// The same random values in each run, uniform in [−scale, scale).
fn random(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; n];
    out.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, out)| {
        let mut x = (seed << 32 | (chunk as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for out in out {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *out = ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale;
        }
    });
    out
}

/// Places in a result of so many rows and columns: the first, the last, and some between.
fn places(rows: usize, cols: usize) -> Vec<(usize, usize)> {
    let some = (1..63).map(|i| (i * 7919 % rows, i * 104_729 % cols));
    [(0, 0), (rows - 1, cols - 1)].into_iter().chain(some).collect()
}

fn dot<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a bf16>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| f64::from(*a) * b.to_f64()).sum()
}

/// An error where values are further from the expected ones than bf16 explains.
fn close(pairs: impl IntoIterator<Item = (f32, f64)>) -> Outcome<()> {
    let (mut difference, mut length) = (0.0, 0.0);
    for (found, expected) in pairs {
        difference += (f64::from(found) - expected).powi(2);
        length += expected.powi(2);
    }
    let error = f64::sqrt(difference / length);
    // Not a number must fail, too.
    if error < BOUND { Ok(()) } else { Err(format!("wrong result: relative error {error:.1e}")) }
}

fn said(problem: impl std::fmt::Display) -> String {
    problem.to_string()
}

impl Rows {
    /// A row to the file and to stdout.
    fn put(&mut self, row: &Value) {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{row}").expect("--output: room");
        }
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        let name = format!("{}, {}", row["op"], row["shape"]).replace('"', "");
        if let Some(problem) = row["not_measured"].as_str() {
            return println!("{name:64} not measured: {problem}");
        }
        let share = row["share"].as_f64().map_or(String::new(), |share| {
            format!("  {share:.2} of {}", row["limit"].as_str().unwrap_or_default())
        });
        println!(
            "{name:64} {:11.1} us ±{:2.0} %  {:8.1} GB/s  {:7.1} TFLOP/s{share}",
            number("us"),
            50.0 * number("spread"),
            number("gb_s"),
            number("tflop_s"),
        );
    }

    fn timed(&mut self, op: &str, shape: &str, copy: f64, timed: Timed) {
        let Timed { seconds, bytes, flops } = timed;
        let time = seconds[seconds.len() / 2];
        let spread = (seconds[seconds.len() - 1] - seconds[0]) / time;
        let (limit, share) = match flops / bytes < BALANCE {
            true => ("copy", Some(bytes / time / copy)),
            false => ("matmul", None),
        };
        self.put(&json!({ "op": op, "shape": shape, "us": time * 1e6, "spread": spread,
            "gb_s": bytes / time / 1e9, "tflop_s": flops / time / 1e12, "bytes": bytes,
            "flops": flops, "limit": limit, "share": share }));
    }
}

impl Bench {
    fn wanted(&self, op: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|f| op.starts_with(f.as_str()))
    }

    fn row(&mut self, op: &str, shape: &str, outcome: Outcome<Timed>) {
        match outcome {
            Ok(timed) => self.rows.timed(op, shape, self.copy, timed),
            Err(why) => {
                self.rows.put(&json!({ "op": op, "shape": shape, "not_measured": why }));
            }
        }
    }

    fn rates(&mut self) -> Outcome<()> {
        let bytes = self.sizes.copied;
        self.copy = self.cuda.copy_rate(bytes).map_err(said)?;
        let pinned = self.cuda.pinned_rate(bytes / 4).map_err(said)?;
        for (op, moved, rate) in [("copy", 2 * bytes, self.copy), ("pinned", bytes / 4, pinned)] {
            let shape = format!("{} MiB", moved as f64 / f64::from(1 << 20));
            let seconds = moved as f64 / rate;
            self.rows.put(&json!({ "op": op, "shape": shape, "us": seconds * 1e6, "spread": 0.0,
                "gb_s": rate / 1e9, "tflop_s": 0.0 }));
        }
        Ok(())
    }

    /// Times what `launch` launches, as far as it counts for the op `stem`.
    fn time(&self, stem: &str, mut launch: impl FnMut(&Cuda)) -> Outcome<Timed> {
        let (mut seconds, mut bytes, mut flops) = (Vec::new(), 0.0, 0.0);
        for repeat in 0..=self.repeats {
            self.cuda.displace(self.sizes.displaced).map_err(said)?;
            self.cuda.profile();
            launch(&self.cuda);
            self.cuda.finish().map_err(said)?;
            let all = self.cuda.profile();
            let this = all.iter().find(|row| row.op == stem).ok_or("nothing was launched")?;
            // The first may still be loading code.
            if repeat > 0 {
                seconds.push(this.nanoseconds / 1e9);
            }
            (bytes, flops) = (this.bytes as f64, this.flops as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(Timed { seconds, bytes, flops })
    }

    fn read(&self, buffer: &Buffer, len: usize) -> Outcome<Vec<f32>> {
        block_on(self.cuda.read(buffer, len)).map_err(said)
    }

    /// A random matrix, and its values.
    fn matrix(&self, rows: usize, cols: usize, seed: u64) -> Outcome<(Matrix, Vec<bf16>)> {
        // Products of such weights and of activations of mean square 1 have mean square 1.
        let scale = (3.0 / cols as f32).sqrt();
        let values: Vec<bf16> =
            random(rows * cols, seed, scale).into_par_iter().map(bf16::from_f32).collect();
        let bytes = bytemuck::cast_slice(&values);
        let tensor = Tensor::from_bytes(Dtype::Bf16, &[rows, cols], bytes);
        Ok((self.cuda.matrix(&[tensor]).map_err(said)?, values))
    }

    fn ones(&self, cols: usize) -> Outcome<Matrix> {
        self.cuda.matrix(&[Tensor::from_f32(&[cols], &vec![1.0; cols])]).map_err(said)
    }

    /// Activations as ops write and read them, of mean square 1; and what a product reads of them.
    fn normed(&self, rows: usize, cols: usize, seed: u64) -> Outcome<(Buffer, Vec<f32>)> {
        let x = self.cuda.upload(rows, cols, &random(rows * cols, seed, 1.0)).map_err(said)?;
        let mut h = self.cuda.buffer(rows, cols).map_err(said)?;
        let p = RmsNorm { rows: rows as u32, dim: cols as u32, eps: EPS };
        let weight = self.ones(cols)?;
        self.cuda.rmsnorm(p, &x, &weight, &mut h);
        let values = self.read(&h, rows * cols)?;
        Ok((h, values.into_par_iter().map(|v| bf16::from_f32(v).to_f32()).collect()))
    }

    /// A batch of so many rows at positions 0, 1, 2, …, in those slots.
    fn layout(&self, slots: Vec<u32>, spans: Vec<Span>, tables: Vec<u32>) -> Layout {
        let half = self.sizes.head_dim / 2;
        Layout {
            tokens: (0..slots.len()).map(|i| (i * 7919 % self.sizes.vocab) as u32).collect(),
            positions: (0..slots.len() as u32).collect(),
            slots,
            spans,
            tables,
            frequencies: (0..half).map(|d| 1e4_f32.powf(-(d as f32) / half as f32)).collect(),
        }
    }

    fn pool_shape(&self, pages: usize) -> PoolShape {
        let Sizes { kv_heads, head_dim, .. } = self.sizes;
        PoolShape { layers: 1, pages, kv_heads, head_dim }
    }

    fn products(&mut self) {
        let Sizes { dim, heads, kv_heads, head_dim, hidden, vocab, rows, .. } = self.sizes;
        let all = [
            ("qkv", dim, (heads + 2 * kv_heads) * head_dim),
            ("linear_add o", heads * head_dim, dim),
            ("gate_up", dim, 2 * hidden),
            ("linear_add down", hidden, dim),
            ("logits", dim, vocab),
        ];
        for (n, (op, inner, outer)) in all.into_iter().enumerate() {
            if !self.wanted(op) {
                continue;
            }
            let weights = self.matrix(outer, inner, 10 + n as u64);
            for &rows in rows {
                let timed =
                    weights.as_ref().map_err(Clone::clone).and_then(|(w, values)| match op {
                        "qkv" => self.qkv(rows, w, values),
                        "gate_up" => self.gate_up(rows, w, values),
                        "logits" => self.logits(rows, w, values),
                        _ => self.linear_add(rows, inner, outer, w, values),
                    });
                self.row(op, &format!("{rows} x {inner} -> {outer}"), timed);
            }
        }
    }

    fn qkv(&self, rows: usize, w: &Matrix, values: &[bf16]) -> Outcome<Timed> {
        let Sizes { dim, heads, kv_heads, head_dim, .. } = self.sizes;
        let (h, h_values) = self.normed(rows, dim, 1)?;
        let pages = rows.div_ceil(PAGE);
        let table: Vec<u32> = (0..pages as u32).collect();
        let mut pool = self.cuda.pages(self.pool_shape(pages)).map_err(said)?;
        let layout = self.layout((0..rows as u32).collect(), Vec::new(), Vec::new());
        let batch = self.cuda.batch(&layout).map_err(said)?;
        let mut q = self.cuda.buffer(rows, heads * head_dim).map_err(said)?;
        let p = Qkv {
            rows: rows as u32,
            dim: dim as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            layer: 0,
        };
        self.cuda.qkv(p, &h, w, &batch, &mut q, &mut pool);

        let (width, compared) = (heads * head_dim, rows.min(COMPARED));
        let found = self.read(&q, compared * width)?;
        let cached = block_on(self.cuda.export_pages(&pool, &table, compared)).map_err(said)?;
        let sum = |r: usize, o: usize| dot(&h_values[r * dim..][..dim], &values[o * dim..][..dim]);
        let queries = places(compared, width).into_iter().map(|(r, c)| {
            let (d, half) = (c % head_dim, head_dim / 2);
            let (sine, cosine) = (layout.frequencies[d % half] * r as f32).sin_cos();
            let turned = match d < half {
                true => -sum(r, c + half) * f64::from(sine),
                false => sum(r, c - half) * f64::from(sine),
            };
            (found[r * width + c], sum(r, c) * f64::from(cosine) + turned)
        });
        let vectors = places(compared, kv_heads * head_dim).into_iter().map(|(r, c)| {
            let (head, d) = (kv_heads + c / head_dim, c % head_dim);
            let row = (heads + kv_heads) * head_dim + c;
            (cached[(head * compared + r) * head_dim + d], sum(r, row))
        });
        close(queries.chain(vectors))?;
        self.time("qkv", |cuda| cuda.qkv(p, &h, w, &batch, &mut q, &mut pool))
    }

    fn linear_add(
        &self,
        rows: usize,
        inner: usize,
        outer: usize,
        w: &Matrix,
        values: &[bf16],
    ) -> Outcome<Timed> {
        let (a, a_values) = self.normed(rows, inner, 2)?;
        let before = random(rows * outer, 3, 1.0);
        let mut x = self.cuda.upload(rows, outer, &before).map_err(said)?;
        let p = LinearAdd { rows: rows as u32, inner: inner as u32, outer: outer as u32 };
        self.cuda.linear_add(p, &a, w, &mut x);
        let found = self.read(&x, rows.min(COMPARED) * outer)?;
        close(places(rows.min(COMPARED), outer).into_iter().map(|(r, c)| {
            let sum = dot(&a_values[r * inner..][..inner], &values[c * inner..][..inner]);
            (found[r * outer + c], f64::from(before[r * outer + c]) + sum)
        }))?;
        self.time("linear_add", |cuda| cuda.linear_add(p, &a, w, &mut x))
    }

    fn gate_up(&self, rows: usize, w: &Matrix, values: &[bf16]) -> Outcome<Timed> {
        let Sizes { dim, hidden, .. } = self.sizes;
        let (h, h_values) = self.normed(rows, dim, 4)?;
        let mut out = self.cuda.buffer(rows, hidden).map_err(said)?;
        let p = GateUp { rows: rows as u32, dim: dim as u32, hidden: hidden as u32 };
        self.cuda.gate_up(p, &h, w, &mut out);
        let found = self.read(&out, rows.min(COMPARED) * hidden)?;
        close(places(rows.min(COMPARED), hidden).into_iter().map(|(r, c)| {
            let row = |c: usize| dot(&h_values[r * dim..][..dim], &values[c * dim..][..dim]);
            (found[r * hidden + c], gated(row(c), row(hidden + c)))
        }))?;
        self.time("gate_up", |cuda| cuda.gate_up(p, &h, w, &mut out))
    }

    /// Without its norm, which counts as rmsnorm.
    fn logits(&self, rows: usize, w: &Matrix, values: &[bf16]) -> Outcome<Timed> {
        let Sizes { dim, vocab, .. } = self.sizes;
        let x_values = random(rows * dim, 5, 1.0);
        let x = self.cuda.upload(rows, dim, &x_values).map_err(said)?;
        let mut out = self.cuda.buffer(rows, vocab).map_err(said)?;
        let (norm, chosen) = (self.ones(dim)?, (0..rows as u32).collect::<Vec<_>>());
        let p = Logits { dim: dim as u32, vocab: vocab as u32, eps: EPS };
        self.cuda.logits(p, &chosen, &x, &norm, w, &mut out);
        let found = self.read(&out, rows.min(COMPARED) * vocab)?;
        close(places(rows.min(COMPARED), vocab).into_iter().map(|(r, c)| {
            let row = &x_values[r * dim..][..dim];
            (found[r * vocab + c], dot(row, &values[c * dim..][..dim]) / root_mean_square(row))
        }))?;
        self.time("logits", |cuda| cuda.logits(p, &chosen, &x, &norm, w, &mut out))
    }

    /// Prefill, and decoding from the same pages, which are not in order.
    fn attention(&mut self) {
        let Sizes { prefill, batches, contexts, .. } = self.sizes;
        let masks = [
            ("attention causal", Mask::Causal { window: None }),
            ("attention bidirectional", Mask::Bidirectional { window: None }),
        ];
        if !masks.iter().any(|(op, _)| self.wanted(op)) && !self.wanted("attention decode") {
            return;
        }
        let pages = contexts.iter().max().unwrap_or(&0) / PAGE;
        let pages = (pages * batches.iter().max().unwrap_or(&0)).next_power_of_two();
        let pool = self.filled(pages);
        // An odd step through a power of two comes to each page once.
        let table = |first: usize, tokens: usize| -> Vec<u32> {
            let numbers = first..first + tokens.div_ceil(PAGE);
            numbers.map(|n| (n * 1103 % pages) as u32).collect()
        };
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let heads = format!("{heads}:{kv_heads} x {head_dim}");
        let pool = pool.as_ref().map_err(Clone::clone);
        for &tokens in prefill {
            for (op, mask) in masks {
                if self.wanted(op) {
                    let rows = tokens as u32;
                    let span = Span { row: 0, rows, past: 0, table: 0, mask };
                    let timed = pool
                        .clone()
                        .and_then(|pool| self.attend(pool, vec![span], table(0, tokens)));
                    self.row(op, &format!("T {tokens}, {heads}"), timed);
                }
            }
        }
        for &batch in batches {
            for &context in contexts {
                if !self.wanted("attention decode") {
                    continue;
                }
                let each = context.div_ceil(PAGE);
                let spans = (0..batch).map(|n| Span {
                    row: n as u32,
                    rows: 1,
                    past: context as u32 - 1,
                    table: (n * each) as u32,
                    mask: masks[0].1,
                });
                let tables = (0..batch).flat_map(|n| table(n * each, context)).collect();
                let spans = spans.collect();
                let timed = pool.clone().and_then(|pool| self.attend(pool, spans, tables));
                let shape = format!("batch {batch}, context {context}, {heads}");
                self.row("attention decode", &shape, timed);
            }
        }
    }

    /// Pages full of keys and values that the GPU itself has computed: they are gigabytes.
    fn filled(&self, pages: usize) -> Outcome<gritlm_kernels::Pages> {
        let Sizes { dim, heads, kv_heads, head_dim, .. } = self.sizes;
        let mut pool = self.cuda.pages(self.pool_shape(pages)).map_err(said)?;
        let (w, _) = self.matrix((heads + 2 * kv_heads) * head_dim, dim, 6)?;
        let tokens = (pages * PAGE).min(self.sizes.rows[self.sizes.rows.len() - 1]);
        let (h, _) = self.normed(tokens, dim, 7)?;
        let mut q = self.cuda.buffer(tokens, heads * head_dim).map_err(said)?;
        let p = Qkv {
            rows: tokens as u32,
            dim: dim as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            layer: 0,
        };
        for first in (0..pages * PAGE).step_by(tokens) {
            let slots = (first..first + tokens).map(|slot| slot as u32).collect();
            let mut layout = self.layout(slots, Vec::new(), Vec::new());
            // Else the keys would be the same again and again.
            layout.positions.iter_mut().for_each(|position| *position += first as u32);
            let batch = self.cuda.batch(&layout).map_err(said)?;
            self.cuda.qkv(p, &h, &w, &batch, &mut q, &mut pool);
            // What was sent for it is then free for the next.
            self.cuda.submit().map_err(said)?;
        }
        self.cuda.finish().map_err(said)?;
        Ok(pool)
    }

    fn attend(
        &self,
        pool: &gritlm_kernels::Pages,
        spans: Vec<Span>,
        tables: Vec<u32>,
    ) -> Outcome<Timed> {
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let (rows, width) = (spans.iter().map(|s| s.rows).sum::<u32>() as usize, heads * head_dim);
        let (q, q_values) = self.normed(rows, width, 8)?;
        let mut out = self.cuda.buffer(rows, width).map_err(said)?;
        let layout = self.layout(vec![0; rows], spans, tables);
        let batch = self.cuda.batch(&layout).map_err(said)?;
        let p = Attention {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            layer: 0,
        };
        self.cuda.attention(p, &q, pool, &batch, &mut out);

        let found = self.read(&out, rows * width)?;
        let mut pairs = Vec::new();
        // The first sequence, and the last where there are several.
        let last = (layout.spans.len() > 1).then(|| &layout.spans[layout.spans.len() - 1]);
        for span in layout.spans.iter().take(1).chain(last) {
            let tokens = (span.past + span.rows) as usize;
            let table = &layout.tables[span.table as usize..][..tokens.div_ceil(PAGE)];
            let cached = block_on(self.cuda.export_pages(pool, table, tokens)).map_err(said)?;
            let last = span.rows as usize - 1;
            for (row, head) in [(0, 0), (last / 2, heads / 2), (last, heads - 1)] {
                let at = (span.row as usize + row) * width + head * head_dim;
                let q = &q_values[at..][..head_dim];
                let vector = |which: usize, token: usize| {
                    let head = which * kv_heads + head * kv_heads / heads;
                    &cached[(head * tokens + token) * head_dim..][..head_dim]
                };
                let keys = span.mask.keys(span.past as usize + row, tokens);
                let scores: Vec<f64> = keys
                    .clone()
                    .map(|key| {
                        let products = q.iter().zip(vector(0, key));
                        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                            / (head_dim as f64).sqrt()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                let mut mixed = vec![0.0; head_dim];
                for (score, key) in scores.iter().zip(keys) {
                    let weight = (score - most).exp() / total;
                    mixed.iter_mut().zip(vector(1, key)).for_each(|(m, v)| {
                        *m += weight * f64::from(*v);
                    });
                }
                pairs.extend(found[at..][..head_dim].iter().copied().zip(mixed));
            }
        }
        close(pairs)?;
        self.time("attention", |cuda| cuda.attention(p, &q, pool, &batch, &mut out))
    }

    /// Route, and the two halves of the experts' feed-forward.
    fn experts(&mut self) {
        let Sizes { dim, hidden, experts, top_k, expert_rows, .. } = self.sizes;
        let ops = ["route", "expert_gate_up", "expert_down_add"];
        if !ops.iter().any(|op| self.wanted(op)) {
            return;
        }
        let weights = self.matrix(experts, dim, 20).and_then(|router| {
            let gate_up = self.matrix(experts * 2 * hidden, dim, 21)?;
            Ok([router, gate_up, self.matrix(experts * dim, hidden, 22)?])
        });
        for &rows in expert_rows {
            let timed = weights.as_ref().map_err(Clone::clone).and_then(|w| self.mixture(rows, w));
            let shapes = [
                format!("{rows} x {dim} -> {experts}"),
                format!("{rows} x {dim} -> {experts} x {}, top {top_k}", 2 * hidden),
                format!("{rows} x {hidden} -> {experts} x {dim}, top {top_k}"),
            ];
            let timed: [Outcome<Timed>; 3] = match timed {
                Ok(timed) => timed.map(Ok),
                Err(why) => [(); 3].map(|()| Err(why.clone())),
            };
            for ((op, shape), timed) in ops.into_iter().zip(shapes).zip(timed) {
                if self.wanted(op) {
                    self.row(op, &shape, timed);
                }
            }
        }
    }

    fn mixture(&self, rows: usize, weights: &[(Matrix, Vec<bf16>); 3]) -> Outcome<[Timed; 3]> {
        let [(router, router_values), (gate_up, gate_up_values), (down, down_values)] = weights;
        let Sizes { dim, hidden, experts, top_k, .. } = self.sizes;
        let (h, h_values) = self.normed(rows, dim, 23)?;
        let before = random(rows * dim, 24, 1.0);
        let mut x = self.cuda.upload(rows, dim, &before).map_err(said)?;
        let mut routing = self.cuda.routing(rows, experts, top_k).map_err(said)?;
        let mut inner = self.cuda.buffer(rows * top_k, hidden).map_err(said)?;
        let route = Route {
            rows: rows as u32,
            dim: dim as u32,
            experts: experts as u32,
            top_k: top_k as u32,
        };
        let p = Expert {
            rows: rows as u32,
            dim: dim as u32,
            hidden: hidden as u32,
            experts: experts as u32,
            top_k: top_k as u32,
        };
        self.cuda.route(route, &h, router, &mut routing);
        self.cuda.expert_gate_up(p, &h, gate_up, &routing, &mut inner);
        self.cuda.expert_down_add(p, &inner, down, &routing, &mut x);

        // One row through its experts, all of it, is half a GFLOP.
        let row = rows.min(COMPARED) - 1;
        let found = self.read(&x, (row + 1) * dim)?;
        let h_row = &h_values[row * dim..][..dim];
        let scores = block_on(self.cuda.read_routing(&routing, row + 1)).map_err(said)?;
        let scores = &scores[row * experts..];
        close((0..experts).map(|e| (scores[e], dot(h_row, &router_values[e * dim..][..dim]))))?;
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let weight = |e: usize| f64::from(scores[e] - scores[order[0]]).exp();
        let total: f64 = order[..top_k].iter().map(|&e| weight(e)).sum();
        let mut expected: Vec<f64> =
            before[row * dim..][..dim].iter().map(|&v| f64::from(v)).collect();
        for &e in &order[..top_k] {
            let value = |c: usize| {
                let from = |c: usize| &gate_up_values[(e * 2 * hidden + c) * dim..][..dim];
                let inner = gated(dot(h_row, from(c)), dot(h_row, from(hidden + c)));
                bf16::from_f64(inner).to_f32()
            };
            let inner: Vec<f32> = (0..hidden).into_par_iter().map(value).collect();
            expected.par_iter_mut().enumerate().for_each(|(c, sum)| {
                let product = dot(&inner, &down_values[(e * dim + c) * hidden..][..hidden]);
                *sum += weight(e) / total * product;
            });
        }
        close(found[row * dim..].iter().copied().zip(expected))?;
        Ok([
            self.time("route", |cuda| cuda.route(route, &h, router, &mut routing))?,
            self.time("expert_gate_up", |cuda| {
                cuda.expert_gate_up(p, &h, gate_up, &routing, &mut inner);
            })?,
            self.time("expert_down_add", |cuda| {
                cuda.expert_down_add(p, &inner, down, &routing, &mut x);
            })?,
        ])
    }

    /// What reads and writes activations only.
    fn small(&mut self) {
        let Sizes { dim, vocab, documents, .. } = self.sizes;
        let rows = self.sizes.rows[self.sizes.rows.len() - 1];
        if self.wanted("rmsnorm") {
            for rows in [1, rows / 8, rows] {
                let timed = self.rmsnorm(rows);
                self.row("rmsnorm", &format!("{rows} x {dim}"), timed);
            }
        }
        if self.wanted("embed") {
            let timed = self.embed(rows);
            self.row("embed", &format!("{rows} x {dim}"), timed);
        }
        if self.wanted("pool") {
            let timed = self.pool(rows);
            self.row("pool", &format!("8 x {} x {dim}", rows / 8), timed);
        }
        for (op, temperature) in [("sample greedy", 0.0), ("sample top-k top-p", 0.7)] {
            for rows in [1, 32] {
                if self.wanted(op) {
                    let timed = self.sample(rows, temperature);
                    self.row(op, &format!("{rows} x {vocab}"), timed);
                }
            }
        }
        for queries in [1, 16] {
            if self.wanted("search") {
                let timed = self.search(queries);
                self.row("search", &format!("{queries} x {documents} x {dim}, top 10"), timed);
            }
        }
    }

    fn rmsnorm(&self, rows: usize) -> Outcome<Timed> {
        let dim = self.sizes.dim;
        let values = random(rows * dim, 30, 1.0);
        let x = self.cuda.upload(rows, dim, &values).map_err(said)?;
        let (weight, p) =
            (self.ones(dim)?, RmsNorm { rows: rows as u32, dim: dim as u32, eps: EPS });
        let mut h = self.cuda.buffer(rows, dim).map_err(said)?;
        self.cuda.rmsnorm(p, &x, &weight, &mut h);
        let found = self.read(&h, rows * dim)?;
        close(places(rows, dim).into_iter().map(|(r, c)| {
            let row = &values[r * dim..][..dim];
            (found[r * dim + c], f64::from(row[c]) / root_mean_square(row))
        }))?;
        self.time("rmsnorm", |cuda| cuda.rmsnorm(p, &x, &weight, &mut h))
    }

    fn embed(&self, rows: usize) -> Outcome<Timed> {
        let Sizes { dim, vocab, .. } = self.sizes;
        let (table, values) = self.matrix(vocab, dim, 31)?;
        let layout = self.layout((0..rows as u32).collect(), Vec::new(), Vec::new());
        let batch = self.cuda.batch(&layout).map_err(said)?;
        let mut x = self.cuda.buffer(rows, dim).map_err(said)?;
        self.cuda.embed(&batch, &table, &mut x);
        let found = self.read(&x, rows * dim)?;
        close(places(rows, dim).into_iter().map(|(r, c)| {
            (found[r * dim + c], values[layout.tokens[r] as usize * dim + c].to_f64())
        }))?;
        self.time("embed", |cuda| cuda.embed(&batch, &table, &mut x))
    }

    fn pool(&self, rows: usize) -> Outcome<Timed> {
        let (dim, each) = (self.sizes.dim, rows / 8);
        let (h, _) = self.normed(rows, dim, 32)?;
        let values = self.read(&h, rows * dim)?;
        let spans = (0..8).map(|n| PoolSpan {
            row: (n * each) as u32,
            rows: each as u32,
            skip: 0,
            pooling: Pooling::Mean,
            normalize: true,
        });
        let spans: Vec<PoolSpan> = spans.collect();
        let mut out = self.cuda.buffer(8, dim).map_err(said)?;
        self.cuda.pool(dim as u32, &spans, &h, &mut out);
        let found = self.read(&out, 8 * dim)?;
        let mut expected: Vec<f64> = vec![0.0; 8 * dim];
        for (at, value) in values.iter().enumerate() {
            expected[at / dim / each * dim + at % dim] += f64::from(*value);
        }
        for vector in expected.chunks_mut(dim) {
            let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|v| *v /= length);
        }
        close(found.into_iter().zip(expected))?;
        self.time("pool", |cuda| cuda.pool(dim as u32, &spans, &h, &mut out))
    }

    fn sample(&self, rows: usize, temperature: f32) -> Outcome<Timed> {
        let vocab = self.sizes.vocab;
        let values = random(rows * vocab, 33, 8.0);
        let logits = self.cuda.upload(rows, vocab, &values).map_err(said)?;
        let drawn = temperature > 0.0;
        let draws: Vec<Draw> = (0..rows)
            .map(|row| Draw {
                top_k: if drawn { 50 } else { 0 },
                top_p: if drawn { 0.9 } else { 1.0 },
                temperature,
                uniform: (row as f32 + 0.5) / rows as f32,
                ..greedy()
            })
            .collect();
        let run = || block_on(self.cuda.sample(vocab as u32, &draws, &logits));
        let found = run().map_err(said)?;
        let mut pairs = Vec::new();
        for (row, drawn) in values.chunks(vocab).zip(&found) {
            let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            let likely = f64::from(row[drawn.token as usize]) - sum.ln();
            pairs.push((drawn.logprob, likely));
            let above = row.iter().filter(|v| **v > row[drawn.token as usize]).count();
            if above >= draws[0].top_k.max(1) as usize {
                return Err(format!("wrong result: {above} tokens are likelier"));
            }
        }
        close(pairs)?;
        // A problem comes back from the wait that follows.
        self.time("sample", |_| drop(run()))
    }

    fn search(&self, queries: usize) -> Outcome<Timed> {
        let Sizes { dim, documents, .. } = self.sizes;
        let (q, c) = (random(queries * dim, 34, 1.0), random(documents * dim, 35, 1.0));
        let corpus = self.cuda.upload(documents, dim, &c).map_err(said)?;
        let wanted = self.cuda.upload(queries, dim, &q).map_err(said)?;
        let p = Search {
            queries: queries as u32,
            documents: documents as u32,
            dim: dim as u32,
            top_k: 10,
        };
        let run = || block_on(self.cuda.search(p, &wanted, &corpus));
        let found = run().map_err(said)?;
        let product = |query: usize, document: usize| -> f64 {
            let products = q[query * dim..][..dim].iter().zip(&c[document * dim..][..dim]);
            products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let best =
            (0..documents).into_par_iter().map(|d| product(0, d)).reduce(|| f64::MIN, f64::max);
        let pairs = found.iter().enumerate().flat_map(|(query, found)| {
            found.iter().map(move |&(d, score)| (score, query, d as usize))
        });
        let pairs = pairs.map(|(score, query, d)| (score, product(query, d)));
        close(pairs.chain([(found[0][0].1, best)]))?;
        self.time("search", |_| drop(run()))
    }
}

fn gated(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

fn root_mean_square(row: &[f32]) -> f64 {
    let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
    (squares / row.len() as f64 + f64::from(EPS)).sqrt()
}

/// The likeliest token.
fn greedy() -> Draw {
    Draw {
        seen: Vec::new(),
        penalty: 1.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.0,
        logprobs: 0,
    }
}

/// A whole model.
struct Model {
    engine: Engine,
    rows: Rows,
    copy: f64,
}

impl Model {
    fn measure(
        folder: &str,
        kernels: Option<PathBuf>,
        quick: bool,
        rows: Rows,
        copy: f64,
    ) -> Outcome<()> {
        let tokens = if quick { 64 } else { 4096 };
        let options = gritlm::Options {
            device: Device::Cuda(0),
            batch_tokens: tokens,
            kernels,
            ..gritlm::Options::default()
        };
        let start = Instant::now();
        let engine = Engine::open(folder, &options).map_err(said)?;
        let loaded = start.elapsed().as_secs_f64();
        let bytes = 2.0 * engine.config().parameters() as f64;
        let mut model = Self { engine, rows, copy };
        model.step(&mut model.engine.cache(), &[1; 16], model.engine.generation_mask())?;
        let first = start.elapsed().as_secs_f64();
        let single = |seconds, bytes| Timed { seconds: vec![seconds], bytes, flops: 0.0 };
        model.put("load", &gigabytes(bytes), single(loaded, bytes), 0.0);
        model.put("start to first token", &gigabytes(bytes), single(first, bytes), 0.0);
        model.decode(if quick { 4 } else { 64 })?;
        model.prefill(tokens)?;
        model.embed(8, tokens / 8)
    }

    /// A row with tokens per second; its limit is the clock's, so spread and share are its own.
    fn put(&mut self, op: &str, shape: &str, timed: Timed, tokens: f64) {
        let Timed { seconds, bytes, flops } = timed;
        let time = seconds[seconds.len() / 2];
        let limit = match op {
            "load" => "pinned",
            "decode" => "copy",
            "start to first token" => "",
            _ => "matmul",
        };
        let share = (limit == "copy").then(|| bytes / time / self.copy);
        let spread = (seconds[seconds.len() - 1] - seconds[0]) / time;
        self.rows.put(&json!({ "op": format!("model {op}"), "shape": shape, "us": time * 1e6,
            "spread": spread, "gb_s": bytes / time / 1e9, "tflop_s": flops / time / 1e12,
            "bytes": bytes, "flops": flops, "limit": limit, "share": share,
            "tokens_s": tokens / time }));
    }

    /// Weights that a token goes through, without the embedding table, of which it reads one row.
    fn used(&self) -> f64 {
        let c: &Config = self.engine.config();
        let feed_forward = 3 * c.dim * c.hidden * c.experts.map_or(1, |experts| experts.top_k);
        let router = c.experts.map_or(0, |experts| experts.count * c.dim);
        let attention = c.dim * (c.qkv_rows() + c.heads * c.head_dim);
        (c.layers * (attention + router + feed_forward) + c.vocab * c.dim) as f64
    }

    /// One more token.
    fn step(&self, cache: &mut gritlm::cache::Cache, tokens: &[u32], mask: Mask) -> Outcome<u32> {
        let sequence = Sequence { tokens, cache, mask, want: Want::Token(greedy()) };
        match self.engine.run(&mut [sequence]).map_err(said)?.remove(0) {
            Output::Token(drawn) if drawn.logprob.is_finite() => Ok(drawn.token),
            other => Err(format!("wrong result: {other:?}")),
        }
    }

    fn decode(&mut self, steps: usize) -> Outcome<()> {
        let mut cache = self.engine.cache();
        let mask = self.engine.generation_mask();
        let mut token = self.step(&mut cache, &self.ids(16, 1), mask)?;
        let mut seconds = Vec::new();
        for step in 0..steps + 4 {
            let start = Instant::now();
            token = self.step(&mut cache, &[token], mask)?;
            // The first ones are launched one by one, then recorded.
            if step >= 4 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        let (bytes, flops) = (2.0 * self.used(), 2.0 * self.used());
        self.put("decode", "batch 1", Timed { seconds, bytes, flops }, 1.0);
        Ok(())
    }

    fn prefill(&mut self, tokens: usize) -> Outcome<()> {
        let ids = self.ids(tokens, 2);
        let mask = self.engine.generation_mask();
        let seconds = repeated(|| {
            self.step(&mut self.engine.cache(), &ids, mask)?;
            Ok(())
        })?;
        let timed = self.many(seconds, tokens);
        self.put("prefill", &format!("{tokens} tokens"), timed, tokens as f64);
        Ok(())
    }

    fn embed(&mut self, texts: usize, each: usize) -> Outcome<()> {
        let ids: Vec<Vec<u32>> = (0..texts).map(|n| self.ids(each, 3 + n as u64)).collect();
        let seconds = repeated(|| {
            let mut caches: Vec<_> = ids.iter().map(|_| self.engine.cache()).collect();
            let want = Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true };
            let mask = Mask::Bidirectional { window: None };
            let mut sequences: Vec<Sequence<'_>> = ids
                .iter()
                .zip(&mut caches)
                .map(|(tokens, cache)| Sequence { tokens, cache, mask, want: want.clone() })
                .collect();
            self.engine.run(&mut sequences).map_err(said).map(|_| ())
        })?;
        let timed = self.many(seconds, texts * each);
        self.put("embed", &format!("{texts} x {each} tokens"), timed, (texts * each) as f64);
        Ok(())
    }

    fn many(&self, seconds: Vec<f64>, tokens: usize) -> Timed {
        // Of `lm_head` there is one row at most.
        let head = self.engine.config().vocab * self.engine.config().dim;
        let used = self.used() - head as f64;
        Timed { seconds, bytes: 2.0 * used, flops: 2.0 * used * tokens as f64 }
    }

    /// Ids that no tokenizer would give, the same in each run.
    fn ids(&self, n: usize, seed: u64) -> Vec<u32> {
        let vocab = self.engine.config().vocab as f32;
        random(n, seed, 1.0).into_iter().map(|v| ((v + 1.0) / 2.0 * (vocab - 1.0)) as u32).collect()
    }
}

fn gigabytes(bytes: f64) -> String {
    format!("{:.1} GB", bytes / 1e9)
}

/// Seconds of five runs after one, sorted.
fn repeated(mut run: impl FnMut() -> Outcome<()>) -> Outcome<Vec<f64>> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}
