//! route_backward: the kept weights g are a softmax over a row's chosen experts, so their logits
//! get g ⊙ (dg − Σ g dg). The auxiliary loss adds π ⊙ (b − Σ π b), where π is the softmax over all
//! experts and b the gradient with respect to it. Then dh = dz · W and dW += dzᵀ · h.
//! `h (rows, dim)`, `W (experts, dim)`. Bound by memory.

use super::linear_add_backward::{input, weights};
use super::{Matrix, Routing};
use crate::ops::Route;

pub(super) fn route_backward(
    p: Route,
    h: &[f32],
    w: &Matrix,
    routing: &Routing,
    [dweights, balance]: [&[f32]; 2],
    dh: &mut [f32],
    dw: Option<&mut Vec<f32>>,
) {
    let [rows, dim, experts] = [p.rows, p.dim, p.experts].map(|n| n as usize);
    let mut along = vec![0.0; rows];
    for (&(_, row, weight), d) in routing.assigned.iter().zip(dweights) {
        along[row] += weight * d;
    }
    let mut dz = vec![0.0; rows * experts];
    for (&(expert, row, weight), d) in routing.assigned.iter().zip(dweights) {
        dz[row * experts + expert] = weight * (d - along[row]);
    }
    for (dz, logits) in dz.chunks_exact_mut(experts).zip(routing.logits.chunks_exact(experts)) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
        let probability = |l: &f32| (l - max).exp() / sum;
        let mean: f32 = logits.iter().zip(balance).map(|(l, b)| probability(l) * b).sum();
        for ((dz, l), b) in dz.iter_mut().zip(logits).zip(balance) {
            *dz += probability(l) * (b - mean);
        }
    }
    let sizes = [rows, dim, experts];
    input(sizes, &dz, w, 0, dh, false);
    if let Some(dw) = dw {
        weights(sizes, &dz, h, dw);
    }
}
