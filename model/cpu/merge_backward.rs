//! merge_backward: dB += scale · dW · (A · diag(mask))ᵀ, dA += scale · Bᵀ · dW · diag(mask), for the
//! rows of one part of a matrix. `dW (rows, cols)`, shapes else as in `merge.rs`. A is transposed
//! first, because the rows of the right operand of `outer.rs` are contiguous; it is `rank / rows` of
//! W's size. Bound by memory, as `merge.rs`.

use super::merge::{masked, scaled};
use super::outer::{columns_by, rows_by, rows_of};
use crate::ops::Merge;

pub(super) fn merge_backward(
    p: Merge,
    dw: &[f32],
    [b, a]: [&[f32]; 2],
    mask: Option<&[f32]>,
    [db, da]: [&mut [f32]; 2],
) {
    let [first, rows, cols, rank] = [p.first, p.rows, p.cols, p.rank].map(|n| n as usize);
    let dw = &dw[first * cols..][..rows * cols];
    let a = masked(a, mask, cols);
    let mut turned = vec![0.0; rank * cols];
    for (i, turned) in turned.chunks_exact_mut(rank).enumerate() {
        turned.iter_mut().enumerate().for_each(|(r, to)| *to = p.scale * a[r * cols + i]);
    }
    rows_by([rows, rank, cols], dw, rows_of(&turned, rank), db, true);
    let b = scaled(b, p.scale);
    match mask {
        None => columns_by([rank, cols, rows], &b, rows_of(dw, cols), da),
        Some(mask) => {
            let mut sum = vec![0.0; rank * cols];
            columns_by([rank, cols, rows], &b, rows_of(dw, cols), &mut sum);
            for (da, sum) in da.chunks_exact_mut(cols).zip(sum.chunks_exact(cols)) {
                da.iter_mut().zip(sum).zip(mask).for_each(|((da, sum), m)| *da += sum * m);
            }
        }
    }
}
