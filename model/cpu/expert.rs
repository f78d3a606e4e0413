//! expert_gate_up, expert_down_add: the feed-forward of a mixture, expert by expert.
//!
//! For each row and each of its experts e with weight g, they add x += g · W2ₑ (silu(W1ₑ h) ⊙
//! (W3ₑ h)). The rows of one expert are gathered, so each expert's weights are read once per
//! batch; a row's experts are added in ascending order. The weights are
//! `(experts · 2 · hidden, dim)`, per expert [W1; W3], and `(experts · dim, hidden)`. Bound like
//! a dense feed-forward over the rows of each expert.

use super::gate_up::gate_up_rows;
use super::matmul::{Packed, matmul};
use super::shared::Shared;
use super::{Matrix, Routing};
use crate::ops::Expert;

pub(super) fn expert_gate_up(
    p: Expert,
    h: &[f32],
    w: &Matrix,
    routing: &Routing,
    out: &mut [f32],
    mut kept: Option<&mut [f32]>,
) {
    let (dim, hidden) = (p.dim as usize, p.hidden as usize);
    for (at, group) in routing.groups() {
        let expert = group[0].0;
        let packed = Packed::gather(w, group.len(), dim, |i, row| {
            row.copy_from_slice(&h[group[i].1 * dim..][..dim]);
        });
        let rows = at..at + group.len();
        let out = &mut out[rows.start * hidden..rows.end * hidden];
        let kept = kept.as_mut().map(|k| &mut k[rows.start * 2 * hidden..rows.end * 2 * hidden]);
        gate_up_rows(&packed, hidden, w, expert * 2 * hidden, out, kept);
    }
}

pub(super) fn expert_down_add(p: Expert, a: &[f32], w: &Matrix, routing: &Routing, x: &mut [f32]) {
    let (dim, hidden) = (p.dim as usize, p.hidden as usize);
    for (at, group) in routing.groups() {
        let expert = group[0].0;
        let packed = Packed::new(w, group.len(), hidden, &a[at * hidden..]);
        let out = Shared::new(x);
        matmul(
            &packed,
            dim,
            &[expert * dim],
            |rows, all| w.rows(rows, all),
            |i, cols, values| {
                let (_, row, weight) = group[i];
                // SAFETY: matmul emits each i and column exactly once, and a group contains each
                // row once.
                let x = unsafe { out.slice(row * dim + cols.start, values.len()) };
                for (x, value) in x.iter_mut().zip(values) {
                    *x += weight * value;
                }
            },
        );
    }
}
