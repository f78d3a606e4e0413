//! The case table: every op of the trait, in the shapes that break kernels.
//!
//! A [`Case`] knows its op, makes its inputs from its seed, runs on any backend and computes what
//! should come out: plain loops in f64 over the same inputs, from the formulas in
//! `model/ops.rs`, sharing nothing with a backend. Benches time the same cases.
//!
//! Whatever an op must not look at is poisoned with NaN: the rows of a buffer beyond those that it
//! names, unused pages, the padding of a sequence's last page. Weights are rounded to their type
//! first, so the expected values are those of the weights that the backend gets.

use gritlm::model::ops::{
    Attention, Draw, Drawn, Expert, GateUp, Layout, LinearAdd, Logits, Mask, NO_PAGE, Ops, PAGE,
    PoolShape, PoolSpan, Pooling, Qkv, RmsNorm, Route, Search, Span,
};
use gritlm::model::weights::{Dtype, Tensor};
use half::{bf16, f16};
use pollster::block_on;

/// One op with its shape, the type of its weights, and a seed for its inputs.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Unique; begins with the op's stem.
    pub(crate) name: String,
    pub(crate) op: Op,
    /// How the weights are stored, where the op has any.
    pub(crate) dtype: Dtype,
    /// Multiplies the activations, whose mean square is 1 without it.
    pub(crate) scale: f32,
    /// Rounds activations, weights, keys and values to bf16, for a backend that computes with them
    /// so: what is measured is then its own error, not that of the rounding, which no op can undo
    /// (of a score of 100 it changes e^score by half).
    pub(crate) bf16: bool,
    pub(crate) seed: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Embed {
        rows: u32,
        vocab: u32,
        dim: u32,
    },
    RmsNorm(RmsNorm),
    Qkv(Qkv, Vec<Seq>),
    Attention(Attention, Vec<Seq>),
    LinearAdd(LinearAdd),
    GateUp(GateUp),
    /// `route`, `expert_gate_up` and `expert_down_add`: what lies between them has no fixed order.
    Expert(Expert),
    Pool {
        dim: u32,
        spans: Vec<PoolSpan>,
    },
    Logits {
        p: Logits,
        rows: Vec<u32>,
    },
    /// `step`: logits are multiples of it, so that many are equal; 0 for any value.
    Sample {
        vocab: u32,
        draws: Vec<Draw>,
        step: f32,
    },
    Search(Search),
}

/// A sequence of a batch: tokens in its pages, tokens of this pass, and what they see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seq {
    pub(crate) past: u32,
    pub(crate) rows: u32,
    pub(crate) mask: Mask,
}

/// What [`Case::ready`] is asked for.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// Records the op; for `sample` and `search` also brings the results back.
    Launch,
    /// Brings back the results of the last launch.
    Read(&'a mut Vec<f32>),
}

/// A case with its inputs on a device.
pub(crate) type Ready<'a> = Box<dyn FnMut(Step<'_>) + 'a>;

/// Rows of every buffer beyond those in use.
const SPARE: usize = 3;

/// `qkv` and `attention` work on the second of two layers.
const LAYERS: usize = 2;

/// What `qkv` finds in the pages, which must still be there in slots that are no row's: small, so
/// that the many do not hide an error in the few.
const BEFORE: f32 = 1e-3;

impl Case {
    pub(crate) fn new(op: Op, dtype: Dtype) -> Self {
        Self::scaled(op, dtype, 1.0)
    }

    pub(crate) fn scaled(op: Op, dtype: Dtype, scale: f32) -> Self {
        let mut name = op.name();
        if op.has_weights() {
            name += &format!(" {}", dtype.to_string().to_lowercase());
        }
        if scale != 1.0 {
            name += &format!(" times {scale}");
        }
        // FNV-1a: a case keeps its inputs when the table grows.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { name, op, dtype, scale, bf16: false, seed }
    }

