//! The gradients of `silu(gate) ⊙ up` with `gate = W₁ h` and `up = W₃ h`. With `σ` the sigmoid,
//! `silu(x) = x σ(x)` has the derivative `σ(x) (1 + x (1 − σ(x)))`.

use super::{Number, linear, linear_backward};

/// Returns the gradients of the products `[gate; up]`, `(2 · hidden)`, for the products and `dout`
/// `(hidden)`.
///
/// ```
/// use gritlm_model::reference::gated_backward;
/// assert_eq!(gated_backward(&[0.0, 3.0], &[2.0]), [3.0, 0.0]);
/// ```
pub fn gated_backward<D: Number>(products: &[f64], dout: &[D]) -> Vec<f64> {
    let (gate, up) = products.split_at(dout.len());
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
    let dgate = gate.iter().zip(up).zip(dout).map(|((&x, up), &d)| d.into() * up * slope(x));
    let dup = gate.iter().zip(dout).map(|(&x, &d)| d.into() * x * sigmoid(x));
    dgate.chain(dup).collect()
}

/// Returns `dh` `(dim)` and the gradient of the stacked matrices, `(2 · hidden, dim)`, for the
/// inputs of [`gate_up`](super::gate_up) and `dout` `(hidden)`.
pub fn gate_up_backward<T: Number, W: Number, D: Number>(
    h: &[T],
    stacked: &[W],
    dout: &[D],
) -> [Vec<f64>; 2] {
    linear_backward(h, stacked, &gated_backward(&linear(h, stacked), dout))
}
