//! A test and benchmark case: one op with its shape, and inputs generated from a seed.
//!
//! Tests compare a backend's result ([`Case::run`]) with the f64 reference formulas; benchmarks
//! time the op. Everything that an op must not read is poisoned with NaN: rows of a buffer beyond
//! those that the op names, unused pages, the padding of a sequence's last page. Weights are
//! rounded to their storage type first, so the expected values follow from the weights that the
//! backend receives.

use gritlm_model::ops::{
    Attention, Expert, GateUp, KvShape, Layout, LinearAdd, Logits, Mask, NO_PAGE, Ops, PAGE,
    PoolingSpan, Qkv, Result, RmsNorm, Route, SampleParams, SampledToken, Search, Span,
};
use gritlm_model::reference::{largest_first, linear, pooled_rows, route};
use gritlm_model::weights::{Dtype, Tensor};
use half::{bf16, f16};
use pollster::block_on;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// One op with its shape, the storage type of its weights, and a seed for its inputs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique name; begins with the name of the op.
    pub name: String,
    /// The op, with its shape.
    pub op: Op,
    /// Storage type of the weights, if the op has any.
    pub dtype: Dtype,
    /// Factor on the activations, whose mean square is 1 without it.
    pub scale: f32,
    /// Rounds activations, weights, keys and values to bf16, for a backend that computes in bf16.
    /// The measured error is then the backend's own and not that of the input rounding, which no
    /// op can undo (it changes e^score by half for a score of 100).
    pub bf16: bool,
    /// Seed of the inputs.
    pub seed: u64,
}

/// An op and its shape. `Qkv` and `Attention` also carry the sequences of the batch.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the parameters in `gritlm_model::ops`")]
pub enum Op {
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
    /// `route`, `expert_gate_up` and `expert_down_add` together, because the order of the data
    /// between them is unspecified.
    Expert(Expert),
    Pool {
        dim: u32,
        spans: Vec<PoolingSpan>,
    },
    Logits {
        p: Logits,
        rows: Vec<u32>,
    },
    /// `step`: logits are rounded to multiples of it, so that many are equal; 0 leaves them as
    /// they are.
    Sample {
        vocab: u32,
        draws: Vec<SampleParams>,
        step: f32,
    },
    Search(Search),
}

/// A sequence of a batch: its cached tokens, its tokens of this pass, and their mask.
#[derive(Clone, Copy, Debug)]
pub struct Seq {
    /// Tokens already in the KV cache.
    pub past: u32,
    /// Tokens of this pass.
    pub rows: u32,
    /// Which keys the tokens of this pass see.
    pub mask: Mask,
}

/// A request to the function that [`Case::ready`] returns.
#[derive(Debug)]
pub enum Step<'a> {
    /// Records the op; `sample` and `search` also wait for their results.
    Launch,
    /// Reads back the results of the last launch.
    Read(&'a mut Vec<f32>),
}

/// A case whose inputs are on a device.
pub type Ready<'a> = Box<dyn FnMut(Step<'_>) -> Result<()> + 'a>;

/// Values that a thread generates at a time.
const PIECE: usize = 1 << 16;

/// Extra rows that every buffer has beyond those in use.
const SPARE: usize = 3;

/// Layers of the KV cache; `qkv` and `attention` work on the second one.
pub const LAYERS: usize = 2;

/// Scale of the values that are in the pages before `qkv` runs and that must survive in every
/// slot it does not write. It is small, so that the many old values do not hide an error in the
/// few new ones.
pub const BEFORE: f32 = 1e-3;

impl Case {
    /// Returns a case with activations of mean square 1.
    pub fn new(op: Op, dtype: Dtype) -> Self {
        Self::scaled(op, dtype, 1.0)
    }

