//! The gradients of `y = W x`: `dx = Wᵀ dy` and `dW = dy xᵀ`.

use super::{Number, outer, weighted_sum};

/// Returns `dx` `(inner)` and `dw` `(outer, inner)` for `x` `(inner)`, `w` `(outer, inner)` and
/// `dy` `(outer)`.
///
/// ```
/// use gritlm_model::reference::linear_backward;
/// let [dx, dw] = linear_backward(&[1.0, 2.0], &[1.0, 0.0, 3.0, 4.0], &[10.0, 1.0]);
/// assert_eq!(dx, [13.0, 4.0]);
/// assert_eq!(dw, [10.0, 20.0, 1.0, 2.0]);
/// ```
pub fn linear_backward<X: Number, W: Number, Y: Number>(
    x: &[X],
    w: &[W],
    dy: &[Y],
) -> [Vec<f64>; 2] {
    [weighted_sum(dy, w.chunks(x.len()), x.len()), outer(dy, x)]
}
