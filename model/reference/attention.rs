//! `softmax(q Kᵀ / √head_dim) V` for one query of one head. The caller applies the mask by
//! passing only the visible keys.

use super::dot;

/// Returns the weighted mean of the values, `(head_dim)`. `keys` and `values` are those that the
/// query sees, `(head_dim)` each and at least one. Grouped-query attention passes the same ones
/// for several query heads.
pub fn attention(query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let scale = (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, key) / scale).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let mut mixed = vec![0.0; query.len()];
    for (score, value) in scores.iter().zip(values) {
        let weight = (score - max).exp() / sum;
        mixed.iter_mut().zip(*value).for_each(|(mixed, &v)| *mixed += weight * f64::from(v));
    }
    mixed
}
