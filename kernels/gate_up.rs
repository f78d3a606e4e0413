//! gate_up: both products of the feed-forward's first half; see gate_up.cu.

use crate::product::{Call, Order, Product};
use crate::{Buffer, Cuda, Format, Matrix};
use gritlm_model::ops::GateUp;

pub(crate) fn gate_up(device: &Cuda, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer) {
    out.format = Format::Bf16;
    let call = Call {
        op: "gate_up",
        source: "gate_up",
        order: Order::Halves,
        experts: 0,
        rows: p.rows,
        outputs: p.hidden,
        a: h,
        w,
        params: Product {
            out: out.raw.pointer(),
            out_stride: out.stride,
            hidden: p.hidden,
            ..Product::default()
        },
    };
    device.product(&call);
}
