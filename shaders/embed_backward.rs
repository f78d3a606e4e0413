//! embed_backward: adds each row's gradient to its token's row of the table, in the order of the
//! rows; see rows.wgsl.

use crate::rows::{self, Term};
use crate::{Batch, Buffer, Wgpu};

pub(crate) fn embed_backward(device: &Wgpu, dim: u32, batch: &Batch, dx: &Buffer, dtable: &Buffer) {
    let terms = (0..).zip(&batch.tokens).map(|(from, &to)| Term { to, from, scale: 1.0 }).collect();
    rows::add(device, "embed_backward", dim, terms, dx, dtable);
}
