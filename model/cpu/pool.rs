//! pool: pools each span of hidden states into one f32 vector, optionally L2-normalised.
//! `h (rows, dim)` is taken after the final norm, `out (spans, dim)`. Bound by memory.

use crate::ops::{Pooling, PoolingSpan};

pub(super) fn pool(dim: u32, spans: &[PoolingSpan], h: &[f32], out: &mut [f32]) {
    let dim = dim as usize;
    for (span, out) in spans.iter().zip(out.chunks_exact_mut(dim)) {
        let rows = &h[span.row as usize * dim..][..span.rows as usize * dim];
        let counted = &rows[span.skip as usize * dim..];
        match span.pooling {
            Pooling::Cls => out.copy_from_slice(&rows[..dim]),
            Pooling::LastToken => out.copy_from_slice(&rows[rows.len() - dim..]),
            Pooling::Mean => mean(counted, |_| 1.0, out),
            Pooling::WeightedMean => mean(counted, |i| (i + 1) as f32, out),
        }
        if span.normalize {
            // Like torch's `normalize`, this keeps a zero vector zero.
            let length = out.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            out.iter_mut().for_each(|v| *v /= length);
        }
    }
}

fn mean(rows: &[f32], weight: impl Fn(usize) -> f32, out: &mut [f32]) {
    out.fill(0.0);
    let mut total = 0.0;
    for (i, row) in rows.chunks_exact(out.len()).enumerate() {
        let weight = weight(i);
        total += weight;
        for (out, value) in out.iter_mut().zip(row) {
            *out += weight * value;
        }
    }
    out.iter_mut().for_each(|v| *v /= total);
}