    /// What the op reads and writes at least: weights as stored, activations in f32, each once;
    /// a cached key or value in `cached` bytes.
    pub(crate) fn bytes_with(&self, cached: usize) -> u64 {
        let weights = |values: usize| values * self.dtype.bytes();
        let bytes = match &self.op {
            &Op::Embed { rows, dim, .. } => {
                let values = rows as usize * dim as usize;
                values * 4 + weights(values) + rows as usize * 4
            }
            &Op::RmsNorm(RmsNorm { rows, dim, .. }) => {
                2 * 4 * rows as usize * dim as usize + weights(dim as usize)
            }
            Op::Qkv(p, _) => {
                let (rows, dim, [q, kv]) = (p.rows as usize, p.dim as usize, qkv_widths(p));
                rows * (4 * (dim + q) + cached * 2 * kv) + weights(dim * (q + 2 * kv))
            }
            Op::Attention(p, sequences) => {
                let (q, kv) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
                let rows: u32 = sequences.iter().map(|s| s.rows).sum();
                let seen: usize = sequences.iter().map(Seq::seen).sum();
                2 * 4 * rows as usize * q as usize + cached * 2 * seen * kv as usize
            }
            &Op::LinearAdd(LinearAdd { rows, inner, outer }) => {
                let (inner, outer) = (inner as usize, outer as usize);
                4 * rows as usize * (inner + 2 * outer) + weights(inner * outer)
            }
            &Op::GateUp(GateUp { rows, dim, hidden }) => {
                let (dim, hidden) = (dim as usize, hidden as usize);
                4 * rows as usize * (dim + hidden) + weights(2 * dim * hidden)
            }
            Op::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                let mut used: Vec<usize> =
                    self.routed(p).2.iter().flatten().map(|&(e, _)| e).collect();
                used.sort_unstable();
                used.dedup();
                4 * rows * (3 * dim + 2 * top_k * hidden)
                    + weights(experts * dim + 3 * used.len() * dim * hidden)
            }
            Op::Pool { dim, spans } => {
                let rows: usize = spans.iter().map(|s| pooled(s).len() + 1).sum();
                4 * rows * *dim as usize
            }
            Op::Logits { p, rows } => {
                let (dim, vocab) = (p.dim as usize, p.vocab as usize);
                4 * rows.len() * (dim + vocab) + weights(dim * vocab + dim)
            }
            Op::Sample { vocab, draws, .. } => 4 * draws.len() * *vocab as usize,
            Op::Search(p) => {
                let vectors = (p.queries + p.documents) as usize;
                4 * vectors * p.dim as usize + 8 * (p.queries * p.top_k) as usize
            }
        };
        bytes as u64
    }

    /// [`Case::bytes_with`] pages of f32.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_with(4)
    }

    /// Additions and multiplications that the formula has, without what is next to nothing beside
    /// them (exponentials, rotations, norms before a product).
    pub(crate) fn flops(&self) -> u64 {
        let product =
            |rows: u32, inner: u32, outer: u32| 2 * rows as u64 * inner as u64 * outer as u64;
        match &self.op {
            Op::Embed { .. } => 0,
            Op::RmsNorm(p) => product(p.rows, p.dim, 2),
            Op::Qkv(p, _) => product(p.rows, p.dim, (p.heads + 2 * p.kv_heads) * p.head_dim),
            Op::Attention(p, sequences) => {
                let pairs: usize = sequences.iter().flat_map(Seq::keys).map(|k| k.len()).sum();
                2 * product(p.heads, p.head_dim, 1) * pairs as u64
            }
            Op::LinearAdd(p) => product(p.rows, p.inner, p.outer),
            Op::GateUp(p) => product(p.rows, p.dim, 2 * p.hidden),
            Op::Expert(p) => {
                product(p.rows, p.dim, p.experts) + product(p.rows * p.top_k, p.dim, 3 * p.hidden)
            }
            Op::Pool { dim, spans } => {
                spans.iter().map(|s| product(pooled(s).len() as u32, *dim, 1)).sum()
            }
            Op::Logits { p, rows } => product(rows.len() as u32, p.dim, p.vocab),
            Op::Sample { vocab, draws, .. } => product(draws.len() as u32, *vocab, 1),
            Op::Search(p) => product(p.queries, p.documents, p.dim),
        }
    }

    /// How many values at the beginning of the result are ids, which must be equal and not close.
    pub(crate) fn exact(&self) -> usize {
        match &self.op {
            Op::Sample { vocab, draws, .. } => {
                draws.iter().map(|d| 1 + d.logprobs.min(*vocab) as usize).sum()
            }
            Op::Search(p) => p.queries as usize * p.top_k.min(p.documents) as usize,
            _ => 0,
        }
    }

    /// The result on a backend.
    pub(crate) fn run<O: Ops>(&self, ops: &O) -> Vec<f32> {
        let (mut ready, mut out) = (self.ready(ops), Vec::new());
        ready(Step::Launch);
        ready(Step::Read(&mut out));
        out
    }

    /// Inputs on the device; then as often as asked the op itself. Panics where the device refuses.
    pub(crate) fn ready<'a, O: Ops>(&'a self, ops: &'a O) -> Ready<'a> {
        // A buffer with these rows, and one to write to; both end in NaN.
        let filled = |cols: u32, mut values: Vec<f32>| {
            values.resize(values.len() + SPARE * cols as usize, f32::NAN);
            ops.upload(values.len() / cols as usize, cols as usize, &values).unwrap()
        };
        let empty = |rows: u32, cols: u32| filled(cols, vec![f32::NAN; (rows * cols) as usize]);
        let read =
            move |buffer: &O::Buffer, len: u32| block_on(ops.read(buffer, len as usize)).unwrap();
        match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let (batch, table) = (self.tokens(rows, vocab), self.weight(1, vocab, dim));
                let batch = ops.batch(&batch).unwrap();
                let table = ops.matrix(&table.tensors(&[vocab])).unwrap();
                let mut x = empty(rows, dim);
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.embed(&batch, &table, &mut x),
                    Step::Read(to) => *to = read(&x, rows * dim),
                })
            }
            &Op::RmsNorm(p) => {
                let x = filled(p.dim, self.activations(1, p.rows * p.dim));
                let weight = ops.matrix(&[self.norm(2, p.dim).vector()]).unwrap();
                let mut h = empty(p.rows, p.dim);
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.rmsnorm(p, &x, &weight, &mut h),
                    Step::Read(to) => *to = read(&h, p.rows * p.dim),
                })
            }
            Op::Qkv(p, sequences) => {
                let (p, [q_width, kv]) = (*p, qkv_widths(p).map(|w| w as u32));
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let h = filled(p.dim, self.activations(1, p.rows * p.dim));
                let w = self.weight(2, q_width + 2 * kv, p.dim);
                let w = ops.matrix(&w.tensors(&[q_width, kv, kv])).unwrap();
                let batch = ops.batch(&layout).unwrap();
                let mut q = empty(p.rows, q_width);
                let mut pages = ops.pages(pool).unwrap();
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let tokens = pool.pages * PAGE;
                ops.import_pages(&mut pages, &all, tokens, &self.cache(&pool, BEFORE));
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.qkv(p, &h, &w, &batch, &mut q, &mut pages),
                    Step::Read(to) => {
                        *to = read(&q, p.rows * q_width);
                        to.extend(block_on(ops.export_pages(&pages, &all, tokens)).unwrap());
                    }
                })
            }
            Op::Attention(p, sequences) => {
                let (p, width) = (*p, p.heads * p.head_dim);
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let rows = layout.tokens.len() as u32;
                let q = filled(width, self.activations(1, rows * width));
                let batch = ops.batch(&layout).unwrap();
                let mut pages = ops.pages(pool).unwrap();
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let mut cache = self.cache(&pool, 1.0);
                poison_unused(&layout, &pool, &mut cache);
                ops.import_pages(&mut pages, &all, pool.pages * PAGE, &cache);
                let mut out = empty(rows, width);
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.attention(p, &q, &pages, &batch, &mut out),
                    Step::Read(to) => *to = read(&out, rows * width),
                })
            }
            &Op::LinearAdd(p) => {
                let a = filled(p.inner, self.activations(1, p.rows * p.inner));
                // Unequal parts, which end inside any tile.
                let first = p.outer / 3;
                let w = self.weight(2, p.outer, p.inner);
                let w = ops.matrix(&w.tensors(&[first, p.outer - first])).unwrap();
                let mut x = filled(p.outer, self.activations(3, p.rows * p.outer));
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.linear_add(p, &a, &w, &mut x),
                    Step::Read(to) => *to = read(&x, p.rows * p.outer),
                })
            }
            &Op::GateUp(p) => {
                let h = filled(p.dim, self.activations(1, p.rows * p.dim));
                let w = self.weight(2, 2 * p.hidden, p.dim);
                let w = ops.matrix(&w.tensors(&[p.hidden; 2])).unwrap();
                let mut out = empty(p.rows, p.hidden);
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.gate_up(p, &h, &w, &mut out),
                    Step::Read(to) => *to = read(&out, p.rows * p.hidden),
                })
            }
            &Op::Expert(p) => {
                let Expert { rows, dim, hidden, experts, top_k } = p;
                let (h, router, _) = self.routed(&p);
                let h = filled(dim, h);
                let router = ops.matrix(&router.tensors(&[experts])).unwrap();
                let [gate_up, down] = self.experts(&p);
                let parts = vec![hidden; 2 * experts as usize];
                let gate_up = ops.matrix(&gate_up.tensors(&parts)).unwrap();
                let parts = vec![dim; experts as usize];
                let down = ops.matrix(&down.tensors(&parts)).unwrap();
                let mut x = filled(dim, self.activations(5, rows * dim));
                let mut inner = empty(rows * top_k, hidden);
                let (n, k) = (experts as usize, top_k as usize);
                let mut routing = ops.routing(rows as usize + SPARE, n, k).unwrap();
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => {
                        ops.route(Route { rows, dim, experts, top_k }, &h, &router, &mut routing);
                        ops.expert_gate_up(p, &h, &gate_up, &routing, &mut inner);
                        ops.expert_down_add(p, &inner, &down, &routing, &mut x)
                    }
                    Step::Read(to) => {
                        *to = block_on(ops.read_routing(&routing, rows as usize)).unwrap();
                        to.extend(read(&x, rows * dim));
                    }
                })
            }
            Op::Pool { dim, spans } => {
                let (h, mut out) =
                    (filled(*dim, self.hidden(*dim, spans)), empty(count(spans), *dim));
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.pool(*dim, spans, &h, &mut out),
                    Step::Read(to) => *to = read(&out, count(spans) * dim),
                })
            }
            Op::Logits { p, rows } => {
                let x = filled(p.dim, self.wanted(p, rows));
                let norm = ops.matrix(&[self.norm(2, p.dim).vector()]).unwrap();
                let w = ops.matrix(&self.weight(3, p.vocab, p.dim).tensors(&[p.vocab])).unwrap();
                let mut out = empty(count(rows), p.vocab);
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => ops.logits(*p, rows, &x, &norm, &w, &mut out),
                    Step::Read(to) => *to = read(&out, count(rows) * p.vocab),
                })
            }
            Op::Sample { vocab, draws, step } => {
                let logits = filled(*vocab, self.drawn_from(*vocab, draws, *step));
                let mut drawn = Vec::new();
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => drawn = block_on(ops.sample(*vocab, draws, &logits)).unwrap(),
                    Step::Read(to) => *to = drawn_values(&drawn),
                })
            }
            &Op::Search(p) => {
                let queries = filled(p.dim, self.steps(1, p.queries * p.dim));
                let corpus = filled(p.dim, self.steps(2, p.documents * p.dim));
                let mut found = Vec::new();
                Box::new(move |step: Step<'_>| match step {
                    Step::Launch => found = block_on(ops.search(p, &queries, &corpus)).unwrap(),
                    Step::Read(to) => *to = found_values(&found),
                })
            }
        }
    }

    /// The result by the formula, in f64.
    pub(crate) fn expected(&self) -> Vec<f32> {
        let values: Vec<f64> = match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let table = self.weight(1, vocab, dim);
                let tokens = self.tokens(rows, vocab).tokens;
                return tokens.iter().flat_map(|&t| table.row(t as usize).to_vec()).collect();
            }
            &Op::RmsNorm(p) => {
                let (x, weight) = (self.activations(1, p.rows * p.dim), self.norm(2, p.dim));
                x.chunks(p.dim as usize).flat_map(|x| normed(x, &weight, p.eps)).collect()
            }
            Op::Qkv(p, sequences) => return self.expected_qkv(p, sequences),
            Op::Attention(p, sequences) => self.expected_attention(p, sequences),
            &Op::LinearAdd(p) => {
                let a = self.activations(1, p.rows * p.inner);
                let x = self.activations(3, p.rows * p.outer);
                let w = self.weight(2, p.outer, p.inner);
                let products = a.chunks(p.inner as usize).flat_map(|a| w.times(a, 0, p.outer));
                x.iter().zip(products).map(|(&x, product)| f64::from(x) + product).collect()
            }
            &Op::GateUp(p) => {
                let h = self.activations(1, p.rows * p.dim);
                let w = self.weight(2, 2 * p.hidden, p.dim);
                h.chunks(p.dim as usize).flat_map(|h| gated(h, &w, 0, p.hidden)).collect()
            }
            Op::Expert(p) => {
                let (h, router, chosen) = self.routed(p);
                let [gate_up, down] = self.experts(p);
                let rows = || h.chunks(p.dim as usize);
                let mut out: Vec<f64> =
                    rows().flat_map(|h| router.times(h, 0, p.experts)).collect();
                let x = self.activations(5, p.rows * p.dim);
                for ((h, x), chosen) in rows().zip(x.chunks(p.dim as usize)).zip(chosen) {
                    let mut x: Vec<f64> = x.iter().copied().map(f64::from).collect();
                    for (expert, weight) in chosen {
                        let first = expert * 2 * p.hidden as usize;
                        let inner = gated(h, &gate_up, first, p.hidden);
                        let added = down.times(&inner, expert * p.dim as usize, p.dim);
                        x.iter_mut().zip(added).for_each(|(x, added)| *x += weight * added);
                    }
                    out.extend(x);
                }
                out
            }
            Op::Pool { dim, spans } => {
                let h = self.hidden(*dim, spans);
                spans.iter().flat_map(|span| expected_pool(*dim as usize, span, &h)).collect()
            }
            Op::Logits { p, rows } => {
                let (x, norm) = (self.wanted(p, rows), self.norm(2, p.dim));
                let w = self.weight(3, p.vocab, p.dim);
                let row = |&r: &u32| {
                    let x = &x[(r * p.dim) as usize..][..p.dim as usize];
                    w.times(&normed(x, &norm, p.eps), 0, p.vocab)
                };
                rows.iter().flat_map(row).collect()
            }
            Op::Sample { vocab, draws, step } => {
                let logits = self.drawn_from(*vocab, draws, *step);
                let rows = draws.iter().zip(logits.chunks(*vocab as usize));
                let drawn: Vec<Drawn> = rows.map(|(d, l)| expected_draw(d, l)).collect();
                return drawn_values(&drawn);
            }
            Op::Search(p) => {
                let queries = self.steps(1, p.queries * p.dim);
                let corpus = self.steps(2, p.documents * p.dim);
                let best = queries.chunks(p.dim as usize).map(|query| {
                    let score = |document: &[f32]| dot(query, document) as f32;
                    let scores: Vec<f32> = corpus.chunks(p.dim as usize).map(score).collect();
                    let best = largest_first(&scores).into_iter().take(p.top_k as usize);
                    best.map(|i| (i as u32, scores[i])).collect::<Vec<_>>()
                });
                return found_values(&best.collect::<Vec<_>>());
            }
        };
        values.into_iter().map(|v| v as f32).collect()
    }

    fn expected_qkv(&self, p: &Qkv, sequences: &[Seq]) -> Vec<f32> {
        let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
        let (head_dim, heads, kv_heads) =
            (p.head_dim as usize, p.heads as usize, p.kv_heads as usize);
        let h = self.activations(1, p.rows * p.dim);
        let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
        let w = self.weight(2, width, p.dim);
        let (mut out, mut cache) = (Vec::new(), self.cache(&pool, BEFORE));
        for (r, h) in h.chunks(p.dim as usize).enumerate() {
            let vectors = w.times(h, 0, width);
            for (n, vector) in vectors.chunks(head_dim).enumerate() {
                let turned: Vec<f32> = (0..head_dim)
                    .map(|d| {
                        let (pair, half) = (d % (head_dim / 2), head_dim / 2);
                        let (a, b) = (vector[pair], vector[pair + half]);
                        // The angle is defined in f32, as in transformers.
                        let angle = layout.frequencies[pair] * layout.positions[r] as f32;
                        let (sin, cos) = f64::from(angle).sin_cos();
                        let turned = if d < half { a * cos - b * sin } else { b * cos + a * sin };
                        (if n < heads + kv_heads { turned } else { vector[d] }) as f32
                    })
                    .collect();
                if n < heads {
                    out.extend(turned);
                } else {
                    let (which, head) = ((n - heads) / kv_heads, (n - heads) % kv_heads);
                    let at = cached(&pool, which, head, layout.slots[r] as usize);
                    cache[at..at + head_dim].copy_from_slice(&turned);
                }
            }
        }
        out.extend(cache);
        out
    }

    fn expected_attention(&self, p: &Attention, sequences: &[Seq]) -> Vec<f64> {
        let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
        let (head_dim, heads) = (p.head_dim as usize, p.heads as usize);
        let q = self.activations(1, layout.tokens.len() as u32 * p.heads * p.head_dim);
        let cache = self.cache(&pool, 1.0);
        let mut q = q.chunks(head_dim);
        let mut out = Vec::new();
        for (s, span) in sequences.iter().zip(&layout.spans) {
            for keys in s.keys() {
                for head in 0..heads {
                    let q = q.next().unwrap();
                    let vector = |which: usize, j: usize| {
                        let page = layout.tables[span.table as usize + j / PAGE] as usize;
                        let head = head / (heads / p.kv_heads as usize);
                        let at = cached(&pool, which, head, page * PAGE + j % PAGE);
                        &cache[at..at + head_dim]
                    };
                    let score = |&j: &usize| dot(q, vector(0, j)) / (head_dim as f64).sqrt();
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    let mut mixed = vec![0.0; head_dim];
                    for (score, &j) in scores.iter().zip(&keys) {
                        let weight = (score - max).exp() / sum;
                        for (mixed, &v) in mixed.iter_mut().zip(vector(1, j)) {
                            *mixed += weight * f64::from(v);
                        }
                    }
                    out.extend(mixed);
                }
            }
        }
        out
    }

    fn random(&self, stream: u64) -> Random {
        // Through the generator once: neighbouring states are each other's next numbers.
        Random(Random(self.seed ^ stream).next())
    }

    /// Activations with a mean square of `scale`².
    fn activations(&self, stream: u64, len: u32) -> Vec<f32> {
        let mut random = self.random(stream);
        (0..len).map(|_| self.kept(random.unit() * 3f32.sqrt() * self.scale)).collect()
    }

    /// A value as the backend takes it.
    fn kept(&self, value: f32) -> f32 {
        rounded(if self.bf16 { Dtype::Bf16 } else { Dtype::F32 }, value)
    }

    /// Quarters from −½ to ½: inner products are exact in every format, and many are equal.
    fn steps(&self, stream: u64, len: u32) -> Vec<f32> {
        let mut random = self.random(stream);
        (0..len).map(|_| random.below(5) as f32 / 4.0 - 0.5).collect()
    }

    /// A matrix that keeps the mean square of what it is multiplied by.
    fn weight(&self, stream: u64, rows: u32, cols: u32) -> Weight {
        let scale = (3.0 / cols as f32).sqrt();
        self.stored(stream, rows, cols, |unit| unit * scale)
    }

    fn norm(&self, stream: u64, dim: u32) -> Weight {
        self.stored(stream, 1, dim, |unit| 1.0 + unit / 2.0)
    }

    fn stored(&self, stream: u64, rows: u32, cols: u32, f: impl Fn(f32) -> f32) -> Weight {
        let (dtype, mut random) = (self.dtype, self.random(stream));
        let len = rows as usize * cols as usize;
        let values = (0..len).map(|_| rounded(dtype, self.kept(f(random.unit())))).collect();
        Weight { dtype, cols: cols as usize, values }
    }

    /// Tokens for `embed`, as one sequence.
    fn tokens(&self, rows: u32, vocab: u32) -> Layout {
        let s = Seq { past: 0, rows, mask: Mask::Causal { window: None } };
        let sequences = if rows == 0 { vec![] } else { vec![s] };
        let (mut layout, mut random) = (self.layout(&sequences, 1, 2).0, self.random(8));
        layout.tokens.fill_with(|| random.below(u64::from(vocab)) as u32);
        layout
    }

    /// A batch of these sequences in pages in random order, two of which nobody uses. Where a
    /// window has moved on, the pages behind it are gone.
    fn layout(&self, sequences: &[Seq], kv_heads: u32, head_dim: u32) -> (Layout, PoolShape) {
        let pages = 2 + sequences.iter().map(|s| s.live_pages().len()).sum::<usize>();
        let (mut free, mut random): (Vec<u32>, _) = ((0..pages as u32).collect(), self.random(9));
        for i in (1..pages).rev() {
            free.swap(i, random.below(i as u64 + 1) as usize);
        }
        let frequency = |pair: u32| 10000f32.powf(-2.0 * pair as f32 / head_dim as f32);
        let mut layout = Layout {
            tokens: vec![],
            positions: vec![],
            slots: vec![],
            spans: vec![],
            tables: vec![],
            frequencies: (0..head_dim / 2).map(frequency).collect(),
        };
        for s in sequences {
            let (row, table) = (layout.tokens.len() as u32, layout.tables.len());
            let (live, mask) = (s.live_pages(), s.mask);
            layout.spans.push(Span { row, rows: s.rows, past: s.past, table: table as u32, mask });
            layout.tables.resize(table + live.start, NO_PAGE);
            layout.tables.extend(free.drain(free.len() - live.len()..));
            for position in s.past..s.past + s.rows {
                let page = layout.tables[table + position as usize / PAGE];
                layout.tokens.push(0);
                layout.positions.push(position);
                layout.slots.push(page * PAGE as u32 + position % PAGE as u32);
            }
            // Tables need not be adjacent.
            layout.tables.push(NO_PAGE);
        }
        let (kv_heads, head_dim) = (kv_heads as usize, head_dim as usize);
        (layout, PoolShape { layers: LAYERS, pages, kv_heads, head_dim })
    }

    /// Something in every slot of the pool, in the order of an export of all pages.
    fn cache(&self, pool: &PoolShape, scale: f32) -> Vec<f32> {
        let mut random = self.random(10);
        let len = pool.layers * 2 * pool.kv_heads * pool.pages * PAGE * pool.head_dim;
        (0..len).map(|_| self.kept(random.unit() * 3f32.sqrt() * scale)).collect()
    }

    /// Activations, router, and each row's experts with their weights. A row whose choice a
    /// rounding could change is drawn again.
    fn routed(&self, p: &Expert) -> (Vec<f32>, Weight, Vec<Chosen>) {
        let [rows, dim, _, experts, top_k] = expert_sizes(p);
        let (router, mut random) = (self.weight(2, p.experts, p.dim), self.random(1));
        let (mut h, mut chosen) = (Vec::new(), Vec::new());
        while chosen.len() < rows {
            let row: Vec<f32> =
                (0..dim).map(|_| self.kept(random.unit() * 3f32.sqrt() * self.scale)).collect();
            let logits = router.times(&row, 0, p.experts);
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            if top_k < experts && logits[order[top_k - 1]] - logits[order[top_k]] < 0.02 {
                continue;
            }
            // The softmax's sum over all experts cancels when the weights are renormalised.
            let max = logits[order[0]];
            let sum: f64 = order[..top_k].iter().map(|&e| (logits[e] - max).exp()).sum();
            let weight = |&e: &usize| (e, (logits[e] - max).exp() / sum);
            chosen.push(order[..top_k].iter().map(weight).collect());
            h.extend(row);
        }
        (h, router, chosen)
    }

    fn experts(&self, p: &Expert) -> [Weight; 2] {
        let gate_up = self.weight(3, p.experts * 2 * p.hidden, p.dim);
        [gate_up, self.weight(4, p.experts * p.dim, p.hidden)]
    }

    /// Hidden states; NaN in rows that belong to no span.
    fn hidden(&self, dim: u32, spans: &[PoolSpan]) -> Vec<f32> {
        let end = spans.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
        let mut h = self.activations(1, end * dim);
        for (row, h) in (0..).zip(h.chunks_mut(dim as usize)) {
            if !spans.iter().any(|s| (s.row..s.row + s.rows).contains(&row)) {
                h.fill(f32::NAN);
            }
        }
        h
    }

    /// The residual stream; NaN in rows whose logits nobody wants.
    fn wanted(&self, p: &Logits, rows: &[u32]) -> Vec<f32> {
        let mut x = self.activations(1, rows.iter().max().map_or(0, |r| r + 1) * p.dim);
        for (row, x) in (0..).zip(x.chunks_mut(p.dim as usize)) {
            if !rows.contains(&row) {
                x.fill(f32::NAN);
            }
        }
        x
    }

    /// Logits as peaked as a model's.
    fn drawn_from(&self, vocab: u32, draws: &[Draw], step: f32) -> Vec<f32> {
        let mut random = self.random(1);
        let mut logit = || 6.0 * (random.unit() + random.unit() + random.unit());
        let logits = (0..vocab * count(draws)).map(|_| logit());
        // Plus 0, because −0 is equal to 0 and sorts below it.
        logits.map(|l| if step > 0.0 { (l / step).round() * step + 0.0 } else { l }).collect()
    }
}

