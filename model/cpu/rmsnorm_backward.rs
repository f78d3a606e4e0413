//! rmsnorm_backward: with s = 1 / √(mean(x²) + eps) of a row,
//! dx += s · (w ⊙ dh − x · s² · Σ(x ⊙ w ⊙ dh) / dim) and dw += Σ_rows s · x ⊙ dh.
//!
//! Blocks of [`ROWS`] rows are processed in parallel; each sums its part of dw, and the parts are
//! added in the order of the rows. Bound by memory.

use super::Matrix;
use crate::ops::RmsNorm;
use rayon::prelude::*;

/// Rows of one part of dw.
const ROWS: usize = 32;

pub(super) fn rmsnorm_backward(
    p: RmsNorm,
    x: &[f32],
    weight: &Matrix,
    dh: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut Vec<f32>>,
) {
    let (rows, dim) = (p.rows as usize, p.dim as usize);
    let mut w = vec![0.0; dim];
    weight.row_f32(0, &mut w);
    let block = ROWS * dim;
    let mut parts = vec![0.0; rows.div_ceil(ROWS) * dim];
    dx[..rows * dim]
        .par_chunks_mut(block)
        .zip(x[..rows * dim].par_chunks(block))
        .zip(dh[..rows * dim].par_chunks(block))
        .zip(parts.par_chunks_exact_mut(dim))
        .for_each(|(((dx, x), dh), part)| {
            let rows = dx.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(dh.chunks_exact(dim));
            rows.for_each(|((dx, x), dh)| row(p.eps, x, &w, dh, dx, part));
        });
    if let Some(dweight) = dweight {
        for part in parts.chunks_exact(dim) {
            dweight.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
}

fn row(eps: f32, x: &[f32], w: &[f32], dh: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    // In f64: both sums are over a whole row, and the second one's terms cancel.
    let (mut squares, mut along) = (0.0f64, 0.0f64);
    for ((x, w), d) in x.iter().zip(w).zip(dh) {
        squares += f64::from(x * x);
        along += f64::from(x * w * d);
    }
    let dim = x.len() as f64;
    let scale = 1.0 / (squares / dim + f64::from(eps)).sqrt();
    let (s, pull) = (scale as f32, (scale * scale * along / dim) as f32);
    for ((((dx, dw), x), w), d) in dx.iter_mut().zip(dw).zip(x).zip(w).zip(dh) {
        *dx += s * (w * d - x * pull);
        *dw += s * x * d;
    }
}
