//! The gradient of pooling without normalisation: each row gets its share of the vector's.

use super::{Number, pooled_rows};
use crate::ops::PoolingSpan;

/// Returns the rows that a span's vector is computed from, and the gradient of each, `(dim)`, for
/// that of the vector, `dout` `(dim)`.
pub fn pool_backward<D: Number>(span: &PoolingSpan, dout: &[D]) -> Vec<(u32, Vec<f64>)> {
    let rows = pooled_rows(span);
    let total: f64 = rows.iter().map(|(_, weight)| weight).sum();
    let gradient = |weight: f64| dout.iter().map(|&d| weight / total * d.into()).collect();
    rows.into_iter().map(|(row, weight)| (row, gradient(weight))).collect()
}