const CAUSAL: Mask = Mask::Causal { window: None };
const BOTH: Mask = Mask::Bidirectional { window: None };

fn causal(window: u32) -> Mask {
    Mask::Causal { window: Some(window) }
}

fn both(window: u32) -> Mask {
    Mask::Bidirectional { window: Some(window) }
}

/// The table.
pub(crate) fn cases() -> Vec<Case> {
    let mut all = cases_without_weights();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        all.extend(cases_with_weights(dtype));
    }
    all
}

fn seqs(of: &[(u32, u32, Mask)]) -> Vec<Seq> {
    of.iter().map(|&(past, rows, mask)| Seq { past, rows, mask }).collect()
}

fn cases_with_weights(dtype: Dtype) -> Vec<Case> {
    let mut all = Vec::new();
    let eps = 1e-5;
    for (rows, vocab, dim) in [(0, 9, 160), (1, 97, 33), (5, 1, 1), (130, 300, 208)] {
        all.push(Case::new(Op::Embed { rows, vocab, dim }, dtype));
    }
    for (rows, dim) in [(0, 160), (1, 1), (1, 4096), (3, 33), (7, 160), (40, 1025), (130, 208)] {
        all.push(Case::new(Op::RmsNorm(RmsNorm { rows, dim, eps }), dtype));
    }
    for scale in [1e-3, 1e4] {
        // Where eps counts, and where squares are large.
        all.push(Case::scaled(Op::RmsNorm(RmsNorm { rows: 2, dim: 100, eps }), dtype, scale));
    }

    let passes = [
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 5, BOTH), (126, 4, CAUSAL), (700, 1, causal(130)), (32700, 3, causal(12))]),
        seqs(&[(250, 40, CAUSAL), (0, 90, both(3))]),
    ];
    for (dim, heads, kv_heads, head_dim) in
        [(160, 4, 4, 64), (33, 4, 2, 6), (1025, 4, 1, 80), (208, 8, 1, 128)]
    {
        for pass in &passes {
            let rows = pass.iter().map(|s| s.rows).sum();
            let p = Qkv { rows, dim, heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            all.push(Case::new(Op::Qkv(p, pass.clone()), dtype));
        }
    }

    for (inner, outer) in
        [(1, 1), (31, 33), (100, 160), (160, 208), (1024, 64), (1025, 7), (2100, 65)]
    {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 40, 130] {
            all.push(Case::new(Op::LinearAdd(LinearAdd { rows, inner, outer }), dtype));
        }
    }
    for (dim, hidden) in [(31, 33), (160, 208), (1025, 1), (2100, 100)] {
        for rows in [1, 4, 5, 8, 40, 130] {
            all.push(Case::new(Op::GateUp(GateUp { rows, dim, hidden }), dtype));
        }
    }
    // Gates of which e⁻ˣ overflows.
    let p = GateUp { rows: 3, dim: 160, hidden: 208 };
    all.push(Case::scaled(Op::GateUp(p), dtype, 60.0));

    for (rows, dim, hidden, experts, top_k) in [
        (1, 160, 208, 8, 2),
        (2, 33, 31, 3, 1),
        (7, 100, 1, 4, 4),
        (40, 1025, 65, 8, 2),
        (130, 160, 100, 8, 2),
        (5, 64, 1100, 5, 3),
    ] {
        all.push(Case::new(Op::Expert(Expert { rows, dim, hidden, experts, top_k }), dtype));
    }
    for (rows, dim, vocab) in [
        (vec![0], 160, 97),
        (vec![5, 0, 5, 3], 1025, 333),
        (vec![2], 33, 1),
        (vec![9, 8, 7, 6, 1, 0, 12], 2100, 65),
    ] {
        all.push(Case::new(Op::Logits { p: Logits { dim, vocab, eps }, rows }, dtype));
    }
    all
}

