//! The gradients of `out = p V` with `p = softmax(s)` and `s = q Kᵀ / √head_dim`, for one query of
//! one head: `dV = pᵀ dout`, `dp = dout Vᵀ`, `dq = ds K / √head_dim`, `dK = dsᵀ q / √head_dim`.
//!
//! FlashAttention-2 (Dao 2023) keeps `lse = ln Σ eˢ` in the forward pass and computes `p` again as
//! `exp(s − lse)`. It takes `Σ p dp`, which the gradient of a softmax needs, as `dout · out`.

use super::{Number, attention_scores, dot, outer, softmax, softmax_backward, weighted_sum};

/// Returns `dq` `(head_dim)`, `dkeys` and `dvalues` `(keys, head_dim)` for the inputs of
/// [`attention`](super::attention) and `dout` `(head_dim)`.
///
/// Grouped-query attention adds up the keys' and values' gradients of several query heads.
pub fn attention_backward<Q: Number, K: Number, D: Number>(
    query: &[Q],
    keys: &[&[K]],
    values: &[&[K]],
    dout: &[D],
) -> [Vec<f64>; 3] {
    let p = softmax(&attention_scores(query, keys));
    let dp: Vec<f64> = values.iter().map(|value| dot(value, dout)).collect();
    let scale = (query.len() as f64).sqrt();
    let ds: Vec<f64> = softmax_backward(&p, &dp).into_iter().map(|ds| ds / scale).collect();
    [weighted_sum(&ds, keys.iter().copied(), query.len()), outer(&ds, query), outer(&p, dout)]
}
