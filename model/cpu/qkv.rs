//! qkv: [q; k; v] = h · [Wq; Wk; Wv]ᵀ, then RoPE on q and k; k and v are written to the pages.
//!
//! RoPE rotates pair d < head_dim / 2 of a head at position p by the angle φ = p · frequency d:
//! (a, b) → (a cos φ − b sin φ, b cos φ + a sin φ), where a is element d and b is element d +
//! head_dim / 2. The angle is rounded to f32 as in transformers; at position 32768 this has a
//! larger effect than any other rounding here. Bound by arithmetic with many rows, by memory with
//! few.

use super::matmul::{Packed, matmul};
use super::shared::Shared;
use super::{Batch, Matrix, Pages};
use crate::ops::{Layout, Qkv};
use rayon::prelude::*;

pub(super) fn qkv(p: Qkv, h: &[f32], w: &Matrix, batch: &Batch, q: &mut [f32], pages: &mut Pages) {
    let (rows, dim, head_dim) = (p.rows as usize, p.dim as usize, p.head_dim as usize);
    let (q_len, kv_len) = (p.heads as usize * head_dim, p.kv_heads as usize * head_dim);
    let width = q_len + 2 * kv_len;

    let mut all = vec![0.0; rows * width];
    let out = Shared::new(&mut all);
    matmul(
        &Packed::new(w, rows, dim, h),
        width,
        &[0],
        |rows, all| w.rows(rows, all),
        |row, cols, values| {
            // SAFETY: matmul emits each row and column exactly once.
            unsafe { out.slice(row * width + cols.start, values.len()) }.copy_from_slice(values);
        },
    );

    let half = head_dim / 2;
    let turned = all
        .par_chunks_exact_mut(width)
        .with_min_len(8)
        .zip(batch.angles.par_chunks_exact(half))
        .zip(q[..rows * q_len].par_chunks_exact_mut(q_len));
    turned.for_each(|((all, angles), q)| {
        for head in all[..q_len + kv_len].chunks_exact_mut(head_dim) {
            rotate(head, angles.iter().copied());
        }
        q.copy_from_slice(&all[..q_len]);
    });

    let layer = p.layer as usize;
    for (all, &slot) in all.chunks_exact(width).zip(&batch.layout.slots) {
        let (k, v) = all[q_len..].split_at(kv_len);
        for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
            let range = pages.slot(layer, slot as usize, head);
            pages.keys.write(range.clone(), k);
            pages.values.write(range, v);
        }
    }
}

/// Returns the cosines and sines of each row's angles, `(rows, head_dim / 2)`.
pub(super) fn angles(layout: &Layout) -> Vec<(f32, f32)> {
    let turn = |&position: &u32| {
        let angle = move |f: &f32| (f * position as f32).sin_cos();
        layout.frequencies.iter().map(angle).map(|(sin, cos)| (cos, sin))
    };
    layout.positions.iter().flat_map(turn).collect()
}

/// Turns each pair of a head by the angle whose cosine and sine are given.
pub(super) fn rotate(head: &mut [f32], angles: impl Iterator<Item = (f32, f32)>) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
