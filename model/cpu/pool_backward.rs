//! pool_backward: dh[row, :] += weight of the row / Σ weights · dout[span, :]. Bound by memory.

use crate::ops::{Pooling, PoolingSpan};

pub(super) fn pool_backward(dim: u32, spans: &[PoolingSpan], dout: &[f32], dh: &mut [f32]) {
    let dim = dim as usize;
    for (span, dout) in spans.iter().zip(dout.chunks_exact(dim)) {
        debug_assert!(!span.normalize, "the contrastive loss normalises");
        let (first, last) = (span.row + span.skip, span.row + span.rows);
        let rows = match span.pooling {
            Pooling::Mean | Pooling::WeightedMean => first..last,
            Pooling::Cls => span.row..span.row + 1,
            Pooling::LastToken => last - 1..last,
        };
        let weight =
            |n: usize| if span.pooling == Pooling::WeightedMean { n as f32 + 1.0 } else { 1.0 };
        let total: f32 = (0..rows.len()).map(weight).sum();
        for (n, row) in rows.enumerate() {
            let share = weight(n) / total;
            let dh = &mut dh[row as usize * dim..][..dim];
            dh.iter_mut().zip(dout).for_each(|(dh, d)| *dh += share * d);
        }
    }
}