    /// Returns a case with activations of mean square `scale`².
    pub fn scaled(op: Op, dtype: Dtype, scale: f32) -> Self {
        let mut name = op.name();
        if op.has_weights() {
            name += &format!(" {}", dtype.to_string().to_lowercase());
        }
        if scale != 1.0 {
            name += &format!(" times {scale}");
        }
        // The seed is the FNV-1a hash of the name, so a case keeps its inputs when the table
        // grows.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { name, op, dtype, scale, bf16: false, seed }
    }

    /// Returns a lower bound of the bytes that the op reads and writes: weights as stored,
    /// activations in f32, each once; a cached key or value element takes `cached` bytes.
    pub fn bytes_with(&self, cached: usize) -> u64 {
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
                let rows: usize = spans.iter().map(|s| pooled_rows(s).len() + 1).sum();
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

    /// Returns [`Case::bytes_with`] f32 pages.
    pub fn bytes(&self) -> u64 {
        self.bytes_with(4)
    }

    /// Returns the additions and multiplications of the formula, without those that are
    /// negligible (exponentials, rotations, norms before a product).
    pub fn flops(&self) -> u64 {
        let product =
            |rows: u32, inner: u32, outer: u32| 2 * rows as u64 * inner as u64 * outer as u64;
        match &self.op {
            Op::Embed { .. } => 0,
            Op::RmsNorm(p) => product(p.rows, p.dim, 2),
            Op::Qkv(p, _) => product(p.rows, p.dim, (p.heads + 2 * p.kv_heads) * p.head_dim),
            Op::Attention(p, sequences) => {
                let pairs: usize =
                    sequences.iter().flat_map(Seq::ranges).map(|keys| keys.len()).sum();
                2 * product(p.heads, p.head_dim, 1) * pairs as u64
            }
            Op::LinearAdd(p) => product(p.rows, p.inner, p.outer),
            Op::GateUp(p) => product(p.rows, p.dim, 2 * p.hidden),
            Op::Expert(p) => {
                product(p.rows, p.dim, p.experts) + product(p.rows * p.top_k, p.dim, 3 * p.hidden)
            }
            Op::Pool { dim, spans } => {
                spans.iter().map(|s| product(pooled_rows(s).len() as u32, *dim, 1)).sum()
            }
            Op::Logits { p, rows } => product(rows.len() as u32, p.dim, p.vocab),
            Op::Sample { vocab, draws, .. } => product(draws.len() as u32, *vocab, 1),
            Op::Search(p) => product(p.queries, p.documents, p.dim),
        }
    }

    /// Returns how many leading values of the result are ids, which must be equal and not just
    /// close.
    pub fn exact(&self) -> usize {
        match &self.op {
            Op::Sample { vocab, draws, .. } => {
                draws.iter().map(|d| 1 + d.logprobs.min(*vocab) as usize).sum()
            }
            Op::Search(p) => p.queries as usize * p.top_k.min(p.documents) as usize,
            _ => 0,
        }
    }

    /// Runs the case on a backend and returns its result.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run<O: Ops>(&self, ops: &O) -> Result<Vec<f32>> {
        let (mut ready, mut out) = (self.ready(ops)?, Vec::new());
        ready(Step::Launch)?;
        ready(Step::Read(&mut out))?;
        Ok(out)
    }

