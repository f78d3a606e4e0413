//! gate_up_kept, gate_up_backward: the feed-forward's first half with its products kept, and its
//! gradients; see linear.wgsl, gate_up_backward.wgsl and outer.wgsl.

use crate::gpu::Grid;
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, linear_add, shader};
use gritlm_model::ops::GateUp;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in gate_up_backward.wgsl.
    Gated {
        rows: u32,
        hidden: u32,
        kept_stride: u32,
        d_stride: u32,
        forward: u32,
    }
}

pub(crate) fn gate_up_kept(
    device: &Wgpu,
    p: GateUp,
    h: &Buffer,
    w: &Matrix,
    out: &Buffer,
    kept: &Buffer,
) {
    linear_add::linear(device, "gate_up", (p.rows, 2 * p.hidden), h, w, kept, false);
    gated(device, "gate_up", (p.rows, p.hidden), kept, out, true);
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn gate_up_backward(
    device: &Wgpu,
    p: GateUp,
    h: &Buffer,
    w: &Matrix,
    kept: &Buffer,
    dout: &Buffer,
    dh: &Buffer,
    dw: Option<&mut Buffer>,
) {
    let op = "gate_up_backward";
    gated(device, op, (p.rows, p.hidden), kept, dout, false);
    let sizes = Sizes { rows: p.rows, inner: p.dim, outer: 2 * p.hidden };
    outer::projection(device, op, sizes, h, w, kept, dh, dw);
}

/// Computes the gated products of `rows` rows of `kept` into `d`, or turns `kept` into the gradients
/// that belong to `d`.
pub(crate) fn gated(
    device: &Wgpu,
    op: &'static str,
    (rows, hidden): (u32, u32),
    kept: &Buffer,
    d: &Buffer,
    forward: bool,
) {
    let params = Gated {
        rows,
        hidden,
        kept_stride: kept.stride,
        d_stride: d.stride,
        forward: u32::from(forward),
    };
    let values = u64::from(rows) * u64::from(hidden);
    device.gpu.launch(
        &shader::GATE_UP_BACKWARD,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&kept.raw), bind(&d.raw)],
        Grid::flat((rows * hidden).div_ceil(64)),
        Work { op, bytes: 20 * values, flops: 8 * values },
    );
}
