//! `loss = −ln softmax(logits)_target`, and its gradient `softmax(logits) − 1 at the target`.

use super::{log_softmax, softmax};

/// Returns the loss and the gradient of `logits`, `(vocab)`.
///
/// ```
/// use gritlm_model::reference::cross_entropy;
/// assert_eq!(cross_entropy(&[0.0, 0.0], 1), (2f64.ln(), vec![0.5, -0.5]));
/// ```
pub fn cross_entropy(logits: &[f64], target: usize) -> (f64, Vec<f64>) {
    let mut dlogits = softmax(logits);
    dlogits[target] -= 1.0;
    (-log_softmax(logits)[target], dlogits)
}
