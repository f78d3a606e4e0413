//! rmsnorm: rows divided by their root mean square; see rmsnorm.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Raw, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda, Format, Matrix};
use gritlm_model::params;
use std::sync::Arc;

params! {
    /// Parameters; the fields are described in rmsnorm.cu.
    RmsNormParams {
        x: Pointer,
        weight: Pointer,
        h: Pointer,
        rows_of: Pointer,
        dim: u32,
        x_stride: u32,
        h_stride: u32,
        eps: f32,
    }
}

/// Columns of a row that its block keeps in registers; a longer row is read twice.
const HELD: u32 = 4096;

/// Normalises all rows in order, or those that `rows_of` lists.
pub(crate) fn rmsnorm(
    device: &Cuda,
    (rows, dim, eps): (u32, u32, f32),
    x: &Buffer,
    weight: &Matrix,
    rows_of: Option<&Arc<Raw>>,
    h: &mut Buffer,
) {
    let params = RmsNormParams {
        x: x.raw.pointer(),
        weight: weight.raw.pointer(),
        h: h.raw.pointer(),
        rows_of: rows_of.map_or(Pointer::NULL, |raw| raw.pointer()),
        dim,
        x_stride: x.stride,
        h_stride: h.stride,
        eps,
    };
    let values = u64::from(rows) * u64::from(dim);
    let entry = match (rows_of.is_some(), dim > HELD) {
        (false, false) => "rmsnorm_rows",
        (false, true) => "rmsnorm_rows_long",
        (true, false) => "rmsnorm_chosen",
        (true, true) => "rmsnorm_chosen_long",
    };
    device.gpu.launch(
        Kernel { source: "rmsnorm", entry: entry.into() },
        Grid { blocks: [rows, 1, 1], threads: 512, shared: 4 * 512 / 32 },
        &params,
        Work { op: "rmsnorm", bytes: 6 * values, flops: 4 * values, ..Work::default() },
    );
    h.format = Format::Bf16;
}
