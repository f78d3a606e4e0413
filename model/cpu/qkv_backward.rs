//! qkv_backward: the gradients of q and k turn back by the angle of their row, which makes
//! dy = [dq, dk, dv]; then dh = dy · [Wq; Wk; Wv] and dW += dyᵀ · h. Bound by arithmetic.

use super::linear_add_backward::{input, weights};
use super::qkv::rotate;
use super::{Batch, Matrix};
use crate::ops::Qkv;
use rayon::prelude::*;

pub(super) fn qkv_backward(
    p: Qkv,
    h: &[f32],
    w: &Matrix,
    batch: &Batch,
    [dq, dk, dv]: [&[f32]; 3],
    dh: &mut [f32],
    dw: Option<&mut Vec<f32>>,
) {
    let (rows, dim, head_dim) = (p.rows as usize, p.dim as usize, p.head_dim as usize);
    let (q_len, kv_len) = (p.heads as usize * head_dim, p.kv_heads as usize * head_dim);
    let width = q_len + 2 * kv_len;
    let half = head_dim / 2;
    let mut dy = vec![0.0; rows * width];
    let turned = dy.par_chunks_exact_mut(width).with_min_len(8).enumerate();
    turned.for_each(|(r, dy)| {
        let back = || batch.angles[r * half..][..half].iter().map(|(cos, sin)| (*cos, -sin));
        let (turn, same) = dy.split_at_mut(q_len + kv_len);
        turn[..q_len].copy_from_slice(&dq[r * q_len..][..q_len]);
        turn[q_len..].copy_from_slice(&dk[r * kv_len..][..kv_len]);
        same.copy_from_slice(&dv[r * kv_len..][..kv_len]);
        turn.chunks_exact_mut(head_dim).for_each(|head| rotate(head, back()));
    });
    let sizes = [rows, dim, width];
    input(sizes, &dy, w, 0, dh, false);
    if let Some(dw) = dw {
        weights(sizes, &dy, h, dw);
    }
}
