//! `softmax(q Kᵀ / √head_dim) V` for one query of one head. The caller applies the mask by
//! passing only the visible keys.

use super::{Number, dot, softmax, weighted_sum};

/// Returns the scores, `q Kᵀ / √head_dim`, of the keys that a query sees.
pub fn attention_scores<Q: Number, K: Number>(query: &[Q], keys: &[&[K]]) -> Vec<f64> {
    let scale = (query.len() as f64).sqrt();
    keys.iter().map(|key| dot(query, key) / scale).collect()
}

/// Returns the weighted mean of the values, `(head_dim)`. `keys` and `values` are those that the
/// query sees, `(head_dim)` each and at least one. Grouped-query attention passes the same ones
/// for several query heads.
pub fn attention<Q: Number, K: Number>(query: &[Q], keys: &[&[K]], values: &[&[K]]) -> Vec<f64> {
    let weights = softmax(&attention_scores(query, keys));
    weighted_sum(&weights, values.iter().copied(), query.len())
}
