//! KV pages of a GPU backend: `(pages, kv_heads, PAGE, width)` per layer for keys and for values,
//! where `width` is head_dim, padded.

use crate::ops::{DeviceError, KvShape, PAGE, Result};
use crate::weights::Dtype;

/// Types of KV pages that the CPU and the WGSL backend have, the default first.
pub const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0];

/// Width of the widest head for which the GPU backends have kernels.
const MAX_HEAD_DIM: usize = 256;

/// Checks that the kernels of `backend` take heads of this width.
///
/// # Errors
/// When heads are wider than 256 columns or have an odd number of them.
pub fn check_heads(backend: &str, shape: KvShape) -> Result<()> {
    let head_dim = shape.head_dim;
    if head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(2) {
        return Ok(());
    }
    Err(DeviceError(format!(
        "the {backend} backend takes heads of up to {MAX_HEAD_DIM} columns in pairs, and this \
         model's have {head_dim}; use `device` cpu"
    )))
}

/// Returns the index of a head's token among the elements of consecutive pages.
fn vector(shape: KvShape, width: usize, head: usize, token: usize) -> usize {
    ((token / PAGE * shape.kv_heads + head) * PAGE + token % PAGE) * width
}

/// Appends the vectors of one plane, `(kv_heads, tokens, head_dim)`, to `out`. `values` holds the
/// plane's pages in the order of the page table.
pub fn gather(shape: KvShape, width: usize, tokens: usize, values: &[f32], out: &mut Vec<f32>) {
    for head in 0..shape.kv_heads {
        for token in 0..tokens {
            let at = vector(shape, width, head, token);
            out.extend_from_slice(&values[at..at + shape.head_dim]);
        }
    }
}

/// Writes page `n` of a plane, `plane (kv_heads, tokens, head_dim)`, into `page`, converting each
/// value with `convert`. Elements of `page` beyond the last token and the padding stay as they
/// are.
pub fn scatter<T>(
    shape: KvShape,
    width: usize,
    (n, tokens): (usize, usize),
    plane: &[f32],
    page: &mut [T],
    convert: impl Fn(f32) -> T,
) {
    let head_dim = shape.head_dim;
    for head in 0..shape.kv_heads {
        for token in n * PAGE..((n + 1) * PAGE).min(tokens) {
            let from = &plane[(head * tokens + token) * head_dim..][..head_dim];
            let to = vector(shape, width, head, token % PAGE);
            for (to, &from) in page[to..to + head_dim].iter_mut().zip(from) {
                *to = convert(from);
            }
        }
    }
}
