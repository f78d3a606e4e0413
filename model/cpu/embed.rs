//! embed: x[r, :] = table[tokens[r], :]. `table (vocab, dim)` is in the stored type,
//! `x (rows, dim)` is f32. Bound by memory.

use super::Matrix;

pub(super) fn embed(tokens: &[u32], table: &Matrix, x: &mut [f32]) {
    for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(table.cols)) {
        table.row_f32(token as usize, x);
    }
}