    /// Uploads the inputs and returns a function that runs the op as often as it is called.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn ready<'a, O: Ops>(&'a self, ops: &'a O) -> Result<Ready<'a>> {
        // `filled` uploads a buffer with these values, `empty` one to write to; both end in rows
        // of NaN.
        let filled = |cols: u32, mut values: Vec<f32>| {
            values.resize(values.len() + SPARE * cols as usize, f32::NAN);
            ops.upload(values.len() / cols as usize, cols as usize, &values)
        };
        let empty = |rows: u32, cols: u32| filled(cols, vec![f32::NAN; (rows * cols) as usize]);
        let read = move |buffer: &O::Buffer, len: u32| block_on(ops.read(buffer, len as usize));
        Ok(match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let (batch, table) = (self.tokens(rows, vocab), self.weight(1, vocab, dim));
                let batch = ops.batch(&batch)?;
                let table = ops.matrix(&table.tensors(&[vocab]))?;
                let mut x = empty(rows, dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.embed(&batch, &table, &mut x),
                        Step::Read(to) => *to = read(&x, rows * dim)?,
                    }
                    Ok(())
                })
            }
            &Op::RmsNorm(p) => {
                let x = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let weight = ops.matrix(&[self.norm(2, p.dim).vector()])?;
                let mut h = empty(p.rows, p.dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.rmsnorm(p, &x, &weight, &mut h),
                        Step::Read(to) => *to = read(&h, p.rows * p.dim)?,
                    }
                    Ok(())
                })
            }
            Op::Qkv(p, sequences) => {
                let (p, [q_width, kv]) = (*p, qkv_widths(p).map(|w| w as u32));
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let w = self.weight(2, q_width + 2 * kv, p.dim);
                let w = ops.matrix(&w.tensors(&[q_width, kv, kv]))?;
                let batch = ops.batch(&layout)?;
                let mut q = empty(p.rows, q_width)?;
                let mut pages = ops.pages(pool)?;
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let tokens = pool.pages * PAGE;
                ops.import_pages(&mut pages, &all, tokens, 0, &self.cache(&pool, BEFORE));
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.qkv(p, &h, &w, &batch, &mut q, &mut pages),
                        Step::Read(to) => {
                            *to = read(&q, p.rows * q_width)?;
                            to.extend(block_on(ops.export_pages(&pages, &all, tokens))?);
                        }
                    }
                    Ok(())
                })
            }
            Op::Attention(p, sequences) => {
                let (p, width) = (*p, p.heads * p.head_dim);
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let rows = layout.tokens.len() as u32;
                let q = filled(width, self.activations(1, rows * width))?;
                let batch = ops.batch(&layout)?;
                let mut pages = ops.pages(pool)?;
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let mut cache = self.cache(&pool, 1.0);
                poison_unused(&layout, &pool, &mut cache);
                ops.import_pages(&mut pages, &all, pool.pages * PAGE, 0, &cache);
                let mut out = empty(rows, width)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.attention(p, &q, &pages, &batch, &mut out),
                        Step::Read(to) => *to = read(&out, rows * width)?,
                    }
                    Ok(())
                })
            }
            &Op::LinearAdd(p) => {
                let a = filled(p.inner, self.activations(1, p.rows * p.inner))?;
                // The parts are unequal, and both end inside a tile of any size.
                let first = p.outer / 3;
                let w = self.weight(2, p.outer, p.inner);
                let w = ops.matrix(&w.tensors(&[first, p.outer - first]))?;
                let mut x = filled(p.outer, self.activations(3, p.rows * p.outer))?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.linear_add(p, &a, &w, &mut x),
                        Step::Read(to) => *to = read(&x, p.rows * p.outer)?,
                    }
                    Ok(())
                })
            }
            &Op::GateUp(p) => {
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let w = self.weight(2, 2 * p.hidden, p.dim);
                let w = ops.matrix(&w.tensors(&[p.hidden; 2]))?;
                let mut out = empty(p.rows, p.hidden)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.gate_up(p, &h, &w, &mut out),
                        Step::Read(to) => *to = read(&out, p.rows * p.hidden)?,
                    }
                    Ok(())
                })
            }
            &Op::Expert(p) => {
                let Expert { rows, dim, hidden, experts, top_k } = p;
                let (h, router, _) = self.routed(&p);
                let h = filled(dim, h)?;
                let router = ops.matrix(&router.tensors(&[experts]))?;
                let [gate_up, down] = self.experts(&p);
                let parts = vec![hidden; 2 * experts as usize];
                let gate_up = ops.matrix(&gate_up.tensors(&parts))?;
                let parts = vec![dim; experts as usize];
                let down = ops.matrix(&down.tensors(&parts))?;
                let mut x = filled(dim, self.activations(5, rows * dim))?;
                let mut inner = empty(rows * top_k, hidden)?;
                let (n, k) = (experts as usize, top_k as usize);
                let mut routing = ops.routing(rows as usize + SPARE, n, k)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.route(
                                Route { rows, dim, experts, top_k },
                                &h,
                                &router,
                                &mut routing,
                            );
                            ops.expert_gate_up(p, &h, &gate_up, &routing, &mut inner);
                            ops.expert_down_add(p, &inner, &down, &routing, &mut x)
                        }
                        Step::Read(to) => {
                            *to = block_on(ops.read_routing(&routing, rows as usize))?;
                            to.extend(read(&x, rows * dim)?);
                        }
                    }
                    Ok(())
                })
            }
            Op::Pool { dim, spans } => {
                let (h, mut out) =
                    (filled(*dim, self.hidden(*dim, spans))?, empty(count(spans), *dim)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.pool(*dim, spans, &h, &mut out),
                        Step::Read(to) => *to = read(&out, count(spans) * dim)?,
                    }
                    Ok(())
                })
            }
            Op::Logits { p, rows } => {
                let x = filled(p.dim, self.wanted(p, rows))?;
                let norm = ops.matrix(&[self.norm(2, p.dim).vector()])?;
                let w = ops.matrix(&self.weight(3, p.vocab, p.dim).tensors(&[p.vocab]))?;
                let mut out = empty(count(rows), p.vocab)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.logits(*p, rows, &x, &norm, &w, &mut out),
                        Step::Read(to) => *to = read(&out, count(rows) * p.vocab)?,
                    }
                    Ok(())
                })
            }
            Op::Sample { vocab, draws, step } => {
                let logits = filled(*vocab, self.drawn_from(*vocab, draws, *step))?;
                let mut drawn = Vec::new();
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => drawn = block_on(ops.sample(*vocab, draws, &logits))?,
                        Step::Read(to) => *to = drawn_values(&drawn),
                    }
                    Ok(())
                })
            }
            &Op::Search(p) => {
                let queries = filled(p.dim, self.steps(1, p.queries * p.dim))?;
                let corpus = Arc::new(self.steps(2, p.documents * p.dim));
                let corpus = ops.corpus(p.documents as usize, p.dim as usize, corpus)?;
                let mut found = Vec::new();
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => found = block_on(ops.search(p, &queries, &corpus))?,
                        Step::Read(to) => *to = found_values(&found),
                    }
                    Ok(())
                })
            }
        })
    }

    fn random(&self, stream: u64) -> Random {
        // The seed passes through the generator once, because the numbers of neighbouring states
        // are shifted copies of each other.
        Random(Random(self.seed ^ stream).next())
    }

    /// Returns activations with a mean square of `scale`².
    pub fn activations(&self, stream: u64, len: u32) -> Vec<f32> {
        self.values(stream, len as usize, |random| {
            self.kept(random.unit() * 3f32.sqrt() * self.scale)
        })
    }

    /// Returns the values of a stream, one random number each. They do not depend on the number
    /// of threads: the generator is a counter, so a piece can begin anywhere.
    fn values(&self, stream: u64, len: usize, f: impl Fn(&mut Random) -> f32 + Sync) -> Vec<f32> {
        let start = self.random(stream);
        let mut values = vec![0.0; len];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(n, piece)| {
            let mut random = start.after((n * PIECE) as u64);
            piece.fill_with(|| f(&mut random));
        });
        values
    }

    /// Rounds a value to bf16 if the backend computes in bf16.
    fn kept(&self, value: f32) -> f32 {
        rounded(if self.bf16 { Dtype::Bf16 } else { Dtype::F32 }, value)
    }

    /// Returns multiples of ¼ from −½ to ½: inner products are exact in every format, and many
    /// are equal.
    pub fn steps(&self, stream: u64, len: u32) -> Vec<f32> {
        self.values(stream, len as usize, |random| random.below(5) as f32 / 4.0 - 0.5)
    }

    /// Returns a matrix that preserves the mean square of what it is multiplied by.
    pub fn weight(&self, stream: u64, rows: u32, cols: u32) -> Weight {
        let scale = (3.0 / cols as f32).sqrt();
        self.stored(stream, rows, cols, |unit| unit * scale)
    }

    /// Returns a norm's weights.
    pub fn norm(&self, stream: u64, dim: u32) -> Weight {
        self.stored(stream, 1, dim, |unit| 1.0 + unit / 2.0)
    }

    fn stored(&self, stream: u64, rows: u32, cols: u32, f: impl Fn(f32) -> f32 + Sync) -> Weight {
        let (dtype, len) = (self.dtype, rows as usize * cols as usize);
        let value = |random: &mut Random| rounded(dtype, self.kept(f(random.unit())));
        Weight { dtype, cols: cols as usize, values: self.values(stream, len, value) }
    }

    /// Returns a batch of one sequence with random tokens, for `embed`.
    pub fn tokens(&self, rows: u32, vocab: u32) -> Layout {
        let s = Seq { past: 0, rows, mask: Mask::Causal { window: None } };
        let sequences = if rows == 0 { vec![] } else { vec![s] };
        let (mut layout, mut random) = (self.layout(&sequences, 1, 2).0, self.random(8));
        layout.tokens.fill_with(|| random.below(u64::from(vocab)) as u32);
        layout
    }

    /// Returns a batch of these sequences. Their pages are in random order, and two pages stay
    /// unused. Pages that a sliding window has left behind are freed.
    pub fn layout(&self, sequences: &[Seq], kv_heads: u32, head_dim: u32) -> (Layout, KvShape) {
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
            // Page tables need not be adjacent.
            layout.tables.push(NO_PAGE);
        }
        let (kv_heads, head_dim) = (kv_heads as usize, head_dim as usize);
        (layout, KvShape { layers: LAYERS, pages, kv_heads, head_dim })
    }

    /// Returns values for every slot of the pool, in the order of an export of all pages.
    pub fn cache(&self, pool: &KvShape, scale: f32) -> Vec<f32> {
        let len = pool.layers * 2 * pool.kv_heads * pool.pages * PAGE * pool.head_dim;
        self.values(10, len, |random| self.kept(random.unit() * 3f32.sqrt() * scale))
    }

    /// Returns activations, the router, and each row's experts with their weights. A row is
    /// generated again if rounding could change its choice of experts.
    pub fn routed(&self, p: &Expert) -> (Vec<f32>, Weight, Vec<Chosen>) {
        let [rows, dim, _, experts, top_k] = expert_sizes(p);
        let (router, mut random) = (self.weight(2, p.experts, p.dim), self.random(1));
        let (mut h, mut chosen) = (Vec::new(), Vec::new());
        while chosen.len() < rows {
            let row: Vec<f32> =
                (0..dim).map(|_| self.kept(random.unit() * 3f32.sqrt() * self.scale)).collect();
            let logits = linear(&row, router.all());
            let order = largest_first(&logits);
            if top_k < experts && logits[order[top_k - 1]] - logits[order[top_k]] < 0.02 {
                continue;
            }
            chosen.push(route(&logits, top_k));
            h.extend(row);
        }
        (h, router, chosen)
    }

    /// Returns all experts' [W1; W3], and W2.
    pub fn experts(&self, p: &Expert) -> [Weight; 2] {
        let gate_up = self.weight(3, p.experts * 2 * p.hidden, p.dim);
        [gate_up, self.weight(4, p.experts * p.dim, p.hidden)]
    }

    /// Returns hidden states, with NaN in rows that belong to no span.
    pub fn hidden(&self, dim: u32, spans: &[PoolingSpan]) -> Vec<f32> {
        let end = spans.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
        let mut h = self.activations(1, end * dim);
        for (row, h) in (0..).zip(h.chunks_mut(dim as usize)) {
            if !spans.iter().any(|s| (s.row..s.row + s.rows).contains(&row)) {
                h.fill(f32::NAN);
            }
        }
        h
    }

    /// Returns the residual stream, with NaN in rows whose logits are not requested.
    pub fn wanted(&self, p: &Logits, rows: &[u32]) -> Vec<f32> {
        let mut x = self.activations(1, rows.iter().max().map_or(0, |r| r + 1) * p.dim);
        for (row, x) in (0..).zip(x.chunks_mut(p.dim as usize)) {
            if !rows.contains(&row) {
                x.fill(f32::NAN);
            }
        }
        x
    }

    /// Returns logits as peaked as a model's.
    pub fn drawn_from(&self, vocab: u32, draws: &[SampleParams], step: f32) -> Vec<f32> {
        let mut random = self.random(1);
        let mut logit = || 6.0 * (random.unit() + random.unit() + random.unit());
        let logits = (0..vocab * count(draws)).map(|_| logit());
        // Adding 0 turns −0 into 0: the two are equal, but −0 sorts below 0.
        logits.map(|l| if step > 0.0 { (l / step).round() * step + 0.0 } else { l }).collect()
    }
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

