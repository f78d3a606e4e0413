//! logits: out[i, :] = rmsnorm(x[rows[i], :]) · Wᵀ, for the requested rows only. `x (…, dim)`,
//! `norm (dim)`, `w (vocab, dim)`, `out (rows.len(), vocab)`. Bound by memory.

use super::Matrix;
use super::matmul::{Packed, matmul};
use super::rmsnorm::norm_row;
use super::shared::Shared;
use crate::ops::Logits;

pub(super) fn logits(
    p: Logits,
    rows: &[u32],
    x: &[f32],
    norm: &Matrix,
    w: &Matrix,
    out: &mut [f32],
) {
    let (dim, vocab) = (p.dim as usize, p.vocab as usize);
    let mut weight = vec![0.0; dim];
    norm.row_f32(0, &mut weight);
    let packed = Packed::gather(w, rows.len(), dim, |i, row| {
        norm_row(p.eps, &x[rows[i] as usize * dim..][..dim], &weight, row);
    });
    let out = Shared::new(out);
    matmul(
        &packed,
        vocab,
        &[0],
        |rows, all| w.rows(rows, all),
        |row, cols, values| {
            // SAFETY: matmul emits each row and column exactly once.
            unsafe { out.slice(row * vocab + cols.start, values.len()) }.copy_from_slice(values);
        },
    );
}
