//! rmsnorm: rows divided by their root mean square; see rmsnorm.wgsl.

use crate::gpu::{Binding, Grid};
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader, tune};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in rmsnorm.wgsl.
    RmsNormParams {
        rows: u32,
        dim: u32,
        x_stride: u32,
        h_stride: u32,
        eps: f32,
    }
}

/// Normalises all rows in order, or those that `chosen` lists.
pub(crate) fn rmsnorm(
    device: &Wgpu,
    (rows, dim, eps): (u32, u32, f32),
    x: &Buffer,
    weight: &Matrix,
    chosen: Option<Binding<'_>>,
    h: &Buffer,
) {
    let [chunk] = weight.chunks() else { return };
    let params = RmsNormParams { rows, dim, x_stride: x.stride / 4, h_stride: h.stride / 4, eps };
    let mut constants = shader::stored(chunk.format.dtype);
    constants.extend([
        ("LANES", f64::from(tune::LANES)),
        ("GATHER", f64::from(u8::from(chosen.is_some()))),
    ]);
    let values = u64::from(rows) * u64::from(dim);
    let work = Work { op: "rmsnorm", bytes: 8 * values, flops: 4 * values };
    device.gpu.launch(
        &shader::RMSNORM,
        &constants,
        bytemuck::bytes_of(&params),
        // Without `chosen`, the shader does not read this binding.
        &[(&x.raw).into(), chunk.binding(), chosen.unwrap_or(chunk.binding()), (&h.raw).into()],
        Grid::flat(rows),
        work,
    );
}
