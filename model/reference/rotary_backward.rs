//! The gradient of a rotation is the rotation back.

use super::rotary;

/// Returns the gradient of a head before its rotation, `(head_dim)`, for that after it. The
/// position and the frequencies are those of [`rotary`].
pub fn rotary_backward(dhead: &[f64], position: u32, frequencies: &[f32]) -> Vec<f64> {
    let back: Vec<f32> = frequencies.iter().map(|frequency| -frequency).collect();
    rotary(dhead, position, &back)
}
