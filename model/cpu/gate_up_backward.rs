//! gate_up_backward: with the products g = h · W1ᵀ and u = h · W3ᵀ of the forward pass and
//! σ = 1 / (1 + e⁻ᵍ), dg = dout ⊙ u ⊙ σ (1 + g (1 − σ)) and du = dout ⊙ g ⊙ σ; then
//! dh = [dg, du] · [W1; W3] and dW += [dg, du]ᵀ · h. Bound by arithmetic.
//!
//! `kept (rows, 2 · hidden)` has g and u of a row, and afterwards their gradients.

use super::Matrix;
use super::gate_up::gate_up_rows;
use super::linear_add_backward::{input, weights};
use super::matmul::Packed;
use crate::ops::GateUp;
use rayon::prelude::*;

pub(super) fn gate_up_kept(p: GateUp, h: &[f32], w: &Matrix, out: &mut [f32], kept: &mut [f32]) {
    let h = Packed::new(w, p.rows as usize, p.dim as usize, h);
    gate_up_rows(&h, p.hidden as usize, w, 0, out, Some(kept));
}

pub(super) fn gate_up_backward(
    p: GateUp,
    h: &[f32],
    w: &Matrix,
    kept: &mut [f32],
    dout: &[f32],
    dh: &mut [f32],
    dw: Option<&mut Vec<f32>>,
) {
    let [rows, dim, hidden] = [p.rows, p.dim, p.hidden].map(|n| n as usize);
    gated(hidden, &mut kept[..rows * 2 * hidden], dout);
    let sizes = [rows, dim, 2 * hidden];
    input(sizes, kept, w, 0, dh, false);
    if let Some(dw) = dw {
        weights(sizes, kept, h, dw);
    }
}

/// Replaces both products of each row by their gradients, for `dout (rows, hidden)`.
pub(super) fn gated(hidden: usize, kept: &mut [f32], dout: &[f32]) {
    let rows = kept.par_chunks_exact_mut(2 * hidden).with_min_len(1 + (1 << 12) / hidden);
    rows.zip(dout.par_chunks_exact(hidden)).for_each(|(kept, dout)| {
        let (gate, up) = kept.split_at_mut(hidden);
        for ((g, u), d) in gate.iter_mut().zip(up).zip(dout) {
            let sigmoid = 1.0 / (1.0 + (-*g).exp());
            let (dg, du) = (d * *u * sigmoid * (1.0 + *g * (1.0 - sigmoid)), d * *g * sigmoid);
            (*g, *u) = (dg, du);
        }
    });
}
