//! merge: a low-rank adapter in the rows of a matrix; see merge.wgsl.

use crate::gpu::Grid;
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader};
use gritlm_model::ops::Merge;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in merge.wgsl.
    MergeParams {
        rows: u32,
        groups: u32,
        rank: u32,
        w_row: u32,
        out_row: u32,
        b_row: u32,
        w_stride: u32,
        out_stride: u32,
        b_stride: u32,
        masked: u32,
        scale: f32,
    }
}

pub(crate) fn merge(
    device: &Wgpu,
    p: Merge,
    w: &Matrix,
    ba: Option<[&Matrix; 2]>,
    mask: Option<&Buffer>,
    out: &Matrix,
) {
    let groups = p.cols.div_ceil(8);
    for from in w.chunks() {
        debug_assert!(!from.format.dtype.is_quantized(), "an adapter needs plain weights");
        for to in out.chunks() {
            // The rows that are in both buffers.
            let first = p.first.max(from.first).max(to.first);
            let last = (p.first + p.rows).min(from.first + from.rows).min(to.first + to.rows);
            if first >= last {
                continue;
            }
            // An adapter's matrices are far smaller than what a binding holds: one buffer each.
            let ba = ba.map(|both| both.map(|matrix| &matrix.chunks()[0]));
            let [b, a] = ba.map_or([from, from], |both| both);
            let params = MergeParams {
                rows: last - first,
                groups,
                rank: if ba.is_some() { p.rank } else { 0 },
                w_row: first - from.first,
                out_row: first - to.first,
                b_row: first - p.first,
                w_stride: from.format.vectors(),
                out_stride: to.format.vectors(),
                b_stride: 4 * b.format.vectors(),
                masked: u32::from(mask.is_some()),
                scale: p.scale,
            };
            let values = u64::from(last - first) * u64::from(p.cols);
            let bytes = 4 * values + u64::from(last - first) * from.format.row_bytes(p.cols);
            let mask = mask.map_or(from.binding(), |mask| bind(&mask.raw));
            device.gpu.launch(
                &shader::MERGE,
                &shader::stored(from.format.dtype),
                bytemuck::bytes_of(&params),
                &[from.binding(), b.binding(), a.binding(), mask, to.binding()],
                Grid::flat((params.rows * groups).div_ceil(64)),
                Work { op: "merge", bytes, flops: 2 * values * u64::from(params.rank) },
            );
        }
    }
}
