//! qkv_backward: turns the gradients of q and k back, then both products; see qkv_backward.wgsl and
//! outer.wgsl.

use crate::gpu::{Grid, Use};
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::{Batch, Buffer, Matrix, Wgpu, shader};
use gritlm_model::ops::Qkv;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in qkv_backward.wgsl.
    QkvBackward {
        rows: u32,
        half: u32,
        heads: u32,
        kv_heads: u32,
        q_stride: u32,
        kv_stride: u32,
        dy_stride: u32,
        angles: u32,
    }
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn qkv_backward(
    device: &Wgpu,
    p: Qkv,
    h: &Buffer,
    w: &Matrix,
    batch: &Batch,
    [dq, dk, dv]: [&Buffer; 3],
    dh: &Buffer,
    dw: Option<&mut Buffer>,
) {
    let op = "qkv_backward";
    let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let Some(dy) = device.work(p.rows as usize, width as usize, Use::Work) else { return };
    let params = QkvBackward {
        rows: p.rows,
        half: p.head_dim / 2,
        heads: p.heads,
        kv_heads: p.kv_heads,
        q_stride: dq.stride,
        kv_stride: dk.stride,
        dy_stride: dy.stride,
        angles: batch.angles,
    };
    let values = u64::from(p.rows) * u64::from(width);
    device.gpu.launch(
        &shader::QKV_BACKWARD,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&dq.raw), bind(&dk.raw), bind(&dv.raw), bind(&batch.raw), bind(&dy.raw)],
        Grid::flat((p.rows * width / 2).div_ceil(64)),
        Work { op, bytes: 8 * values, flops: 3 * values },
    );
    let sizes = Sizes { rows: p.rows, inner: p.dim, outer: width };
    outer::projection(device, op, sizes, h, w, &dy, dh, dw);
}
