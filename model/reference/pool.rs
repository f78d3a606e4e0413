//! Pooling of a sequence's hidden states into one vector: GritLM takes the mean over the text
//! without its instruction.

use super::{Number, normalize};
use crate::ops::{Pooling, PoolingSpan};

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
    if span.normalize { normalize(&vector) } else { vector }
}
