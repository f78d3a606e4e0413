//! Rows of activations, padded to a stride.

use std::borrow::Cow;

/// Pads rows of `cols` values with zeros to `stride` values. Returns the values themselves where
/// no padding is needed.
pub fn padded(values: &[f32], cols: usize, stride: usize) -> Cow<'_, [f32]> {
    if stride == cols || cols == 0 {
        return values.into();
    }
    let mut padded = vec![0.0; values.len() / cols * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(cols)) {
        to[..cols].copy_from_slice(from);
    }
    padded.into()
}

/// Returns the number of stored values that hold the first `len` values of padded rows.
pub fn stored(len: usize, cols: usize, stride: usize) -> usize {
    len.div_ceil(cols.max(1)) * stride
}

/// Removes the padding from [`stored`] values, and what follows the first `len`.
pub fn unpadded(stored: Vec<f32>, len: usize, cols: usize, stride: usize) -> Vec<f32> {
    let mut out = if stride == cols {
        stored
    } else {
        stored.chunks_exact(stride).flat_map(|row| &row[..cols]).copied().collect()
    };
    out.truncate(len);
    out
}
