//! merge: out[o, :] = W[o, :] + scale · B[o, :] · A · diag(mask), for the rows of one part of a
//! matrix. `W (rows, cols)` is as stored, `B (rows, rank)`, `A (rank, cols)`, `mask (cols)`; `out`
//! is f32. The product is summed apart and added to W once. Reading and merging an adapter from a
//! file runs the same code, so that a merged checkpoint has the weights that training has seen.
//! Bound by memory: a rank is some dozen multiplications for each weight read and written.

use super::Matrix;
use super::outer::{rows_by, rows_of};
use crate::ops::Merge;
use rayon::prelude::*;
use std::borrow::Cow;

/// Merges into the rows `p.first..p.first + p.rows` of `out`; without `ba` they become W.
pub(crate) fn merge(
    p: Merge,
    w: &Matrix,
    ba: Option<[&[f32]; 2]>,
    mask: Option<&[f32]>,
    out: &mut [f32],
) {
    let [first, rows, cols, rank] = [p.first, p.rows, p.cols, p.rank].map(|n| n as usize);
    let out = &mut out[first * cols..][..rows * cols];
    out.par_chunks_mut(cols).enumerate().for_each(|(r, out)| w.row_f32(first + r, out));
    if let Some([b, a]) = ba {
        let a = masked(a, mask, cols);
        rows_by([rows, cols, rank], &scaled(b, p.scale), rows_of(&a, cols), out, true);
    }
}

/// Returns the values times `scale`.
pub(super) fn scaled(values: &[f32], scale: f32) -> Vec<f32> {
    values.iter().map(|value| scale * value).collect()
}

/// Returns A · diag(mask).
pub(super) fn masked<'a>(a: &'a [f32], mask: Option<&[f32]>, cols: usize) -> Cow<'a, [f32]> {
    let Some(mask) = mask else { return Cow::Borrowed(a) };
    let row = |row: &[f32]| row.iter().zip(mask).map(|(a, m)| a * m).collect::<Vec<f32>>();
    Cow::Owned(a.chunks_exact(cols).flat_map(row).collect())
}
