//! expert_down_add_backward, expert_gate_up_backward: the gradients of a mixture's feed-forward,
//! expert by expert.
//!
//! An assignment of a row to expert e with weight g has added g · W2ₑ a to x[row]. With
//! t = dx[row] · W2ₑ, its gradients are da = g · t, dg = a · t and dW2ₑ += g · dx[row]ᵀ a. The gated
//! half is that of `gate_up_backward`, for the rows of each expert. A row's experts are added to dh
//! in ascending order. Bound like the dense operations over the rows of each expert.

use super::gate_up_backward::gated;
use super::linear_add_backward::{input, weights};
use super::{Matrix, Routing};
use crate::ops::Expert;

pub(super) fn expert_down_add_backward(
    p: Expert,
    a: &[f32],
    w: &Matrix,
    routing: &Routing,
    dx: &[f32],
    [da, dweights]: [&mut Vec<f32>; 2],
    mut dw: Option<&mut Vec<f32>>,
) {
    let (dim, hidden) = (p.dim as usize, p.hidden as usize);
    for (at, group) in routing.groups() {
        let expert = group[0].0;
        let places = at * hidden..(at + group.len()) * hidden;
        let (a, da) = (&a[places.clone()], &mut da[places]);
        let mut dy: Vec<f32> =
            group.iter().flat_map(|&(_, row, _)| &dx[row * dim..][..dim]).copied().collect();
        let sizes = [group.len(), hidden, dim];
        input(sizes, &dy, w, expert * dim, da, false);
        let rows = a.chunks_exact(hidden).zip(da.chunks_exact_mut(hidden));
        for (((a, da), dweight), (_, _, weight)) in rows.zip(&mut dweights[at..]).zip(group) {
            *dweight = a.iter().zip(&*da).map(|(a, t)| a * t).sum();
            da.iter_mut().for_each(|t| *t *= weight);
        }
        if let Some(dw) = dw.as_deref_mut() {
            for (dy, (_, _, weight)) in dy.chunks_exact_mut(dim).zip(group) {
                dy.iter_mut().for_each(|d| *d *= weight);
            }
            weights(sizes, &dy, a, &mut dw[expert * dim * hidden..]);
        }
    }
}

pub(super) fn expert_gate_up_backward(
    p: Expert,
    (h, dout): (&[f32], &[f32]),
    w: &Matrix,
    routing: &Routing,
    kept: &mut [f32],
    dh: &mut [f32],
    mut dw: Option<&mut Vec<f32>>,
) {
    let (dim, hidden) = (p.dim as usize, p.hidden as usize);
    for (at, group) in routing.groups() {
        let (expert, rows) = (group[0].0, at..at + group.len());
        let kept = &mut kept[rows.start * 2 * hidden..rows.end * 2 * hidden];
        gated(hidden, kept, &dout[rows.start * hidden..rows.end * hidden]);
        let sizes = [group.len(), dim, 2 * hidden];
        let mut part = vec![0.0; group.len() * dim];
        input(sizes, kept, w, expert * 2 * hidden, &mut part, false);
        for (part, &(_, row, _)) in part.chunks_exact(dim).zip(group) {
            let dh = &mut dh[row * dim..][..dim];
            dh.iter_mut().zip(part).for_each(|(dh, d)| *dh += d);
        }
        if let Some(dw) = dw.as_deref_mut() {
            let h: Vec<f32> =
                group.iter().flat_map(|&(_, row, _)| &h[row * dim..][..dim]).copied().collect();
            weights(sizes, kept, &h, &mut dw[expert * 2 * hidden * dim..]);
        }
    }
}
