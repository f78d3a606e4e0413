//! rmsnorm_backward: the gradients of a norm's input and of its weight; see rmsnorm_backward.wgsl and
//! rmsnorm_weight.wgsl.

use crate::gpu::{Grid, Use};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader, tune};
use gritlm_model::ops::RmsNorm;
use gritlm_model::params;

/// Rows of one part of the weight's gradient.
const ROWS: u32 = 32;

params! {
    /// Parameters; the fields are described in rmsnorm_backward.wgsl.
    RmsNormBackward {
        rows: u32,
        dim: u32,
        x_stride: u32,
        dh_stride: u32,
        dx_stride: u32,
        eps: f32,
    }
}

params! {
    /// Parameters of the weight's gradient; the fields are described in rmsnorm_weight.wgsl.
    RmsNormWeight {
        rows: u32,
        blocks: u32,
        vectors: u32,
        x_stride: u32,
        dh_stride: u32,
        parts_stride: u32,
        sum: u32,
    }
}

pub(crate) fn rmsnorm_backward(
    device: &Wgpu,
    p: RmsNorm,
    x: &Buffer,
    weight: &Matrix,
    dh: &Buffer,
    dx: &Buffer,
    dweight: Option<&mut Buffer>,
) {
    let [chunk] = weight.chunks() else { return };
    if p.rows == 0 {
        return;
    }
    let op = "rmsnorm_backward";
    let blocks = p.rows.div_ceil(ROWS);
    let Some(scales) = device.work(1, p.rows as usize, Use::Work) else { return };
    let params = RmsNormBackward {
        rows: p.rows,
        dim: p.dim,
        x_stride: x.stride / 4,
        dh_stride: dh.stride / 4,
        dx_stride: dx.stride / 4,
        eps: p.eps,
    };
    let mut constants = shader::stored(chunk.format.dtype);
    constants.push(("LANES", f64::from(tune::LANES)));
    let values = u64::from(p.rows) * u64::from(p.dim);
    device.gpu.launch(
        &shader::RMSNORM_BACKWARD,
        &constants,
        bytemuck::bytes_of(&params),
        &[bind(&x.raw), chunk.binding(), bind(&dh.raw), bind(&dx.raw), bind(&scales.raw)],
        Grid::flat(p.rows),
        Work { op, bytes: 16 * values, flops: 10 * values },
    );
    let Some(dweight) = dweight else { return };
    let Some(parts) = device.work(blocks as usize, p.dim as usize, Use::Work) else { return };
    for sum in [0, 1] {
        let params = RmsNormWeight {
            rows: p.rows,
            blocks,
            vectors: 2 * p.dim.div_ceil(8),
            x_stride: x.stride / 4,
            dh_stride: dh.stride / 4,
            parts_stride: parts.stride / 4,
            sum,
        };
        let invocations = params.vectors * if sum == 1 { 1 } else { blocks };
        let [bytes, flops] = if sum == 1 { [0, 0] } else { [8 * values, 3 * values] };
        device.gpu.launch(
            &shader::RMSNORM_WEIGHT,
            &[],
            bytemuck::bytes_of(&params),
            &[bind(&x.raw), bind(&dh.raw), bind(&scales.raw), bind(&parts.raw), bind(&dweight.raw)],
            Grid::flat(invocations.div_ceil(64)),
            Work { op, bytes, flops },
        );
    }
}
