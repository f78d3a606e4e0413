//! route: takes the softmax over all experts in f32, keeps the `top_k` most likely (ties go to
//! the lower index) and divides their weights by their sum, then sorts the rows by expert.
//! `h (rows, dim)`, `w (experts, dim)`. No row is dropped, and experts have no capacity limit. The
//! product is in f32 whatever others are in, because a rounded logit may choose another expert.

use super::matmul::{Packed, matmul};
use super::shared::Shared;
use super::{Matrix, Routing};
use crate::ops::Route;

pub(super) fn route(p: Route, h: &[f32], w: &Matrix, routing: &mut Routing) {
    let (rows, dim) = (p.rows as usize, p.dim as usize);
    let (experts, top_k) = (p.experts as usize, p.top_k as usize);
    routing.logits.clear();
    routing.logits.resize(rows * experts, 0.0);
    let out = Shared::new(&mut routing.logits);
    matmul(
        &Packed::exact(rows, dim, |r, row| row.copy_from_slice(&h[r * dim..][..dim])),
        experts,
        &[0],
        |rows, all| w.rows(rows, all),
        |row, cols, values| {
            // SAFETY: matmul emits each row and column exactly once.
            unsafe { out.slice(row * experts + cols.start, values.len()) }.copy_from_slice(values);
        },
    );

    routing.assigned.clear();
    for (row, logits) in routing.logits.chunks_exact(experts).enumerate() {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scores: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
        let sum: f32 = scores.iter().sum();
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let chosen = &order[..top_k];
        let kept: f32 = chosen.iter().map(|&e| scores[e] / sum).sum();
        routing.assigned.extend(chosen.iter().map(|&e| (e, row, scores[e] / sum / kept)));
    }
    routing.assigned.sort_by_key(|&(expert, row, _)| (expert, row));
}