fn cases_without_weights() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |op: Op, scale: f32| all.push(Case::scaled(op, Dtype::F32, scale));

    let batches = [
        seqs(&[]),
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 40, causal(1)), (0, 40, causal(3)), (0, 41, both(1)), (0, 39, both(12))]),
        seqs(&[(0, 300, CAUSAL), (0, 261, BOTH)]),
        seqs(&[(127, 1, CAUSAL), (128, 1, CAUSAL), (1000, 1, causal(130)), (255, 1, BOTH)]),
        seqs(&[(126, 5, CAUSAL), (250, 40, BOTH), (300, 130, causal(130)), (513, 7, both(130))]),
        seqs(&[(0, 17, BOTH), (260, 3, causal(3)), (400, 1, causal(1)), (0, 129, causal(12))]),
    ];
    for (heads, kv_heads, head_dim) in
        [(4, 4, 64), (4, 2, 128), (8, 2, 80), (8, 1, 64), (4, 1, 6), (8, 1, 128)]
    {
        for batch in &batches {
            let p = Attention { heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            add(Op::Attention(p, batch.clone()), 1.0);
        }
    }
    // Scores whose exponentials overflow unless the largest is subtracted.
    let p = Attention { heads: 4, kv_heads: 1, head_dim: 64, layer: LAYERS as u32 - 1 };
    add(Op::Attention(p, seqs(&[(0, 150, BOTH), (3, 20, causal(12))])), 40.0);

    let span =
        |row, rows, skip, pooling, normalize| PoolSpan { row, rows, skip, pooling, normalize };
    let poolings = [Pooling::Mean, Pooling::WeightedMean, Pooling::Cls, Pooling::LastToken];
    for dim in [1, 160, 1025] {
        add(Op::Pool { dim, spans: vec![] }, 1.0);
        add(Op::Pool { dim, spans: vec![span(2, 1, 0, Pooling::Mean, true)] }, 1.0);
        // Rows between spans, which NaN fills; every pooling with and without skip.
        for normalize in [false, true] {
            let mut spans = vec![span(1000, 513, 100, Pooling::WeightedMean, normalize)];
            for (i, pooling) in (0..).zip(poolings) {
                for (row, rows, skip) in [(0, 1, 0), (1, 40, 0), (45, 9, 8), (54, 33, 5)] {
                    spans.push(span(100 * i + row, rows, skip, pooling, normalize));
                }
            }
            add(Op::Pool { dim, spans }, 1.0);
        }
    }

    let greedy = Draw {
        seen: vec![],
        penalty: 1.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.5,
        logprobs: 0,
    };
    let warm = Draw { temperature: 0.8, ..greedy.clone() };
    let draws = vec![
        Draw { logprobs: 5, ..greedy.clone() },
        Draw { uniform: 0.0, logprobs: 1, ..warm.clone() },
        Draw { uniform: 0.77, ..warm.clone() },
        Draw { temperature: 2.0, top_k: 1, uniform: 0.99, ..warm.clone() },
        Draw { temperature: 5.0, top_k: 7, uniform: 0.999_999_94, ..warm.clone() },
        Draw { temperature: 1.5, top_p: 0.9, uniform: 0.83, logprobs: 20, ..warm.clone() },
        Draw { top_p: 0.0, uniform: 0.9, ..warm.clone() },
        Draw { temperature: 1.7, min_p: 0.05, uniform: 0.97, ..warm.clone() },
        Draw { top_k: 30, top_p: 0.95, min_p: 0.01, uniform: 0.61, ..warm.clone() },
        Draw { seen: (0..50).collect(), penalty: 1.3, logprobs: 2, ..greedy.clone() },
        Draw { seen: vec![0, 3, 31], penalty: 0.5, top_k: 20, uniform: 0.4, ..warm.clone() },
        // Flat enough that negative logits, which a penalty multiplies, decide.
        Draw { seen: (0..40).collect(), penalty: 3.0, temperature: 9.0, ..warm.clone() },
    ];
    for (vocab, step) in [(333, 0.0), (1000, 0.0), (1025, 0.5), (50, 4.0)] {
        add(Op::Sample { vocab, draws: draws.clone(), step }, 1.0);
    }
    add(Op::Sample { vocab: 1, draws: vec![Draw { logprobs: 3, ..warm.clone() }], step: 0.0 }, 1.0);
    add(
        Op::Sample { vocab: 32000, draws: vec![greedy, Draw { top_k: 50, ..warm }], step: 0.0 },
        1.0,
    );
    add(Op::Sample { vocab: 100, draws: vec![], step: 0.0 }, 1.0);

    for (queries, documents, dim, top_k) in [
        (1, 1, 1, 1),
        (2, 5, 33, 10),
        (3, 4097, 3, 17),
        (5, 10000, 100, 100),
        (1, 9000, 2, 1),
        (130, 70, 64, 8),
        (2, 0, 16, 4),
        (0, 7, 16, 4),
    ] {
        add(Op::Search(Search { queries, documents, dim, top_k }), 1.0);
    }
    all
}

