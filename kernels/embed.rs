//! embed: rows of the embedding table; see embed.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Batch, Buffer, Cuda, Format, Matrix};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in embed.cu.
    Embed {
        tokens: Pointer,
        table: Pointer,
        x: Pointer,
        groups: u32,
        table_stride: u32,
        x_stride: u32,
        unused: u32,
    }
}

pub(crate) fn embed(device: &Cuda, batch: &Batch, table: &Matrix, x: &mut Buffer) {
    let groups = table.cols.div_ceil(8);
    let params = Embed {
        tokens: batch.raw.pointer(),
        table: table.raw.pointer(),
        x: x.raw.pointer(),
        groups,
        table_stride: table.stride,
        x_stride: x.stride,
        unused: 0,
    };
    device.gpu.launch(
        Kernel { source: "embed", entry: "embed_rows".into() },
        Grid { blocks: [batch.rows, groups.div_ceil(256), 1], threads: 256, shared: 0 },
        &params,
        Work {
            op: "embed",
            bytes: 6 * u64::from(batch.rows) * u64::from(table.cols),
            flops: 0,
            ..Work::default()
        },
    );
    x.format = Format::F32;
}
