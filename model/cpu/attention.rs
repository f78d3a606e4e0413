//! attention: out = softmax(q kᵀ / √head_dim + mask) v over the paged KV cache, per sequence and
//! head.
//!
//! `q` and `out` are `(rows, heads, head_dim)`; keys and values are in pages. Each task handles
//! one sequence, key/value head and block of [`QUERIES`] query tokens, so the query heads that
//! share a key/value head use its pages while they are in the CPU's cache. A task stores the
//! scores of its block only, and does not touch pages that no query of the block sees. Each
//! query's sums run over its keys in order, so its bits do not depend on the block it falls into.
//! Bound by arithmetic with many queries, by memory when decoding.

use super::Pages;
use super::shared::Shared;
use crate::ops::{Attention, Layout, PAGE, Span};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Query tokens of one task.
const QUERIES: usize = 8;
/// Query vectors processed at once, with four keys or four vectors of columns: 16 independent
/// chains of additions, in which each load of keys or values is used four times. Each query gets
/// the same sums as it would alone.
pub(super) const TOGETHER: usize = 4;

/// Computes attention; `lse (rows, heads)` gets ln Σ e^score of each query where it is wanted.
pub(super) fn attention(
    p: Attention,
    q: &[f32],
    pages: &Pages,
    layout: &Layout,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
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
    let (out, lse) = (Shared::new(out), lse.map(Shared::new));
    let arch = Arch::new();
    tasks.par_iter().for_each_init(Default::default, |(scores, room), (span, kv_head, queries)| {
        let task = Task {
            p,
            q,
            pages,
            table: &layout.tables[span.table as usize..],
            span: *span,
            kv_head: *kv_head,
            queries: queries.clone(),
            scores,
            room,
            out: &out,
            lse: lse.as_ref(),
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
    /// Keys or values of a page, where they are not stored in f32.
    room: &'a mut Vec<f32>,
    out: &'a Shared<'a>,
    lse: Option<&'a Shared<'a>>,
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

        // The block's query vectors are each token's heads of this group. `at` is the index of
        // vector i in q and out.
        let count = self.queries.len() * group;
        let token = |i: usize| self.queries.start + i / group;
        let at =
            |i: usize| ((row + token(i)) * heads + self.kv_head * group + i % group) * head_dim;
        let keys = |i: usize| self.span.mask.keys(past + token(i), total);

        // The keys that any of them sees: the first and the last visible key never move back from
        // one query to the next.
        let seen = keys(0).start..keys(count - 1).end;
        let width = seen.len();
        // Every score is written before it is read, so values of an earlier task may stay.
        self.scores.resize(self.scores.len().max(count * width), 0.0);

        for page in pages_of(&seen) {
            let here = page.start.max(seen.start)..page.end.min(seen.end);
            let physical = self.table[page.start / PAGE] as usize;
            let vectors = here.start - page.start..here.end - page.start;
            let at_head = self.pages.head(self.p.layer as usize, physical, self.kv_head, vectors);
            let k = self.pages.keys.read(at_head, self.room);
            let q = |i: usize| &self.q[at(i)..][..head_dim];
            let columns = here.start - seen.start..here.end - seen.start;
            let mut rows = self.scores[..count * width].chunks_exact_mut(width);
            let mut row = || &mut rows.next().unwrap_or_default()[columns.clone()];
            let together = count / TOGETHER * TOGETHER;
            for first in (0..together).step_by(TOGETHER) {
                let all: [usize; TOGETHER] = std::array::from_fn(|n| first + n);
                dots(simd, all.map(q), k, all.map(|_| row()));
            }
            for i in together..count {
                dots(simd, [q(i)], k, [row()]);
            }
        }

        for i in 0..count {
            let keys = keys(i);
            let keys = keys.start - seen.start..keys.end - seen.start;
            let sum = softmax(&mut self.scores[i * width..][keys], scale);
            if let Some(lse) = self.lse {
                // SAFETY: each row and head belongs to exactly one task.
                unsafe { lse.slice(at(i) / head_dim, 1) }.fill(sum);
            }
            // SAFETY: each row and head belongs to exactly one task.
            unsafe { self.out.slice(at(i), head_dim) }.fill(0.0);
        }

        for page in pages_of(&seen) {
            let physical = self.table[page.start / PAGE] as usize;
            let all = page.start.max(seen.start)..page.end.min(seen.end);
            let vectors = all.start - page.start..all.end - page.start;
            let at_head = self.pages.head(self.p.layer as usize, physical, self.kv_head, vectors);
            let values = self.pages.values.read(at_head, self.room);
            let here = |i: usize| {
                let keys = keys(i);
                page.start.max(keys.start)..page.end.min(keys.end)
            };
            let mut first = 0;
            while first < count {
                let keys = here(first);
                let some: [usize; TOGETHER] = std::array::from_fn(|n| first + n);
                // Queries that see the same keys of the page share its loads.
                let together = first + TOGETHER <= count && some.iter().all(|&i| here(i) == keys);
                if !keys.is_empty() {
                    let v = &values[(keys.start - all.start) * head_dim..];
                    let weights = |i: usize| {
                        &self.scores[i * width + keys.start - seen.start..][..keys.len()]
                    };
                    // SAFETY: each row and head belongs to exactly one task.
                    let out = |i: usize| unsafe { self.out.slice(at(i), head_dim) };
                    if together {
                        weighted_sums(simd, some.map(weights), v, some.map(out));
                    } else {
                        weighted_sums(simd, [weights(first)], v, [out(first)]);
                    }
                }
                first += if together { TOGETHER } else { 1 };
            }
        }
    }
}

/// Returns the pages that a range of keys touches, as ranges of keys.
#[inline(always)]
pub(super) fn pages_of(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    (keys.start / PAGE..keys.end.div_ceil(PAGE)).map(|page| page * PAGE..(page + 1) * PAGE)
}

/// Computes scores[n][j] = q[n] · k[j, :], four keys at a time for independent chains of
/// additions.
#[inline(always)]
pub(super) fn dots<S: Simd, const N: usize>(
    simd: S,
    q: [&[f32]; N],
    k: &[f32],
    scores: [&mut [f32]; N],
) {
    let (dim, keys) = (q[0].len(), scores[0].len());
    let fours = keys / 4 * 4;
    for j in (0..fours).step_by(4) {
        let some = some_dots::<S, N, 4>(simd, q, &k[j * dim..]);
        for n in 0..N {
            scores[n][j..j + 4].copy_from_slice(&some[n]);
        }
    }
    for j in fours..keys {
        let some = some_dots::<S, N, 1>(simd, q, &k[j * dim..]);
        for n in 0..N {
            scores[n][j] = some[n][0];
        }
    }
}

/// Returns the inner products of N queries and K keys.
#[inline(always)]
fn some_dots<S: Simd, const N: usize, const K: usize>(
    simd: S,
    q: [&[f32]; N],
    k: &[f32],
) -> [[f32; K]; N] {
    let dim = q[0].len();
    let whole = S::as_simd_f32s(q[0]).0.len();
    let queries = q.map(|q| &S::as_simd_f32s(q).0[..whole]);
    let keys: [&[S::f32s]; K] =
        std::array::from_fn(|j| &S::as_simd_f32s(&k[j * dim..][..dim]).0[..whole]);
    let mut sums = [[simd.splat_f32s(0.0); K]; N];
    for d in 0..whole {
        for n in 0..N {
            for j in 0..K {
                sums[n][j] = simd.mul_add_e_f32s(queries[n][d], keys[j][d], sums[n][j]);
            }
        }
    }
    let mut dots = [[0.0; K]; N];
    for n in 0..N {
        let rest = S::as_simd_f32s(q[n]).1;
        for j in 0..K {
            dots[n][j] = simd.reduce_sum_f32s(sums[n][j]);
            let end = (j + 1) * dim;
            for (q, k) in rest.iter().zip(&k[end - rest.len()..end]) {
                dots[n][j] += q * k;
            }
        }
    }
    dots
}

/// Exponent below which e^x is 0 in f32 (less than half of 2⁻¹⁴⁹). Calling libm there is slow,
/// because it sets errno: 6 % of an embedding pass.
pub(super) const UNDERFLOW: f32 = -104.0;

/// Replaces scores by their softmax, and returns the logarithm of the sum of the exponentials. The
/// sum is in f64: with thousands of keys an f32 sum would lose the last two digits.
fn softmax(scores: &mut [f32], scale: f32) -> f32 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for score in scores.iter_mut() {
        let exponent = (*score - max) * scale;
        *score = if exponent < UNDERFLOW { 0.0 } else { exponent.exp() };
        sum += f64::from(*score);
    }
    let inverse = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|s| *s *= inverse);
    (f64::from(max * scale) + sum.ln()) as f32
}

