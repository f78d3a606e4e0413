//! `softmax(x)ᵢ = exp(xᵢ) / Σⱼ exp(xⱼ)`, its logarithm, and its gradient. The largest value is
//! subtracted first, because an exponential of a large score overflows.

use super::{Number, dot, exact};

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Returns `softmax(values)`.
///
/// ```
/// use gritlm_model::reference::softmax;
/// assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
/// ```
pub fn softmax(values: &[f64]) -> Vec<f64> {
    let max = largest(values);
    let sum: f64 = values.iter().map(|value| (value - max).exp()).sum();
    values.iter().map(|value| (value - max).exp() / sum).collect()
}

/// Returns `ln Σ exp(valuesᵢ)`.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = largest(values);
    max + values.iter().map(|value| (value - max).exp()).sum::<f64>().ln()
}

/// Returns `ln softmax(logits)`, `(vocab)`.
pub fn log_softmax<T: Number>(logits: &[T]) -> Vec<f64> {
    let logits = exact(logits);
    let total = log_sum_exp(&logits);
    logits.into_iter().map(|logit| logit - total).collect()
}

/// Returns the gradient of the values, `pᵢ (dpᵢ − Σⱼ pⱼ dpⱼ)`, where `p` is their softmax and `dp`
/// its gradient.
pub fn softmax_backward(p: &[f64], dp: &[f64]) -> Vec<f64> {
    let mean = dot(p, dp);
    p.iter().zip(dp).map(|(p, dp)| p * (dp - mean)).collect()
}
