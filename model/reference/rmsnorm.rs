//! `y = x · weight / √(mean(x²) + eps)`.

use super::{Number, dot};

/// Returns the normalised row, `(dim)`, for `x` and `weight`, `(dim)` each.
///
/// ```
/// use gritlm_model::reference::rmsnorm;
/// assert_eq!(rmsnorm(&[3.0, 4.0], &[5.0, 10.0], 0.0), [15.0 / 12.5f64.sqrt(), 40.0 / 12.5f64.sqrt()]);
/// ```
pub fn rmsnorm<T: Number, W: Number>(x: &[T], weight: &[W], eps: f32) -> Vec<f64> {
    let mean = dot(x, x) / x.len() as f64;
    let root = (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| x.into() * w.into() / root).collect()
}
