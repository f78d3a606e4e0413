//! pool: one vector per span; see pool.wgsl.

use crate::gpu::Grid;
use crate::profile::Work;
use crate::{Buffer, Wgpu, shader, tune};
use gritlm_model::host::pool::records;
use gritlm_model::ops::PoolingSpan;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in pool.wgsl.
    Pool {
        spans: u32,
        vectors: u32,
        h_stride: u32,
        out_stride: u32,
    }
}

pub(crate) fn pool(device: &Wgpu, dim: u32, spans: &[PoolingSpan], h: &Buffer, out: &Buffer) {
    let records = records(spans);
    let sent = match device.gpu.send(bytemuck::cast_slice(&records)) {
        Ok(sent) => sent,
        Err(problem) => return device.gpu.fail(problem),
    };
    let params = Pool {
        spans: spans.len() as u32,
        vectors: dim.div_ceil(4),
        h_stride: h.stride / 4,
        out_stride: out.stride / 4,
    };
    let rows: u64 = records.iter().map(|r| u64::from(r[1]) + 1).sum();
    let work = Work { op: "pool", bytes: 4 * rows * u64::from(dim), flops: rows * u64::from(dim) };
    device.gpu.launch(
        &shader::POOL,
        &[("LANES", f64::from(tune::LANES))],
        bytemuck::bytes_of(&params),
        &[(&h.raw).into(), (&sent).into(), (&out.raw).into()],
        Grid::flat(params.spans),
        work,
    );
}
