//! linear_add_backward: da[r, :] = dx[r, :] · W, dW += dxᵀ · a. `a`, `da (rows, inner)`,
//! `W (outer, inner)`, `dx (rows, outer)`. The other projections use it too. Bound by arithmetic.

use super::Matrix;
use super::outer::{columns_by, rows_by, rows_of};
use crate::ops::LinearAdd;
use std::ops::Range;

pub(super) fn linear_add_backward(
    p: LinearAdd,
    a: &[f32],
    w: &Matrix,
    dx: &[f32],
    da: &mut [f32],
    dw: Option<&mut Vec<f32>>,
) {
    let sizes = [p.rows, p.inner, p.outer].map(|n| n as usize);
    input(sizes, dx, w, 0, da, false);
    if let Some(dw) = dw {
        weights(sizes, dx, a, dw);
    }
}

/// Computes dh = dy · W, or adds it, for `dy (rows, outer)` and the `outer` rows of `w` from `first`
/// on.
pub(super) fn input(
    [rows, inner, outer]: [usize; 3],
    dy: &[f32],
    w: &Matrix,
    first: usize,
    dh: &mut [f32],
    add: bool,
) {
    let weight = |r: usize, columns: Range<usize>, out: &mut [f32]| w.part(first + r, columns, out);
    rows_by([rows, inner, outer], dy, weight, dh, add);
}

/// Adds dW += dyᵀ · h, `h (rows, inner)`, `dy (rows, outer)`, `dW (outer, inner)`.
pub(super) fn weights([rows, inner, outer]: [usize; 3], dy: &[f32], h: &[f32], dw: &mut [f32]) {
    columns_by([outer, inner, rows], dy, rows_of(h, inner), dw);
}
