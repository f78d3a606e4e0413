//! Mixtral's router: a softmax over all experts, of which the `top_k` largest are kept and
//! renormalised to sum to 1. The sum over all experts cancels, so this is a softmax over the
//! chosen ones.

use super::{largest_first, softmax};

/// Returns the chosen experts with their weights, the largest first, for `logits`, `(experts)`.
///
/// ```
/// use gritlm_model::reference::route;
/// let chosen = route(&[0.0, 2.0, 1.0], 2);
/// let sum = 1.0 + (-1f64).exp();
/// assert_eq!(chosen, [(1, 1.0 / sum), (2, (-1f64).exp() / sum)]);
/// ```
pub fn route(logits: &[f64], top_k: usize) -> Vec<(usize, f64)> {
    let mut order = largest_first(logits);
    order.truncate(top_k);
    let kept: Vec<f64> = order.iter().map(|&expert| logits[expert]).collect();
    order.into_iter().zip(softmax(&kept)).collect()
}
