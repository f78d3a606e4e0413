//! attention_backward: with the scores s = q kᵀ / √head_dim, the weights w = e^(s − lse) and
//! δ = dout · out of each query, ds = w ⊙ (dout vᵀ − δ) / √head_dim; then dq = ds k, dk = dsᵀ q and
//! dv = wᵀ dout. The scores are computed again from `lse`, and never stored as a whole.
//!
//! `q`, `out`, `dout`, `dq (rows, heads, head_dim)`; `dk`, `dv (rows, kv_heads, head_dim)`; keys and
//! values are in pages. A span with a past continues the rows before it, so a task has a *run* of
//! spans, in which key j is that of row `first + j`, and one key/value head with its query heads:
//! nobody else writes their gradients. It walks over blocks of [`QUERIES`] tokens and a page of keys
//! in order, so the bits depend on the run alone. Bound by arithmetic.

use super::Pages;
use super::exp::exp;
use super::shared::Shared;
use super::vectors::{TOGETHER, dots, weighted_sums};
use crate::ops::{Attention, Layout, PAGE, Span};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Query tokens of a block. With three heads a group, the scores of a block and their gradients
/// take 24 KiB, and as much again transposed.
const QUERIES: usize = 8;

pub(super) fn attention_backward(
    p: Attention,
    q: &[f32],
    pages: &Pages,
    layout: &Layout,
    [out, lse, dout]: [&[f32]; 3],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let tasks: Vec<(&[Span], usize)> = layout
        .spans
        .chunk_by(|_, next| next.past > 0)
        .flat_map(|run| (0..p.kv_heads as usize).map(move |head| (run, head)))
        .collect();
    let gradients = [dq, dk, dv].map(Shared::new);
    let arch = Arch::new();
    tasks.par_iter().with_max_len(1).for_each(|&(run, kv_head)| {
        let first = run[0].row as usize;
        let table = &layout.tables[run[run.len() - 1].table as usize..];
        let inputs = [q, out, lse, dout];
        let gradients = &gradients;
        arch.dispatch(Task { p, inputs, pages, table, run, first, kv_head, gradients });
    });
}

/// A run of spans that continue each other, and a key/value head.
struct Task<'a> {
    p: Attention,
    /// q, out, lse and dout.
    inputs: [&'a [f32]; 4],
    pages: &'a Pages,
    table: &'a [u32],
    run: &'a [Span],
    first: usize,
    kv_head: usize,
    /// dq, dk and dv.
    gradients: &'a [Shared<'a>; 3],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (heads, kv_heads) = (self.p.heads as usize, self.p.kv_heads as usize);
        let head_dim = self.p.head_dim as usize;
        let group = heads / kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let [q, out, lse, dout] = self.inputs;
        let tokens: usize = self.run.iter().map(|span| span.rows as usize).sum();
        let (mut dk, mut dv) = (vec![0.0; tokens * head_dim], vec![0.0; tokens * head_dim]);
        let mut block = Block::default();

        for span in self.run {
            let (past, total) = (span.past as usize, (span.past + span.rows) as usize);
            for start in (past..total).step_by(QUERIES) {
                let queries = start..(start + QUERIES).min(total);
                let keys = |token: usize| span.mask.keys(token, total);
                let seen = keys(queries.start).start..keys(queries.end - 1).end;
                // Vector i is a token's query head of this group, at `at(i)` in q, out and dout.
                let count = queries.len() * group;
                let token = |i: usize| queries.start + i / group;
                let at = |i: usize| {
                    ((self.first + token(i)) * heads + self.kv_head * group + i % group) * head_dim
                };
                block.take(count, head_dim, at, [q, dout]);
                let delta = |i: usize| -> f32 {
                    let (o, d) = (&out[at(i)..][..head_dim], &dout[at(i)..][..head_dim]);
                    o.iter().zip(d).map(|(o, d)| o * d).sum()
                };
                let deltas: Vec<f32> = (0..count).map(delta).collect();

                for page in pages_of(&seen) {
                    let here = page.start.max(seen.start)..page.end.min(seen.end);
                    let physical = self.table[page.start / PAGE] as usize;
                    let vectors = here.start - page.start..here.end - page.start;
                    let place =
                        self.pages.head(self.p.layer as usize, physical, self.kv_head, vectors);
                    let (mut k_room, mut v_room) = (Vec::new(), Vec::new());
                    let k = self.pages.keys.read(place.clone(), &mut k_room);
                    let v = self.pages.values.read(place, &mut v_room);
                    block.score(simd, here.len(), head_dim, k, v);
                    for i in 0..count {
                        let visible = keys(token(i));
                        let at_key = |key: usize| key.clamp(here.start, here.end) - here.start;
                        let visible = at_key(visible.start)..at_key(visible.end);
                        let (lse, delta) = (lse[at(i) / head_dim], deltas[i]);
                        block.differentiate(simd, i, here.len(), visible, [scale, lse, delta]);
                    }
                    let places = here.start * head_dim..here.end * head_dim;
                    block.add(simd, head_dim, k, &mut dk[places.clone()], &mut dv[places]);
                }
                for i in 0..count {
                    // SAFETY: each row and head belongs to exactly one task.
                    let dq = unsafe { self.gradients[0].slice(at(i), head_dim) };
                    dq.copy_from_slice(&block.dq[i * head_dim..][..head_dim]);
                }
            }
        }
        for (to, from) in self.gradients[1..].iter().zip([dk, dv]) {
            for (token, vector) in from.chunks_exact(head_dim).enumerate() {
                let at = ((self.first + token) * kv_heads + self.kv_head) * head_dim;
                // SAFETY: as above.
                unsafe { to.slice(at, head_dim) }.copy_from_slice(vector);
            }
        }
    }
}

