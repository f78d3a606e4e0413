//! attention: out = softmax(q kᵀ / √head_dim + mask) v over the pages, per sequence and head.
//!
//! `q`, `out (rows, heads, head_dim)`; keys and values in pages. One task per sequence, key/value
//! head and block of [`QUERIES`] query tokens: the query heads that share a key/value head share
//! its pages while they lie in the cache. Scores of one block are stored, never those of a whole
//! sequence; pages that no query of the block sees are not touched. Each query's sums run over its
//! keys in order, so the block that it falls into does not change its bits.
//! Bound by arithmetic with many queries, by memory when decoding.

use super::Pages;
use super::shared::Shared;
use crate::ops::{Attention, Layout, PAGE, Span};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Query tokens of one task.
const QUERIES: usize = 8;

pub(super) fn attention(p: Attention, q: &[f32], pages: &Pages, layout: &Layout, out: &mut [f32]) {
    let tasks: Vec<(Span, usize, Range<usize>)> = layout
        .spans
        .iter()
        .flat_map(|&span| {
            let blocks = (0..span.rows as usize).step_by(QUERIES);
            let ranges = blocks.map(move |b| b..(b + QUERIES).min(span.rows as usize));
            ranges.flat_map(move |range| {
                (0..p.kv_heads as usize).map(move |head| (span, head, range.clone()))
            })
        })
        .collect();
    let out = Shared::new(out);
    let arch = Arch::new();
    tasks.par_iter().for_each_init(Vec::new, |scores, (span, kv_head, queries)| {
        let task = Task {
            p,
            q,
            pages,
            table: &layout.tables[span.table as usize..],
            span: *span,
            kv_head: *kv_head,
            queries: queries.clone(),
            scores,
            out: &out,
        };
        arch.dispatch(task);
    });
}

struct Task<'a> {
    p: Attention,
    q: &'a [f32],
    pages: &'a Pages,
    table: &'a [u32],
    span: Span,
    kv_head: usize,
    queries: Range<usize>,
    scores: &'a mut Vec<f32>,
    out: &'a Shared<'a>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (heads, head_dim) = (self.p.heads as usize, self.p.head_dim as usize);
        let group = heads / self.p.kv_heads as usize;
        let (past, row) = (self.span.past as usize, self.span.row as usize);
        let total = past + self.span.rows as usize;
        let scale = 1.0 / (head_dim as f32).sqrt();

        // The block's query vectors: each token's heads of this group. `at` is where q and out are.
        let count = self.queries.len() * group;
        let token = |i: usize| self.queries.start + i / group;
        let at =
            |i: usize| ((row + token(i)) * heads + self.kv_head * group + i % group) * head_dim;
        let keys = |i: usize| self.span.mask.keys(past + token(i), total);

        // Keys that any of them sees: a later query sees no earlier first and no earlier last key.
        let seen = keys(0).start..keys(count - 1).end;
        let width = seen.len();
        // Every score is written before it is read; what an earlier task has left may stay.
        self.scores.resize(self.scores.len().max(count * width), 0.0);

        for page in pages_of(&seen) {
            let here = page.start.max(seen.start)..page.end.min(seen.end);
            let physical = self.table[page.start / PAGE] as usize;
            let head = self.pages.head(self.p.layer as usize, physical, self.kv_head);
            let k = &self.pages.keys[head + (here.start - page.start) * head_dim..];
            for i in 0..count {
                let q = &self.q[at(i)..][..head_dim];
                let scores = &mut self.scores[i * width + here.start - seen.start..][..here.len()];
                dots(simd, q, k, scores);
            }
        }

        for i in 0..count {
            let keys = keys(i);
            let keys = keys.start - seen.start..keys.end - seen.start;
            softmax(&mut self.scores[i * width..][keys], scale);
            // SAFETY: a row and head belong to one task.
            unsafe { self.out.slice(at(i), head_dim) }.fill(0.0);
        }

        for page in pages_of(&seen) {
            let physical = self.table[page.start / PAGE] as usize;
            let head = self.pages.head(self.p.layer as usize, physical, self.kv_head);
            for i in 0..count {
                let keys = keys(i);
                let here = page.start.max(keys.start)..page.end.min(keys.end);
                if here.is_empty() {
                    continue;
                }
                let v = &self.pages.values[head + (here.start - page.start) * head_dim..];
                let weights = &self.scores[i * width + here.start - seen.start..][..here.len()];
                // SAFETY: a row and head belong to one task.
                let out = unsafe { self.out.slice(at(i), head_dim) };
                weighted_sum(simd, weights, v, out);
            }
        }
    }
}

