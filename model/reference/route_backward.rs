//! The gradient of the router's logits. Two softmaxes of them enter the loss: the weights `w` of
//! the chosen experts, and, through an auxiliary loss that balances the experts (Fedus et al.
//! 2022), the probabilities `p` of all experts.

use super::{Number, exact, route, softmax, softmax_backward};

/// Returns the gradient of `logits`, `(experts)`, for `dweights` `(top_k)`, in the order of
/// [`route`], and `balance` `(experts)`, the gradient of the probabilities of all experts.
///
/// ```
/// use gritlm_model::reference::route_backward;
/// // Expert 1 alone is chosen. Its weight is always 1, so only the balance counts.
/// assert_eq!(route_backward(&[0.0, 0.0], 1, &[9.0], &[0.0, 4.0]), [-1.0, 1.0]);
/// ```
pub fn route_backward<D: Number, B: Number>(
    logits: &[f64],
    top_k: usize,
    dweights: &[D],
    balance: &[B],
) -> Vec<f64> {
    let [dweights, balance] = [exact(dweights), exact(balance)];
    let mut dlogits = softmax_backward(&softmax(logits), &balance);
    let (chosen, weights): (Vec<usize>, Vec<f64>) = route(logits, top_k).into_iter().unzip();
    for (expert, d) in chosen.into_iter().zip(softmax_backward(&weights, &dweights)) {
        dlogits[expert] += d;
    }
    dlogits
}