/// Names the sequences by mask with window, past and new tokens, as in "causal-12 7+9".
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
    /// Returns the keys that each row sees. This is the definition of the masks, pair by pair.
    pub fn keys(&self) -> impl Iterator<Item = Vec<usize>> {
        let (mask, total) = (self.mask, (self.past + self.rows) as usize);
        let sees = move |i: i64, j: i64| match mask {
            Mask::Causal { window } => j <= i && window.is_none_or(|w| i - i64::from(w) < j),
            Mask::Bidirectional { window } => window.is_none_or(|w| (i - j).abs() < i64::from(w)),
        };
        (self.past as usize..total)
            .map(move |i| (0..total).filter(|&j| sees(i as i64, j as i64)).collect())
    }

    /// Returns [`Seq::keys`], which are adjacent, as ranges, without testing each pair.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let (mask, total) = (self.mask, (self.past + self.rows) as usize);
        (self.past as usize..total).map(move |i| {
            let (window, end) = match mask {
                Mask::Causal { window } => (window, i + 1),
                Mask::Bidirectional { window } => {
                    (window, window.map_or(total, |w| total.min(i + w as usize)))
                }
            };
            window.map_or(0, |w| (i + 1).saturating_sub(w as usize))..end
        })
    }

    /// Returns how many keys at least one row sees.
    fn seen(&self) -> usize {
        let ends = |all: Range<usize>, keys: Range<usize>| {
            all.start.min(keys.start)..all.end.max(keys.end)
        };
        self.ranges().reduce(ends).map_or(0, |keys| keys.len())
    }

    /// Returns the logical pages that exist; those behind a causal window have been freed.
    fn live_pages(&self) -> Range<usize> {
        let first = match self.mask {
            Mask::Causal { window: Some(w) } => (self.past + 1).saturating_sub(w) as usize / PAGE,
            _ => 0,
        };
        first..((self.past + self.rows) as usize).div_ceil(PAGE)
    }
}

