//! `dB = scale · dW (A diag(m))ᵀ` and `dA = scale · Bᵀ dW diag(m)`: the gradients of an adapter whose
//! merged matrix has the gradient `dW`.

use super::Number;

/// Returns the gradients `[db, da]` of `b` and `a` for `dw` `(rows, cols)`, that of the merged
/// matrix; shapes as in [`merge`](super::merge).
pub fn merge_backward<D: Number, N: Number>(
    scale: f64,
    dw: &[D],
    [b, a]: [&[N]; 2],
    mask: &[N],
) -> [Vec<f64>; 2] {
    let cols = mask.len();
    let (rank, rows) = (a.len() / cols, dw.len() / cols);
    let (mut db, mut da) = (vec![0.0; b.len()], vec![0.0; a.len()]);
    for o in 0..rows {
        for i in 0..cols {
            let d = scale * dw[o * cols + i].into() * mask[i].into();
            for r in 0..rank {
                db[o * rank + r] += d * a[r * cols + i].into();
                da[r * cols + i] += d * b[o * rank + r].into();
            }
        }
    }
    [db, da]
}