impl Op {
    fn has_weights(&self) -> bool {
        !matches!(
            self,
            Self::Attention(..) | Self::Pool { .. } | Self::Sample { .. } | Self::Search(_)
        )
    }

    fn name(&self) -> String {
        match self {
            Self::Embed { rows, vocab, dim } => format!("embed {rows} of {vocab}x{dim}"),
            Self::RmsNorm(p) => format!("rmsnorm {}x{}", p.rows, p.dim),
            Self::Qkv(p, s) => {
                let Qkv { dim, heads, kv_heads, head_dim, .. } = p;
                format!("qkv {dim} to {heads}:{kv_heads}x{head_dim}, {}", names(s))
            }
            Self::Attention(p, s) => {
                format!("attention {}:{}x{}, {}", p.heads, p.kv_heads, p.head_dim, names(s))
            }
            Self::LinearAdd(p) => format!("linear_add {}x{}x{}", p.rows, p.inner, p.outer),
            Self::GateUp(p) => format!("gate_up {}x{}x{}", p.rows, p.dim, p.hidden),
            Self::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                format!("expert {rows}x{dim}x{hidden}, {top_k} of {experts}")
            }
            Self::Pool { dim, spans } => {
                let kind = if spans.iter().any(|s| s.normalize) { " normalized" } else { "" };
                format!("pool {} to {dim}{kind}", spans.len())
            }
            Self::Logits { p, rows } => format!("logits {}x{}x{}", rows.len(), p.dim, p.vocab),
            Self::Sample { vocab, draws, step } => {
                format!("sample {} of {vocab} step {step}", draws.len())
            }
            Self::Search(p) => {
                format!("search {} of {} for {}x{}", p.top_k, p.documents, p.queries, p.dim)
            }
        }
    }
}