/// Adds outs[n] += Σ_j weights[n][j] · v[j, :], in the order of j, four vectors of columns at a
/// time.
#[inline(always)]
pub(super) fn weighted_sums<S: Simd, const N: usize>(
    simd: S,
    weights: [&[f32]; N],
    v: &[f32],
    outs: [&mut [f32]; N],
) {
    let dim = outs[0].len();
    let mut vectors = 0;
    let mut split = outs.map(|out| {
        let (whole, rest) = S::as_mut_simd_f32s(out);
        vectors = whole.len();
        (whole, rest)
    });
    let fours = vectors / 4 * 4;
    for d in (0..fours).step_by(4) {
        add_columns::<S, N, 4>(simd, weights, v, dim, d, &mut split);
    }
    for d in fours..vectors {
        add_columns::<S, N, 1>(simd, weights, v, dim, d, &mut split);
    }
    for (weights, (_, rest)) in weights.iter().zip(&mut split) {
        let whole = dim - rest.len();
        for (c, out) in rest.iter_mut().enumerate() {
            for (weight, v) in weights.iter().zip(v.chunks_exact(dim)) {
                *out += weight * v[whole + c];
            }
        }
    }
}

/// Adds the weighted values in C vectors of columns, beginning with vector `d` of a row.
#[inline(always)]
fn add_columns<S: Simd, const N: usize, const C: usize>(
    simd: S,
    weights: [&[f32]; N],
    v: &[f32],
    dim: usize,
    d: usize,
    outs: &mut [(&mut [S::f32s], &mut [f32]); N],
) {
    let mut sums = [[simd.splat_f32s(0.0); C]; N];
    for n in 0..N {
        sums[n].copy_from_slice(&outs[n].0[d..d + C]);
    }
    let keys = weights[0].len();
    let weights = weights.map(|weights| &weights[..keys]);
    for (j, v) in v.chunks_exact(dim).take(keys).enumerate() {
        let v = &S::as_simd_f32s(v).0[d..d + C];
        for n in 0..N {
            let weight = simd.splat_f32s(weights[n][j]);
            for c in 0..C {
                sums[n][c] = simd.mul_add_e_f32s(weight, v[c], sums[n][c]);
            }
        }
    }
    for n in 0..N {
        outs[n].0[d..d + C].copy_from_slice(&sums[n]);
    }
}