/// A row's experts and their weights.
pub type Chosen = Vec<(usize, f64)>;

/// The SplitMix64 generator.
struct Random(u64);

/// Increment of the generator's state per number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// Returns the generator as it is after `numbers` numbers.
    fn after(&self, numbers: u64) -> Self {
        Self(self.0.wrapping_add(STEP.wrapping_mul(numbers)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a multiple of 2⁻²³ in [−1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A matrix of values that its storage type represents exactly.
#[derive(Clone, Debug)]
pub struct Weight {
    dtype: Dtype,
    cols: usize,
    values: Vec<f32>,
}

impl Weight {
    /// Returns all values, `(rows, cols)`.
    pub fn all(&self) -> &[f32] {
        &self.values
    }

    /// Returns `rows` rows, beginning with row `first`.
    pub fn rows(&self, first: usize, rows: usize) -> &[f32] {
        &self.values[first * self.cols..][..rows * self.cols]
    }

    fn vector(&self) -> Tensor {
        Tensor::from_bytes(self.dtype, &[self.cols], &stored_bytes(self.dtype, &self.values))
    }

    /// Returns the matrix as several tensors, with the given number of rows each.
    fn tensors(&self, parts: &[u32]) -> Vec<Tensor> {
        let mut rest = self.values.as_slice();
        let parts = parts.iter().filter(|&&rows| rows > 0).map(|&rows| {
            let (values, after) = rest.split_at(rows as usize * self.cols);
            rest = after;
            let shape = [rows as usize, self.cols];
            Tensor::of_block(self.dtype, &shape, &Arc::new(stored_bytes(self.dtype, values)), 0)
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

/// Returns the bytes of the values as a checkpoint stores them.
pub fn stored_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let each = dtype.bytes();
    let mut bytes = vec![0; values.len() * each];
    let pieces = bytes.par_chunks_mut(PIECE * each).zip(values.par_chunks(PIECE));
    pieces.for_each(|(bytes, values)| {
        for (to, &value) in bytes.chunks_exact_mut(each).zip(values) {
            match dtype {
                Dtype::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                Dtype::F32 => to.copy_from_slice(&value.to_le_bytes()),
            }
        }
    });
    bytes
}

fn count<T>(of: &[T]) -> u32 {
    of.len() as u32
}

/// Returns the columns of all query heads and of all key heads.
pub fn qkv_widths(p: &Qkv) -> [usize; 2] {
    [p.heads, p.kv_heads].map(|heads| heads as usize * p.head_dim as usize)
}

/// Returns rows, dim, hidden, experts and top_k.
pub fn expert_sizes(p: &Expert) -> [usize; 5] {
    [p.rows, p.dim, p.hidden, p.experts, p.top_k].map(|n| n as usize)
}

/// Returns where a key (`which` 0) or value (1) of the second layer is in an export of all pages.
pub fn cached(pool: &KvShape, which: usize, head: usize, slot: usize) -> usize {
    let layer = LAYERS - 1;
    let tokens = pool.pages * PAGE;
    (((layer * 2 + which) * pool.kv_heads + head) * tokens + slot) * pool.head_dim
}

/// Writes NaN to every slot that holds no token, and to the whole first layer.
fn poison_unused(layout: &Layout, pool: &KvShape, cache: &mut [f32]) {
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
    cache.par_chunks_mut(pool.head_dim).enumerate().for_each(|(i, vector)| {
        if i * pool.head_dim < layer * (LAYERS - 1) || !used[i % used.len()] {
            vector.fill(f32::NAN);
        }
    });
}

/// Returns the ids, then the log-probabilities.
pub fn drawn_values(drawn: &[SampledToken]) -> Vec<f32> {
    let ids = drawn.iter().flat_map(|d| [d.token].into_iter().chain(d.top.iter().map(|t| t.0)));
    let values =
        drawn.iter().flat_map(|d| [d.logprob].into_iter().chain(d.top.iter().map(|t| t.1)));
    ids.map(id_value).chain(values).collect()
}

/// Returns the ids, then the scores.
pub fn found_values(found: &[Vec<(u32, f32)>]) -> Vec<f32> {
    let ids = found.iter().flatten().map(|f| id_value(f.0));
    ids.chain(found.iter().flatten().map(|f| f.1)).collect()
}

fn id_value(id: u32) -> f32 {
    debug_assert!(id < 1 << 24, "f32 has this id exactly");
    id as f32
}
