//! The gradients of `y = x · weight / r` with `r = √(mean(x²) + eps)`: for `g = weight · dy`,
//! `dx = (g − x mean(g x) / r²) / r` and `dweight = dy · x / r`.

use super::{Number, dot};

/// Returns `dx` and `dweight`, `(dim)` each, for `x`, `weight` and `dy`, `(dim)` each.
///
/// ```
/// use gritlm_model::reference::rmsnorm_backward;
/// // Without eps the length of x does not matter, so dx is orthogonal to it.
/// assert_eq!(rmsnorm_backward(&[2.0], &[3.0], 0.0, &[5.0]), [[0.0], [5.0]]);
/// ```
pub fn rmsnorm_backward<T: Number, W: Number, Y: Number>(
    x: &[T],
    weight: &[W],
    eps: f32,
    dy: &[Y],
) -> [Vec<f64>; 2] {
    let root = (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    let g: Vec<f64> = weight.iter().zip(dy).map(|(&w, &dy)| w.into() * dy.into()).collect();
    let mean = dot(&g, x) / x.len() as f64;
    let dx = x.iter().zip(&g).map(|(&x, g)| (g - x.into() * mean / root.powi(2)) / root);
    let dweight = x.iter().zip(dy).map(|(&x, &dy)| dy.into() * x.into() / root);
    [dx.collect(), dweight.collect()]
}
