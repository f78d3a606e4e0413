//! rmsnorm: h[r, c] = x[r, c] · weight[c] / √(mean_c(x[r, :]²) + eps), with the mean in f32. `x`,
//! `h (rows, dim)`. Rows are processed in parallel. Bound by memory.

use super::Matrix;
use crate::ops::RmsNorm;
use rayon::prelude::*;

pub(super) fn rmsnorm(p: RmsNorm, x: &[f32], weight: &Matrix, h: &mut [f32]) {
    let (rows, dim) = (p.rows as usize, p.dim as usize);
    let mut w = vec![0.0; dim];
    weight.row_f32(0, &mut w);
    h[..rows * dim]
        .par_chunks_exact_mut(dim)
        .with_min_len(1 + (1 << 14) / dim)
        .zip(x.par_chunks_exact(dim))
        .for_each(|(h, x)| norm_row(p.eps, x, &w, h));
}

/// Normalises one row; `logits` uses it too, for the final norm.
pub(super) fn norm_row(eps: f32, x: &[f32], weight: &[f32], h: &mut [f32]) {
    // Sixteen running sums have shorter chains than one, so less rounding error, and vectorise.
    let mut sums = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((h, x), w) in h.iter_mut().zip(x).zip(weight) {
        *h = x * scale * w;
    }
}
