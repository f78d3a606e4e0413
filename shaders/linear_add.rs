//! linear_add, and `linear`, the product without the addition; see linear_add.wgsl, linear.wgsl.

use crate::product::{Call, Product, bind};
use crate::{Buffer, Matrix, Wgpu, shader};

/// Computes `x (rows, outer)` += `a (rows, inner)` · `w (outer, inner)`ᵀ; without `add`, =
/// instead of +=.
pub(crate) fn linear(
    device: &Wgpu,
    op: &'static str,
    (rows, outer): (u32, u32),
    a: &Buffer,
    w: &Matrix,
    x: &Buffer,
    add: bool,
) {
    let call = Call {
        op,
        shaders: if add { &shader::LINEAR_ADD } else { &shader::LINEAR },
        pair: false,
        rows,
        a: bind(&a.raw),
        a_stride: a.stride,
        w,
        rest: &[bind(&x.raw)],
        params: Product { out_stride: x.stride, ..Product::default() },
    };
    device.product(&call, outer, |_, j| j);
}
