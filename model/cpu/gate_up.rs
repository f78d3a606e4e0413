//! gate_up: out = silu(h · W1ᵀ) ⊙ (h · W3ᵀ), silu(x) = x / (1 + e⁻ˣ). `h (rows, dim)`,
//! `w (2 · hidden, dim)` = [W1; W3], `out (rows, hidden)`. The same task computes both products
//! of a column, so neither is stored. Bound by arithmetic with many rows, by memory with few.

use super::Matrix;
use super::exp::silu;
use super::matmul::{Packed, matmul};
use super::shared::Shared;
use crate::ops::GateUp;

pub(super) fn gate_up(p: GateUp, h: &[f32], w: &Matrix, out: &mut [f32]) {
    gate_up_rows(
        &Packed::new(w, p.rows as usize, p.dim as usize, h),
        p.hidden as usize,
        w,
        0,
        out,
        None,
    );
}

/// Computes gate_up with the matrices that begin at row `first` of `w`; experts of a mixture use
/// it too. `kept (rows, 2 · hidden)` gets both products.
pub(super) fn gate_up_rows(
    h: &Packed,
    hidden: usize,
    w: &Matrix,
    first: usize,
    out: &mut [f32],
    kept: Option<&mut [f32]>,
) {
    let (out, kept) = (Shared::new(out), kept.map(Shared::new));
    matmul(
        h,
        hidden,
        &[first, first + hidden],
        |rows, all| w.rows(rows, all),
        |row, cols, values| {
            let (gate, up) = values.split_at(cols.len());
            // SAFETY: matmul emits each row and column exactly once.
            let out = unsafe { out.slice(row * hidden + cols.start, cols.len()) };
            silu(gate, up, out);
            if let Some(kept) = &kept {
                for (half, values) in [gate, up].into_iter().enumerate() {
                    let at = (2 * row + half) * hidden + cols.start;
                    // SAFETY: as above; the halves of a row do not overlap.
                    unsafe { kept.slice(at, values.len()) }.copy_from_slice(values);
                }
            }
        },
    );
}
