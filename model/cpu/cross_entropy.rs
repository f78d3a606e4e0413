//! cross_entropy: with the logits z = h[rows[i], :] · Wᵀ, loss = ln Σ_v e^z_v − z_target and
//! dz = scale · (softmax(z) − onehot(target)); then dh[rows[i], :] += dz · W and dW += dzᵀ · h.
//! `h (…, dim)`, `W (vocab, dim)`.
//!
//! The logits of [`LOGITS`] values exist at a time, and become their own gradients. A smaller
//! block would read and write all of dW more often: with 49,152 · 576 weights, a block of 340 rows
//! takes 8 times as long for its products as for reading and writing them. Bound by arithmetic.

use super::Matrix;
use super::linear_add_backward::{input, weights};
use super::matmul::{Packed, matmul};
use super::shared::Shared;
use crate::ops::CrossEntropy;
use rayon::prelude::*;

/// Logits that exist at a time: 64 MiB.
const LOGITS: usize = 1 << 24;

/// A row that predicts: its index, the token that follows, and the weight of its loss.
pub(super) struct Row {
    row: usize,
    target: usize,
    scale: f32,
}

/// Returns the rows that predict.
pub(super) fn rows(rows: &[u32], targets: &[u32], scales: &[f32]) -> Vec<Row> {
    let row = |((&row, &target), &scale): ((&u32, &u32), &f32)| Row {
        row: row as usize,
        target: target as usize,
        scale,
    };
    rows.iter().zip(targets).zip(scales).map(row).collect()
}

pub(super) fn cross_entropy(
    p: CrossEntropy,
    rows: &[Row],
    h: &[f32],
    w: &Matrix,
    losses: &mut [f32],
    dh: &mut [f32],
    mut dw: Option<&mut Vec<f32>>,
) {
    let (dim, vocab) = (p.dim as usize, p.vocab as usize);
    let block = (LOGITS / vocab).max(16);
    let mut logits = vec![0.0; block.min(rows.len()) * vocab];
    let mut dblock = vec![0.0; block.min(rows.len()) * dim];
    for (rows, losses) in rows.chunks(block).zip(losses.chunks_mut(block)) {
        let taken: Vec<f32> = rows.iter().flat_map(|r| &h[r.row * dim..][..dim]).copied().collect();
        let logits = &mut logits[..rows.len() * vocab];
        let out = Shared::new(logits);
        matmul(
            &Packed::new(w, rows.len(), dim, &taken),
            vocab,
            &[0],
            |rows, all| w.rows(rows, all),
            |row, cols, values| {
                // SAFETY: matmul emits each row and column exactly once.
                unsafe { out.slice(row * vocab + cols.start, values.len()) }
                    .copy_from_slice(values);
            },
        );
        let all = logits.par_chunks_exact_mut(vocab).zip(rows).zip(&mut losses[..]);
        all.for_each(|((logits, row), loss)| *loss = differentiate(logits, row));
        let sizes = [rows.len(), dim, vocab];
        input(sizes, logits, w, 0, &mut dblock, false);
        for (row, from) in rows.iter().zip(dblock.chunks_exact(dim)) {
            let to = &mut dh[row.row * dim..][..dim];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        if let Some(dw) = dw.as_deref_mut() {
            weights(sizes, logits, &taken, dw);
        }
    }
}

/// Replaces logits by their gradients and returns the loss. The sum is in f64, as a softmax's
/// over a whole vocabulary.
fn differentiate(logits: &mut [f32], row: &Row) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let target = logits[row.target];
    let mut sum = 0.0f64;
    for logit in logits.iter_mut() {
        *logit = (*logit - max).exp();
        sum += f64::from(*logit);
    }
    let share = (f64::from(row.scale) / sum) as f32;
    logits.iter_mut().for_each(|weight| *weight *= share);
    logits[row.target] -= row.scale;
    (f64::from(max) + sum.ln() - f64::from(target)) as f32
}
