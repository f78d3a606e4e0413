//! embed_backward: dtable[token of row r, :] += dx[r, :], in the order of the rows.
//!
//! The rows are sorted by token, so that threads have tokens of their own. Bound by memory.

use super::Batch;
use super::shared::Shared;
use rayon::prelude::*;

pub(super) fn embed_backward(dim: u32, batch: &Batch, dx: &[f32], dtable: &mut [f32]) {
    let (dim, tokens) = (dim as usize, &batch.layout.tokens);
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&row| (tokens[row], row));
    let groups: Vec<&[usize]> = order.chunk_by(|&a, &b| tokens[a] == tokens[b]).collect();
    let out = Shared::new(dtable);
    groups.par_iter().with_min_len(64).for_each(|rows| {
        // SAFETY: each token is in exactly one group.
        let sum = unsafe { out.slice(tokens[rows[0]] as usize * dim, dim) };
        for row in *rows {
            sum.iter_mut().zip(&dx[row * dim..]).for_each(|(sum, d)| *sum += d);
        }
    });
}
