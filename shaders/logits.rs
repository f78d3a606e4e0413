//! logits: the final norm and `lm_head` of the selected rows; see rmsnorm.wgsl and linear.wgsl.

use crate::gpu::Use;
use crate::linear_add;
use crate::product::bind;
use crate::rmsnorm;
use crate::{Buffer, Matrix, Wgpu};
use gritlm_model::ops::Logits;

pub(crate) fn logits(
    device: &Wgpu,
    p: Logits,
    rows: &[u32],
    x: &Buffer,
    norm: &Matrix,
    w: &Matrix,
    out: &Buffer,
) {
    let count = rows.len() as u32;
    let chosen = match device.gpu.send(bytemuck::cast_slice(rows)) {
        Ok(chosen) => chosen,
        Err(problem) => return device.gpu.fail(problem),
    };
    let Some(h) = device.work(rows.len(), p.dim as usize, Use::Work) else { return };
    rmsnorm::rmsnorm(device, (count, p.dim, p.eps), x, norm, Some(bind(&chosen)), &h);
    linear_add::linear(device, "logits", (count, p.vocab), &h, w, out, false);
}