/// "causal-12 7+9": the mask with its window, past and new tokens.
fn names(sequences: &[Seq]) -> String {
    let window = |w: Option<u32>| w.map_or(String::new(), |w| format!("-{w}"));
    let name = |s: &Seq| {
        let mask = match s.mask {
            Mask::Causal { window: w } => format!("causal{}", window(w)),
            Mask::Bidirectional { window: w } => format!("both{}", window(w)),
        };
        format!("{mask} {}+{}", s.past, s.rows)
    };
    sequences.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl Seq {
    /// Keys that each row sees: the definition of the masks, pair by pair.
    fn keys(&self) -> impl Iterator<Item = Vec<usize>> {
        let (mask, total) = (self.mask, (self.past + self.rows) as usize);
        let sees = move |i: i64, j: i64| match mask {
            Mask::Causal { window } => j <= i && window.is_none_or(|w| i - i64::from(w) < j),
            Mask::Bidirectional { window } => window.is_none_or(|w| (i - j).abs() < i64::from(w)),
        };
        (self.past as usize..total)
            .map(move |i| (0..total).filter(|&j| sees(i as i64, j as i64)).collect())
    }

    /// How many keys any row sees; they are adjacent.
    fn seen(&self) -> usize {
        let ends = self.keys().map(|keys| (keys[0], keys[keys.len() - 1]));
        let (first, last) = ends.fold((usize::MAX, 0), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        last + 1 - first
    }

    /// Logical pages that exist: a causal window frees those that it has left behind.
    fn live_pages(&self) -> std::ops::Range<usize> {
        let first = match self.mask {
            Mask::Causal { window: Some(w) } => (self.past + 1).saturating_sub(w) as usize / PAGE,
            _ => 0,
        };
        first..((self.past + self.rows) as usize).div_ceil(PAGE)
    }
}

/// A row's experts and their weights.
type Chosen = Vec<(usize, f64)>;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [−1, 1), a multiple of 2⁻²³.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Values that its type can store.
struct Weight {
    dtype: Dtype,
    cols: usize,
    values: Vec<f32>,
}

impl Weight {
    fn row(&self, r: usize) -> &[f32] {
        &self.values[r * self.cols..][..self.cols]
    }

    /// The products with `rows` rows from `first` on.
    fn times<T: Copy + Into<f64>>(&self, a: &[T], first: usize, rows: u32) -> Vec<f64> {
        (first..first + rows as usize).map(|r| dot(a, self.row(r))).collect()
    }

    fn vector(&self) -> Tensor {
        Tensor::from_bytes(self.dtype, &[self.cols], &stored_bytes(self.dtype, &self.values))
    }

    /// As several tensors with so many rows each.
    fn tensors(&self, parts: &[u32]) -> Vec<Tensor> {
        let mut rest = self.values.as_slice();
        let parts = parts.iter().filter(|&&rows| rows > 0).map(|&rows| {
            let (values, after) = rest.split_at(rows as usize * self.cols);
            rest = after;
            let shape = [rows as usize, self.cols];
            Tensor::from_bytes(self.dtype, &shape, &stored_bytes(self.dtype, values))
        });
        parts.collect()
    }
}

fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::F32 => value,
    }
}

