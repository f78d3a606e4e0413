//! linear_add: adds a matrix product to the residual stream; see linear_add.cu.

use crate::product::{Call, Order, Product};
use crate::{Buffer, Cuda, Matrix};
use gritlm_model::ops::LinearAdd;

pub(crate) fn linear_add(device: &Cuda, p: LinearAdd, a: &Buffer, w: &Matrix, x: &Buffer) {
    let call = Call {
        op: "linear_add",
        source: "linear_add",
        order: Order::Rows,
        experts: 0,
        rows: p.rows,
        outputs: p.outer,
        a,
        w,
        params: Product { sum: x.raw.pointer(), out_stride: x.stride, ..Product::default() },
    };
    device.product(&call);
}
