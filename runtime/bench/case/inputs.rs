//! Generates the inputs of a case from its seed: activations, weights as a file stores them, and
//! batches with their pages.

use super::{Case, Seq, count, expert_sizes};
use gritlm_model::format::{decode, encode};
use gritlm_model::ops::{
    Expert, KvShape, Layout, Logits, Mask, NO_PAGE, PAGE, PoolingSpan, SampleParams, Span,
};
use gritlm_model::reference::{largest_first, linear, route};
use gritlm_model::weights::{Dtype, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::sync::Arc;

/// Values that a thread generates at a time.
const PIECE: usize = 1 << 16;

/// Layers of the KV cache; `qkv` and `attention` work on the second one.
pub const LAYERS: usize = 2;

impl<T: Sync> Case<T> {
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
        if self.bf16 { bf16::from_f32(value).to_f32() } else { value }
    }

    /// Returns multiples of ¼ from −½ to ½: inner products are exact in every format, and many
    /// are equal.
    pub fn steps(&self, stream: u64, len: u32) -> Vec<f32> {
        self.values(stream, len as usize, |random| random.below(5) as f32 / 4.0 - 0.5)
    }

    /// Returns a matrix that preserves the mean square of what it is multiplied by.
    pub fn weight(&self, stream: u64, rows: u32, cols: u32) -> Weight {
        let scale = (3.0 / cols as f32).sqrt();
        self.stored(self.dtype, stream, [rows, cols], |unit| unit * scale)
    }

    /// Returns a norm's weights, which no file quantises.
    pub fn norm(&self, stream: u64, dim: u32) -> Weight {
        let dtype = if self.dtype.is_quantized() { Dtype::F32 } else { self.dtype };
        self.stored(dtype, stream, [1, dim], |unit| 1.0 + unit / 2.0)
    }

    fn stored(
        &self,
        dtype: Dtype,
        stream: u64,
        [rows, cols]: [u32; 2],
        f: impl Fn(f32) -> f32 + Sync,
    ) -> Weight {
        let len = rows as usize * cols as usize;
        let mut values = self.values(stream, len, |random| self.kept(f(random.unit())));
        let bytes = stored_bytes(dtype, &values);
        decode(dtype, &bytes, &mut values);
        Weight { dtype, cols: cols as usize, bytes, values }
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
        (layout, KvShape { layers: LAYERS, pages, kv_heads, head_dim, dtype: Dtype::F32 })
    }

    /// Returns values for every slot of the pool, in the order of an export of all pages.
    pub fn cache(&self, pool: &KvShape, scale: f32) -> Vec<f32> {
        let len = pool.layers * 2 * pool.kv_heads * pool.pages * PAGE * pool.head_dim;
        let values = self.values(10, len, |random| self.kept(random.unit() * 3f32.sqrt() * scale));
        let Some(dtype) = self.pages else { return values };
        let mut rounded = vec![0.0; len];
        decode(dtype, &stored_bytes(dtype, &values), &mut rounded);
        rounded
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

/// A matrix as stored, and its values.
#[derive(Clone, Debug)]
pub struct Weight {
    dtype: Dtype,
    cols: usize,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Weight {
    /// Returns all values, `(rows, cols)`.
    pub fn all(&self) -> &[f32] {
        &self.values
    }

    /// Returns the number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Returns `rows` rows, beginning with row `first`.
    pub fn rows(&self, first: usize, rows: usize) -> &[f32] {
        &self.values[first * self.cols..][..rows * self.cols]
    }

    pub(crate) fn vector(&self) -> Tensor {
        Tensor::from_bytes(self.dtype, &[self.cols], &self.bytes)
    }

    /// Returns the matrix as several tensors, with the given number of rows each.
    pub(crate) fn tensors(&self, parts: &[u32]) -> Vec<Tensor> {
        let (bytes, mut at) = (Arc::new(self.bytes.clone()), 0);
        let parts = parts.iter().filter(|&&rows| rows > 0).map(|&rows| {
            let shape = [rows as usize, self.cols];
            let tensor = Tensor::of_block(self.dtype, &shape, &bytes, at);
            at += tensor.bytes().len();
            tensor
        });
        parts.collect()
    }
}

/// Returns the bytes of the values as a file stores them.
pub fn stored_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.bytes(values.len())];
    encode(dtype, values, &mut bytes);
    bytes
}

/// Returns where a key (`which` 0) or value (1) of the second layer is in an export of all pages.
pub fn cached(pool: &KvShape, which: usize, head: usize, slot: usize) -> usize {
    let layer = LAYERS - 1;
    let tokens = pool.pages * PAGE;
    (((layer * 2 + which) * pool.kv_heads + head) * tokens + slot) * pool.head_dim
}
