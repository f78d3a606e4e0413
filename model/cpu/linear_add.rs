//! linear_add: x[r, :] += a[r, :] · Wᵀ. `a (rows, inner)`, `w (outer, inner)`, `x (rows, outer)`.
//! Bound by arithmetic with many rows, by memory with few.

use super::Matrix;
use super::matmul::{Packed, matmul};
use super::shared::Shared;
use crate::ops::LinearAdd;

pub(super) fn linear_add(p: LinearAdd, a: &[f32], w: &Matrix, x: &mut [f32]) {
    let outer = p.outer as usize;
    let out = Shared::new(x);
    matmul(
        &Packed::new(w, p.rows as usize, p.inner as usize, a),
        outer,
        &[0],
        |rows, all| w.rows(rows, all),
        |row, cols, values| {
            // SAFETY: matmul emits each row and column exactly once.
            let x = unsafe { out.slice(row * outer + cols.start, values.len()) };
            for (x, value) in x.iter_mut().zip(values) {
                *x += value;
            }
        },
    );
}
