//! embed: rows of the embedding table; see embed.wgsl.

use crate::gpu::Grid;
use crate::profile::Work;
use crate::{Batch, Buffer, Matrix, Wgpu, shader};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in embed.wgsl.
    Embed {
        rows: u32,
        groups: u32,
        first: u32,
        count: u32,
        table_stride: u32,
        x_stride: u32,
        high: u32,
        units: u32,
        numbers: u32,
        run: u32,
        block: u32,
        zero: f32,
    }
}

pub(crate) fn embed(device: &Wgpu, batch: &Batch, table: &Matrix, x: &Buffer) {
    let (rows, groups) = (batch.rows, table.cols.div_ceil(8));
    for chunk in table.chunks() {
        let codes = chunk.format.codes;
        let params = Embed {
            rows,
            groups,
            first: chunk.first,
            count: chunk.rows,
            table_stride: chunk.format.vectors(),
            x_stride: x.stride / 4,
            high: codes.high,
            units: codes.units,
            numbers: codes.numbers,
            run: codes.run,
            block: codes.block,
            zero: codes.zero,
        };
        let row = chunk.format.row_bytes(table.cols) + 4 * u64::from(table.cols);
        let work = Work { op: "embed", bytes: u64::from(rows) * row, flops: 0 };
        device.gpu.launch(
            &shader::EMBED,
            &shader::stored(chunk.format.dtype),
            bytemuck::bytes_of(&params),
            &[(&batch.raw).into(), chunk.binding(), (&x.raw).into()],
            Grid::flat((rows * groups).div_ceil(64)),
            work,
        );
    }
}