/// A block of query vectors with a page of keys. Its buffers are kept from block to block.
#[derive(Default)]
struct Block {
    count: usize,
    /// Query vectors and gradients of their outputs, `(count, head_dim)`.
    q: Vec<f32>,
    dout: Vec<f32>,
    dq: Vec<f32>,
    /// Scores, then weights; dout vᵀ, then ds. `(count, keys)`.
    weights: Vec<f32>,
    ds: Vec<f32>,
    /// A transposed copy of one of them, `(keys, count)`.
    across: Vec<f32>,
}

impl Block {
    /// Gathers the vectors that begin at `at(i)`.
    #[inline(always)]
    fn take(
        &mut self,
        count: usize,
        head_dim: usize,
        at: impl Fn(usize) -> usize,
        [q, dout]: [&[f32]; 2],
    ) {
        self.count = count;
        for (to, from) in [(&mut self.q, q), (&mut self.dout, dout)] {
            to.clear();
            (0..count).for_each(|i| to.extend_from_slice(&from[at(i)..][..head_dim]));
        }
        self.dq.clear();
        self.dq.resize(count * head_dim, 0.0);
    }

    /// Computes q kᵀ and dout vᵀ.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, keys: usize, head_dim: usize, k: &[f32], v: &[f32]) {
        self.weights.resize(self.count * keys, 0.0);
        self.ds.resize(self.count * keys, 0.0);
        products(simd, &self.q, head_dim, k, keys, &mut self.weights);
        products(simd, &self.dout, head_dim, v, keys, &mut self.ds);
    }

    /// Turns the scores of vector i into weights, which are 0 outside the visible keys, and dout vᵀ
    /// into ds.
    #[inline(always)]
    fn differentiate<S: Simd>(
        &mut self,
        simd: S,
        i: usize,
        keys: usize,
        visible: Range<usize>,
        [scale, lse, delta]: [f32; 3],
    ) {
        let weights = &mut self.weights[i * keys..][..keys];
        let ds = &mut self.ds[i * keys..][..keys];
        let [scale_all, less] = [scale, -lse].map(|x| simd.splat_f32s(x));
        let (whole, rest) = S::as_mut_simd_f32s(weights);
        for scores in whole {
            *scores = exp(simd, simd.mul_add_e_f32s(*scores, scale_all, less));
        }
        let last = simd.partial_load_f32s(rest);
        simd.partial_store_f32s(rest, exp(simd, simd.mul_add_e_f32s(last, scale_all, less)));
        weights[..visible.start].fill(0.0);
        weights[visible.end..].fill(0.0);
        for (weight, ds) in weights.iter().zip(ds) {
            *ds = *weight * (*ds - delta) * scale;
        }
    }

    /// Adds dq += ds k, dk += dsᵀ q and dv += wᵀ dout.
    #[inline(always)]
    fn add<S: Simd>(
        &mut self,
        simd: S,
        head_dim: usize,
        k: &[f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        mix(simd, &self.ds, k, head_dim, &mut self.dq);
        transpose(&self.ds, self.count, &mut self.across);
        mix(simd, &self.across, &self.q, head_dim, dk);
        transpose(&self.weights, self.count, &mut self.across);
        mix(simd, &self.across, &self.dout, head_dim, dv);
    }
}

/// Computes all inner products of vectors and keys, `out (vectors, keys)`.
#[inline(always)]
fn products<S: Simd>(simd: S, a: &[f32], dim: usize, k: &[f32], keys: usize, out: &mut [f32]) {
    let count = a.len() / dim;
    let vector = |i: usize| &a[i * dim..][..dim];
    let mut rows = out.chunks_exact_mut(keys);
    let mut row = || rows.next().unwrap_or_default();
    let together = count / TOGETHER * TOGETHER;
    for first in (0..together).step_by(TOGETHER) {
        let all: [usize; TOGETHER] = std::array::from_fn(|n| first + n);
        dots(simd, all.map(vector), k, all.map(|_| row()));
    }
    for i in together..count {
        dots(simd, [vector(i)], k, [row()]);
    }
}

/// Adds out[i, :] += Σ_j weights[i, j] · v[j, :] for all rows of `out (…, dim)`.
#[inline(always)]
fn mix<S: Simd>(simd: S, weights: &[f32], v: &[f32], dim: usize, out: &mut [f32]) {
    let inner = v.len() / dim;
    let weights = |i: usize| &weights[i * inner..][..inner];
    let rows = out.len() / dim;
    let mut outs = out.chunks_exact_mut(dim);
    let mut next = || outs.next().unwrap_or_default();
    let together = rows / TOGETHER * TOGETHER;
    for first in (0..together).step_by(TOGETHER) {
        let all: [usize; TOGETHER] = std::array::from_fn(|n| first + n);
        weighted_sums(simd, all.map(weights), v, all.map(|_| next()));
    }
    for i in together..rows {
        weighted_sums(simd, [weights(i)], v, [next()]);
    }
}

/// Writes the transpose of `from (rows, …)`.
#[inline(always)]
fn transpose(from: &[f32], rows: usize, to: &mut Vec<f32>) {
    let cols = from.len() / rows;
    to.clear();
    to.resize(from.len(), 0.0);
    for (r, row) in from.chunks_exact(cols).enumerate() {
        for (c, value) in row.iter().enumerate() {
            to[c * rows + r] = *value;
        }
    }
}

/// Returns the pages that a range of keys touches, as ranges of keys.
#[inline(always)]
fn pages_of(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    (keys.start / PAGE..keys.end.div_ceil(PAGE)).map(|page| page * PAGE..(page + 1) * PAGE)
}
