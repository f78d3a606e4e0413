//! gate_up: both products of the feed-forward's first half; see gate_up.wgsl.

use crate::product::{Call, Product, bind};
use crate::{Buffer, Matrix, Wgpu, shader};
use gritlm_model::ops::GateUp;

pub(crate) fn gate_up(device: &Wgpu, p: GateUp, h: &Buffer, w: &Matrix, out: &Buffer) {
    let call = Call {
        op: "gate_up",
        shaders: &shader::GATE_UP,
        pair: true,
        rows: p.rows,
        a: bind(&h.raw),
        a_stride: h.stride,
        w,
        rest: &[bind(&out.raw)],
        params: Product { out_stride: out.stride, hidden: p.hidden, ..Product::default() },
    };
    device.product(&call, p.hidden, |member, j| member * p.hidden + j);
}
