//! `x / ‖x‖`, as torch's `normalize`: the divisor is at least 1e-12, so a zero vector stays as it
//! is.

use super::{Number, dot};

/// Smallest divisor.
const SHORTEST: f64 = 1e-12;

/// Returns the vector with length 1.
pub fn normalize<T: Number>(x: &[T]) -> Vec<f64> {
    let length = dot(x, x).sqrt().max(SHORTEST);
    x.iter().map(|&x| x.into() / length).collect()
}

/// Returns the gradient of `x` for that of the normalised vector, `du`: its part along `x` is
/// lost, because the length of `x` does not matter.
///
/// ```
/// use gritlm_model::reference::normalize_backward;
/// assert_eq!(normalize_backward(&[0.0, 2.0], &[5.0, 7.0]), [2.5, 0.0]);
/// ```
pub fn normalize_backward<T: Number>(x: &[T], du: &[f64]) -> Vec<f64> {
    let (u, length) = (normalize(x), dot(x, x).sqrt());
    if length < SHORTEST {
        // The divisor is constant.
        return du.iter().map(|du| du / SHORTEST).collect();
    }
    let along = dot(&u, du);
    u.iter().zip(du).map(|(u, du)| (du - u * along) / length).collect()
}
