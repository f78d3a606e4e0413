//! gate_up: both products of the feed-forward's first half; see gate_up.cu.

use crate::product::{Call, Product};
use crate::{Buffer, Cuda, Format, Matrix};
use gritlm_model::ops::GateUp;

pub(crate) fn gate_up(device: &Cuda, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer) {
    out.format = Format::Bf16;
    let call = Call {
        op: "gate_up",
        source: "gate_up",
        pair: true,
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
    device.product(&call, device.form(p.rows, 0, [p.hidden, w.cols], true));
}
