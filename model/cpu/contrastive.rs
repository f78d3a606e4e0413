//! contrastive: with unit vectors q̂ and p̂ of the first `used` columns and scores
//! s_j = q̂ · p̂_j / temperature over a query's candidates, loss = ln Σ_j e^s_j − s_target and
//! ds = scale · (softmax(s) − onehot(target)). Then dq̂ = Σ_j ds_j p̂_j / temperature, dp̂_j adds up
//! ds_j q̂ / temperature over the queries, and dq = (dq̂ − (dq̂ · q̂) q̂) / ‖q‖, likewise dp.
//! `queries (queries, dim)`, `passages (passages, dim)`.
//!
//! The scores of all pairs exist, 32 MB for 2,048 queries with two passages each. Bound by
//! arithmetic.

use super::outer::{columns_by, rows_by, rows_of};
use crate::ops::{Contrast, Contrastive};
use rayon::prelude::*;

pub(super) fn contrastive(
    p: Contrastive,
    wanted: &[Contrast],
    [queries, passages]: [&[f32]; 2],
    losses: &mut [f32],
    [dqueries, dpassages]: [&mut [f32]; 2],
) {
    let [n, m, dim, used] = [p.queries, p.passages, p.dim, p.used].map(|n| n as usize);
    let (q, q_lengths) = unit(&queries[..n * dim], dim, used);
    let (d, d_lengths) = unit(&passages[..m * dim], dim, used);
    let mut scores = vec![0.0; n * m];
    let transposed = |c: usize, columns: std::ops::Range<usize>, out: &mut [f32]| {
        for (out, passage) in out.iter_mut().zip(columns) {
            *out = d[passage * used + c];
        }
    };
    rows_by([n, m, used], &q, transposed, &mut scores, false);
    let rows = scores.par_chunks_exact_mut(m.max(1)).zip(wanted).zip(&mut losses[..n]);
    rows.for_each(|((scores, wanted), loss)| *loss = differentiate(p, wanted, scores));

    let mut dq = vec![0.0; n * used];
    rows_by([n, used, m], &scores, rows_of(&d, used), &mut dq, false);
    let mut dd = vec![0.0; m * used];
    columns_by([m, used, n], &scores, rows_of(&q, used), &mut dd);
    add(&dq, &q, &q_lengths, used, dqueries, dim);
    add(&dd, &d, &d_lengths, used, dpassages, dim);
}

/// Returns the unit vectors of the first `used` columns, and the lengths they had.
fn unit(rows: &[f32], dim: usize, used: usize) -> (Vec<f32>, Vec<f32>) {
    let length = |row: &[f32]| {
        let squares: f64 = row[..used].iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        // As torch's `normalize`, which leaves a zero vector as it is.
        (squares.sqrt() as f32).max(1e-12)
    };
    let lengths: Vec<f32> = rows.chunks_exact(dim).map(length).collect();
    let scaled = rows.chunks_exact(dim).zip(&lengths);
    let unit = scaled.flat_map(|(row, length)| row[..used].iter().map(move |v| v / length));
    (unit.collect(), lengths)
}

/// Replaces a query's cosines by the gradients with respect to them, which are 0 for passages that
/// are not its candidates, and returns the loss.
fn differentiate(p: Contrastive, wanted: &Contrast, cosines: &mut [f32]) -> f32 {
    let (first, count) = (wanted.first as usize, wanted.count as usize);
    let target = wanted.target as usize - first;
    let (before, rest) = cosines.split_at_mut(first);
    let (candidates, after) = rest.split_at_mut(count);
    before.fill(0.0);
    after.fill(0.0);
    let max = candidates.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let positive = candidates[target];
    let mut sum = 0.0f64;
    for cosine in candidates.iter_mut() {
        *cosine = ((*cosine - max) / p.temperature).exp();
        sum += f64::from(*cosine);
    }
    let scale = p.scale / p.temperature;
    let share = (f64::from(scale) / sum) as f32;
    candidates.iter_mut().for_each(|weight| *weight *= share);
    candidates[target] -= scale;
    (sum.ln() - f64::from(positive - max) / f64::from(p.temperature)) as f32
}

/// Adds the gradients of vectors, given those of their unit vectors.
fn add(dunit: &[f32], unit: &[f32], lengths: &[f32], used: usize, out: &mut [f32], dim: usize) {
    let rows = out.chunks_exact_mut(dim).zip(dunit.chunks_exact(used));
    for ((out, dunit), (unit, length)) in rows.zip(unit.chunks_exact(used).zip(lengths)) {
        let along: f32 = dunit.iter().zip(unit).map(|(d, u)| d * u).sum();
        for ((out, d), u) in out.iter_mut().zip(dunit).zip(unit) {
            *out += (d - along * u) / length;
        }
    }
}
