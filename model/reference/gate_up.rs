//! `silu(W₁ h) ⊙ W₃ h`, the first half of SwiGLU, where `silu(x) = x / (1 + e⁻ˣ)`.

use super::{Number, linear};

/// Returns the gated row, `(hidden)`, for `h` `(dim)` and the stacked matrices `[W₁; W₃]`,
/// `(2 · hidden, dim)`.
pub fn gate_up<T: Number, W: Number>(h: &[T], stacked: &[W]) -> Vec<f64> {
    let (w1, w3) = stacked.split_at(stacked.len() / 2);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    linear(h, w1).into_iter().zip(linear(h, w3)).map(|(gate, up)| silu(gate) * up).collect()
}
