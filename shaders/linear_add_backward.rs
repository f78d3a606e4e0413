//! linear_add_backward: da = dx · W, dW += dxᵀ · a; see outer.wgsl.

use crate::outer::{self, Sizes};
use crate::{Buffer, Matrix, Wgpu};
use gritlm_model::ops::LinearAdd;

pub(crate) fn linear_add_backward(
    device: &Wgpu,
    p: LinearAdd,
    a: &Buffer,
    w: &Matrix,
    dx: &Buffer,
    da: &Buffer,
    dw: Option<&mut Buffer>,
) {
    let sizes = Sizes { rows: p.rows, inner: p.inner, outer: p.outer };
    outer::projection(device, "linear_add_backward", sizes, a, w, dx, da, dw);
}
