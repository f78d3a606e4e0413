//! pool: one vector per span; see pool.wgsl.

use crate::gpu::Grid;
use crate::params::params;
use crate::profile::Work;
use crate::{Buffer, Wgpu, shader, tune};
use gritlm_model::ops::{Pooling, PoolingSpan};

params! {
    /// Parameters; the fields are described in pool.wgsl.
    Pool {
        spans: u32,
        vectors: u32,
        h_stride: u32,
        out_stride: u32,
    }
}

/// Returns the record of a span: first row, rows, weighted, normalize. The poolings differ in
/// nothing else.
fn record(span: &PoolingSpan) -> [u32; 4] {
    let (row, rows, weighted) = match span.pooling {
        Pooling::Mean => (span.row + span.skip, span.rows - span.skip, 0),
        Pooling::WeightedMean => (span.row + span.skip, span.rows - span.skip, 1),
        Pooling::Cls => (span.row, 1, 0),
        Pooling::LastToken => (span.row + span.rows - 1, 1, 0),
    };
    [row, rows, weighted, u32::from(span.normalize)]
}

impl Wgpu {
    pub(crate) fn pooled(&self, dim: u32, spans: &[PoolingSpan], h: &Buffer, out: &Buffer) {
        let records: Vec<[u32; 4]> = spans.iter().map(record).collect();
        let sent = match self.gpu.send(bytemuck::cast_slice(&records)) {
            Ok(sent) => sent,
            Err(problem) => return self.gpu.fail(problem),
        };
        let params = Pool {
            spans: spans.len() as u32,
            vectors: dim.div_ceil(4),
            h_stride: h.stride / 4,
            out_stride: out.stride / 4,
        };
        let rows: u64 = records.iter().map(|r| u64::from(r[1]) + 1).sum();
        let work =
            Work { op: "pool", bytes: 4 * rows * u64::from(dim), flops: rows * u64::from(dim) };
        self.gpu.launch(
            &shader::POOL,
            &[("LANES", f64::from(tune::LANES))],
            bytemuck::bytes_of(&params),
            &[(&h.raw).into(), (&sent).into(), (&out.raw).into()],
            Grid::flat(params.spans),
            work,
        );
    }
}
