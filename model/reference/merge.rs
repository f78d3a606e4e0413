//! `W + scale · B A diag(m)`: a low-rank adapter (LoRA, Hu et al. 2021) merged into its matrix.

use super::{Number, dot};

/// Returns the merged matrix `(rows, cols)` of `w` `(rows, cols)`, `b` `(rows, rank)` and `a`
/// `(rank, cols)`; `mask` `(cols)` is all 1 without dropout.
///
/// ```
/// use gritlm_model::reference::merge;
/// let merged = merge(2.0, &[1.0_f32, 1.0], [&[3.0_f32], &[1.0, 10.0]], &[1.0, 1.0]);
/// assert_eq!(merged, [7.0, 61.0]);
/// ```
pub fn merge<W: Number, N: Number>(scale: f64, w: &[W], [b, a]: [&[N]; 2], mask: &[N]) -> Vec<f64> {
    let cols = mask.len();
    let rank = a.len() / cols;
    let value = |(at, &w): (usize, &W)| {
        let (o, i) = (at / cols, at % cols);
        let column: Vec<N> = (0..rank).map(|r| a[r * cols + i]).collect();
        w.into() + scale * dot(&b[o * rank..][..rank], &column) * mask[i].into()
    };
    w.iter().enumerate().map(value).collect()
}