pub(crate) fn stored_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn count<T>(of: &[T]) -> u32 {
    of.len() as u32
}

fn qkv_widths(p: &Qkv) -> [usize; 2] {
    [p.heads, p.kv_heads].map(|heads| heads as usize * p.head_dim as usize)
}

/// Rows, dim, hidden, experts, top_k.
fn expert_sizes(p: &Expert) -> [usize; 5] {
    [p.rows, p.dim, p.hidden, p.experts, p.top_k].map(|n| n as usize)
}

/// Where a key (0) or value (1) of the layer in use is in an export of all pages.
fn cached(pool: &PoolShape, which: usize, head: usize, slot: usize) -> usize {
    let layer = LAYERS - 1;
    let tokens = pool.pages * PAGE;
    (((layer * 2 + which) * pool.kv_heads + head) * tokens + slot) * pool.head_dim
}

/// NaN in every slot that is no token's, and in all of the other layer.
fn poison_unused(layout: &Layout, pool: &PoolShape, cache: &mut [f32]) {
    let mut used = vec![false; pool.pages * PAGE];
    for span in &layout.spans {
        for position in 0..(span.past + span.rows) as usize {
            let page = layout.tables[span.table as usize + position / PAGE];
            if page != NO_PAGE {
                used[page as usize * PAGE + position % PAGE] = true;
            }
        }
    }
    let layer = cache.len() / LAYERS;
    for (i, vector) in cache.chunks_mut(pool.head_dim).enumerate() {
        if i * pool.head_dim < layer * (LAYERS - 1) || !used[i % used.len()] {
            vector.fill(f32::NAN);
        }
    }
}

fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

fn normed(x: &[f32], weight: &Weight, eps: f32) -> Vec<f64> {
    let root = (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(weight.row(0)).map(|(&x, &w)| f64::from(x) * f64::from(w) / root).collect()
}

/// silu(h · W1ᵀ) ⊙ (h · W3ᵀ) with the [W1; W3] that begin at row `first`.
fn gated(h: &[f32], w: &Weight, first: usize, hidden: u32) -> Vec<f64> {
    let (gate, up) = (w.times(h, first, hidden), w.times(h, first + hidden as usize, hidden));
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// Rows that count, and with what weight.
fn pooled(span: &PoolSpan) -> Vec<(u32, f64)> {
    let end = span.row + span.rows;
    match span.pooling {
        Pooling::Mean => (span.row + span.skip..end).map(|row| (row, 1.0)).collect(),
        Pooling::WeightedMean => (span.row + span.skip..end).zip((1..).map(f64::from)).collect(),
        Pooling::Cls => vec![(span.row, 1.0)],
        Pooling::LastToken => vec![(end - 1, 1.0)],
    }
}

fn expected_pool(dim: usize, span: &PoolSpan, h: &[f32]) -> Vec<f64> {
    let rows = pooled(span);
    let total: f64 = rows.iter().map(|(_, weight)| weight).sum();
    let column = |c: usize| {
        let weighted = |(row, weight): &(u32, f64)| weight * f64::from(h[*row as usize * dim + c]);
        rows.iter().map(weighted).sum::<f64>() / total
    };
    let mut out: Vec<f64> = (0..dim).map(column).collect();
    if span.normalize {
        let length = dot(&out, &out).sqrt();
        out.iter_mut().for_each(|v| *v /= length);
    }
    out
}

/// Indices, largest value first, lower index first where equal.
fn largest_first<T: PartialOrd>(values: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
    order
}

/// Panics where an f32 rounding could change the draw: no test may depend on luck.
fn expected_draw(d: &Draw, logits: &[f32]) -> Drawn {
    let clear = |a: f64, b: f64| assert!((a - b).abs() > 1e-5, "{a} is too close to {b}: {d:?}");
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    let logprob = |id: usize| (f64::from(logits[id]) - max - sum.ln()) as f32;
    let top = largest_first(logits).into_iter().take(d.logprobs as usize);
    let top = top.map(|id| (id as u32, logprob(id))).collect();

    let mut changed: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    for &id in &d.seen {
        let (logit, penalty) = (&mut changed[id as usize], f64::from(d.penalty));
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
    let mut kept = largest_first(&changed);
    if d.temperature == 0.0 {
        kept.truncate(1);
    } else {
        if d.top_k > 0 {
            kept.truncate(d.top_k as usize);
        }
        // Probabilities among the kept, relative to the likeliest's.
        let weights: Vec<f64> = (kept.iter())
            .map(|&id| ((changed[id] - changed[kept[0]]) / f64::from(d.temperature)).exp())
            .collect();
        let (total, mut before) = (weights.iter().sum::<f64>(), 0.0);
        let mut n = 0;
        while d.top_p < 1.0 && n < kept.len() && (n == 0 || before < f64::from(d.top_p)) {
            before += weights[n] / total;
            n += 1;
            clear(before, d.top_p.into());
        }
        kept.truncate(if d.top_p < 1.0 { n } else { weights.len() });
        let likely = |i: usize| i == 0 || weights[i] >= f64::from(d.min_p);
        let n = (0..kept.len()).take_while(|&i| likely(i)).count();
        weights[1..]
            .iter()
            .for_each(|&w| clear(if d.min_p > 0.0 { w } else { 1.0 }, d.min_p.into()));
        kept.truncate(n);
    }
    let weight = |&id: &usize| match d.temperature {
        0.0 => 1.0,
        t => ((changed[id] - changed[kept[0]]) / f64::from(t)).exp(),
    };
    let (total, mut sum) = (kept.iter().map(weight).sum::<f64>(), 0.0);
    let mut token = kept[kept.len() - 1];
    for id in &kept[..kept.len() - 1] {
        sum += weight(id) / total;
        clear(sum, d.uniform.into());
        if f64::from(d.uniform) < sum {
            token = *id;
            break;
        }
    }
    Drawn { token: token as u32, logprob: logprob(token), top }
}

/// Ids, then log-probabilities.
fn drawn_values(drawn: &[Drawn]) -> Vec<f32> {
    let ids = drawn.iter().flat_map(|d| [d.token].into_iter().chain(d.top.iter().map(|t| t.0)));
    let values =
        drawn.iter().flat_map(|d| [d.logprob].into_iter().chain(d.top.iter().map(|t| t.1)));
    ids.map(id_value).chain(values).collect()
}

/// Ids, then scores.
fn found_values(found: &[Vec<(u32, f32)>]) -> Vec<f32> {
    let ids = found.iter().flatten().map(|f| id_value(f.0));
    ids.chain(found.iter().flatten().map(|f| f.1)).collect()
}

fn id_value(id: u32) -> f32 {
    assert!(id < 1 << 24, "f32 has this id exactly");
    id as f32
}
