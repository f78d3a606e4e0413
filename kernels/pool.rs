//! pool: one vector per span; see pool.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda, Format};
use gritlm_model::host::pool::records;
use gritlm_model::ops::PoolingSpan;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in pool.cu.
    Pool {
        h: Pointer,
        spans: Pointer,
        out: Pointer,
        dim: u32,
        h_stride: u32,
        out_stride: u32,
        unused: u32,
    }
}

pub(crate) fn pool(device: &Cuda, dim: u32, spans: &[PoolingSpan], h: &Buffer, out: &mut Buffer) {
    let records = records(spans);
    let sent = match device.gpu.send(bytemuck::cast_slice(&records)) {
        Ok(sent) => sent,
        Err(problem) => return device.gpu.fail(problem),
    };
    let params = Pool {
        h: h.raw.pointer(),
        spans: sent.pointer(),
        out: out.raw.pointer(),
        dim,
        h_stride: h.stride,
        out_stride: out.stride,
        unused: 0,
    };
    out.format = Format::F32;
    let (entry, width) = match h.format {
        Format::F32 => ("pool_sums_f32", 4),
        Format::Bf16 => ("pool_sums_bf16", 2),
    };
    let (spans, dim) = (spans.len() as u32, u64::from(dim));
    let rows: u64 = records.iter().map(|r| u64::from(r[1])).sum();
    let values = u64::from(spans) * dim;
    device.gpu.launch(
        Kernel { source: "pool", entry: entry.into() },
        // A float for each of 16 warps and 64 columns.
        Grid { blocks: [spans, params.dim.div_ceil(64), 1], threads: 512, shared: 4 * 16 * 64 },
        &params,
        Work {
            op: "pool",
            bytes: width * rows * dim + 4 * values,
            flops: 2 * rows * dim,
            ..Work::default()
        },
    );
    if records.iter().any(|r| r[3] != 0) {
        device.gpu.launch(
            Kernel { source: "pool", entry: "pool_lengths_all".into() },
            Grid { blocks: [spans, 1, 1], threads: 256, shared: 4 * 256 / 32 },
            &params,
            Work { op: "pool", bytes: 8 * values, flops: 3 * values, ..Work::default() },
        );
    }
}
