//! logits: the final norm and `lm_head` of the selected rows; see rmsnorm.cu and logits.cu.

use crate::product::{Call, Order, Product};
use crate::rmsnorm;
use crate::{Buffer, Cuda, Matrix};
use gritlm_model::ops::Logits;

pub(crate) fn logits(
    device: &Cuda,
    p: Logits,
    rows: &[u32],
    x: &Buffer,
    norm: &Matrix,
    w: &Matrix,
    out: &Buffer,
) {
    let made = device
        .gpu
        .send(bytemuck::cast_slice(rows))
        .and_then(|chosen| Ok((chosen, device.buffer_of(rows.len(), p.dim as usize)?)));
    let (chosen, mut h) = match made {
        Ok(made) => made,
        Err(problem) => return device.gpu.fail(problem),
    };
    let count = rows.len() as u32;
    rmsnorm::rmsnorm(device, (count, p.dim, p.eps), x, norm, Some(&chosen), &mut h);
    let call = Call {
        op: "logits",
        source: "logits",
        order: Order::Rows,
        experts: 0,
        rows: count,
        outputs: p.vocab,
        a: &h,
        w,
        params: Product { sum: out.raw.pointer(), out_stride: out.stride, ..Product::default() },
    };
    device.product(&call);
}
