//! parameters, read_parameters, clear, copy, squares: what training does with whole buffers; see
//! squares.wgsl.

use crate::gpu::{Grid, Use};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader, tune};
use gritlm_model::host::rows;
use gritlm_model::ops::Result;
use gritlm_model::params;

/// Elements whose squares a workgroup adds up.
const PART: usize = 4096;

params! {
    /// Parameters; the fields are described in squares.wgsl.
    Squares {
        count: u32,
        parts: u32,
    }
}

/// Returns the stored elements that hold the first `len` values: whole rows with their padding, and a
/// part of the next row.
fn stored(buffer: &Buffer, len: usize) -> usize {
    let cols = buffer.cols.max(1);
    len / cols * buffer.stride as usize + len % cols
}

pub(crate) async fn read_parameters(device: &Wgpu, w: &Matrix) -> Result<Vec<f32>> {
    let cols = w.cols as usize;
    let mut all = Vec::new();
    for chunk in w.chunks() {
        let (len, stride) = (chunk.rows as usize * cols, 4 * chunk.format.vectors() as usize);
        let bytes = 4 * rows::stored(len, cols, stride) as u64;
        let bytes = device.gpu.read(&chunk.raw, 0, bytes).await?;
        all.extend(rows::unpadded(bytemuck::pod_collect_to_vec(&bytes), len, cols, stride));
    }
    Ok(all)
}

pub(crate) fn clear(device: &Wgpu, buffer: &Buffer, len: usize) {
    device.gpu.clear_part(&buffer.raw, 4 * stored(buffer, len) as u64);
}

pub(crate) fn copy(device: &Wgpu, from: &Buffer, len: usize, to: &Buffer) {
    debug_assert_eq!(from.cols, to.cols);
    device.gpu.copy(&from.raw, 0, &to.raw, 0, 4 * stored(from, len) as u64);
}

pub(crate) async fn squares(device: &Wgpu, buffer: &Buffer, len: usize) -> Result<f64> {
    let count = stored(buffer, len);
    let parts = device.buffer_of(1, count.div_ceil(PART), Use::Work)?;
    let params = Squares { count: count as u32, parts: parts.cols as u32 };
    device.gpu.launch(
        &shader::SQUARES,
        &[("LANES", f64::from(tune::LANES))],
        bytemuck::bytes_of(&params),
        &[bind(&buffer.raw), bind(&parts.raw)],
        Grid::flat(params.parts),
        Work { op: "squares", bytes: 4 * count as u64, flops: 2 * count as u64 },
    );
    let bytes = device.gpu.read(&parts.raw, 0, 4 * parts.cols as u64).await?;
    let parts: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
    Ok(parts.iter().copied().map(f64::from).sum())
}