/// The pages that a range of keys touches, as ranges of keys.
#[inline(always)]
fn pages_of(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    (keys.start / PAGE..keys.end.div_ceil(PAGE)).map(|page| page * PAGE..(page + 1) * PAGE)
}

/// scores[j] = q · k[j, :], four keys at a time for four independent chains of additions.
#[inline(always)]
fn dots<S: Simd>(simd: S, q: &[f32], k: &[f32], scores: &mut [f32]) {
    let (fours, rest) = scores.as_chunks_mut::<4>();
    let (first, last) = k.split_at(fours.len() * 4 * q.len());
    for (scores, k) in fours.iter_mut().zip(first.chunks_exact(4 * q.len())) {
        *scores = some_dots(simd, q, k);
    }
    for (score, k) in rest.iter_mut().zip(last.chunks_exact(q.len())) {
        [*score] = some_dots(simd, q, k);
    }
}

#[inline(always)]
fn some_dots<S: Simd, const N: usize>(simd: S, q: &[f32], k: &[f32]) -> [f32; N] {
    let (qv, q_rest) = S::as_simd_f32s(q);
    let mut rows: [&[S::f32s]; N] = [qv; N];
    for j in 0..N {
        rows[j] = &S::as_simd_f32s(&k[j * q.len()..][..q.len()]).0[..qv.len()];
    }
    let mut sum = [simd.splat_f32s(0.0); N];
    for d in 0..qv.len() {
        for j in 0..N {
            sum[j] = simd.mul_add_e_f32s(qv[d], rows[j][d], sum[j]);
        }
    }
    let mut dots = [0.0; N];
    for j in 0..N {
        dots[j] = simd.reduce_sum_f32s(sum[j]);
        let end = (j + 1) * q.len();
        for (q, k) in q_rest.iter().zip(&k[end - q_rest.len()..end]) {
            dots[j] += q * k;
        }
    }
    dots
}

/// Below it e^x is 0 in f32 (less than half of 2⁻¹⁴⁹), which libm finds out slowly, through errno:
/// 6 % of an embedding pass.
const UNDERFLOW: f32 = -104.0;

/// The sum in f64: with thousands of keys an f32 sum would lose the last two digits.
fn softmax(scores: &mut [f32], scale: f32) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for score in scores.iter_mut() {
        let exponent = (*score - max) * scale;
        *score = if exponent < UNDERFLOW { 0.0 } else { exponent.exp() };
        sum += f64::from(*score);
    }
    let inverse = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|s| *s *= inverse);
}

/// out += Σ_j weights[j] · v[j, :], in the order of j, four vectors of columns at a time.
#[inline(always)]
fn weighted_sum<S: Simd>(simd: S, weights: &[f32], v: &[f32], out: &mut [f32]) {
    let dim = out.len();
    let (vectors, rest) = S::as_mut_simd_f32s(out);
    let (fours, ones) = vectors.as_chunks_mut::<4>();
    let single = fours.len() * 4;
    for (d, sum) in fours.iter_mut().enumerate() {
        add_columns(simd, weights, v, dim, d * 4, sum);
    }
    for (d, sum) in ones.iter_mut().enumerate() {
        add_columns(simd, weights, v, dim, single + d, std::array::from_mut(sum));
    }
    let whole = dim - rest.len();
    for (c, out) in rest.iter_mut().enumerate() {
        for (weight, v) in weights.iter().zip(v.chunks_exact(dim)) {
            *out += weight * v[whole + c];
        }
    }
}

/// N vectors of columns, the first of them vector `d` of a row.
#[inline(always)]
fn add_columns<S: Simd, const N: usize>(
    simd: S,
    weights: &[f32],
    v: &[f32],
    dim: usize,
    d: usize,
    out: &mut [S::f32s; N],
) {
    let mut sum = *out;
    for (weight, v) in weights.iter().zip(v.chunks_exact(dim)) {
        let weight = simd.splat_f32s(*weight);
        let v = &S::as_simd_f32s(v).0[d..d + N];
        for c in 0..N {
            sum[c] = simd.mul_add_e_f32s(weight, v[c], sum[c]);
        }
    }
    *out = sum;
}
