//! Pooling of a sequence's hidden states into one vector: GritLM takes the mean over the text
//! without its instruction.

use super::{Number, dot};
use crate::ops::{Pooling, PoolingSpan};

/// Smallest divisor of [`normalize`].
pub(super) const SHORTEST: f64 = 1e-12;

/// Returns the rows of a batch that a span's vector is computed from, and the weight of each.
pub fn pooled_rows(span: &PoolingSpan) -> Vec<(u32, f64)> {
    let end = span.row + span.rows;
    match span.pooling {
        Pooling::Mean => (span.row + span.skip..end).map(|row| (row, 1.0)).collect(),
        Pooling::WeightedMean => (span.row + span.skip..end).zip((1..).map(f64::from)).collect(),
        Pooling::Cls => vec![(span.row, 1.0)],
        Pooling::LastToken => vec![(end - 1, 1.0)],
    }
}

/// Returns the vector, `(dim)`, of a span of the batch's hidden states `h`, `(rows, dim)`.
pub fn pool<T: Number>(h: &[T], dim: usize, span: &PoolingSpan) -> Vec<f64> {
    let rows = pooled_rows(span);
    let total: f64 = rows.iter().map(|(_, weight)| weight).sum();
    let column = |c: usize| {
        let weighted = |(row, weight): &(u32, f64)| weight * h[*row as usize * dim + c].into();
        rows.iter().map(weighted).sum::<f64>() / total
    };
    let vector: Vec<f64> = (0..dim).map(column).collect();
    if span.normalize { normalize(&vector).0 } else { vector }
}

/// Returns the vector divided by its length, and the divisor: as torch's `normalize`, which leaves
/// a zero vector as it is because it divides by at least 1e-12.
pub fn normalize<T: Number>(vector: &[T]) -> (Vec<f64>, f64) {
    let length = dot(vector, vector).sqrt().max(SHORTEST);
    (vector.iter().map(|&v| v.into() / length).collect(), length)
}
