//! merge_backward: the gradients of a low-rank adapter; see merge_backward.wgsl.

use crate::gpu::Grid;
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader};
use gritlm_model::ops::Merge;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in merge_backward.wgsl.
    MergeBackward {
        rows: u32,
        vectors: u32,
        rank: u32,
        first: u32,
        dw_stride: u32,
        a_stride: u32,
        b_stride: u32,
        out_stride: u32,
        of_a: u32,
        masked: u32,
        scale: f32,
    }
}

pub(crate) fn merge_backward(
    device: &Wgpu,
    p: Merge,
    dw: &Buffer,
    ba: [&Matrix; 2],
    mask: Option<&Buffer>,
    [db, da]: [&Buffer; 2],
) {
    let [b, a] = ba.map(|matrix| &matrix.chunks()[0]);
    let vectors = p.cols.div_ceil(4);
    let values = u64::from(p.rows) * u64::from(p.cols);
    for (of_a, out) in [(false, db), (true, da)] {
        let params = MergeBackward {
            rows: p.rows,
            vectors,
            rank: p.rank,
            first: p.first,
            dw_stride: dw.stride / 4,
            a_stride: a.format.vectors(),
            b_stride: 4 * b.format.vectors(),
            out_stride: if of_a { out.stride / 4 } else { out.stride },
            of_a: u32::from(of_a),
            masked: u32::from(mask.is_some()),
            scale: p.scale,
        };
        let invocations = p.rank * if of_a { vectors } else { p.rows };
        let mask = mask.map_or(bind(&dw.raw), |mask| bind(&mask.raw));
        device.gpu.launch(
            &shader::MERGE_BACKWARD,
            &[],
            bytemuck::bytes_of(&params),
            &[bind(&dw.raw), b.binding(), a.binding(), mask, bind(&out.raw)],
            Grid::flat(invocations.div_ceil(64)),
            Work { op: "merge_backward", bytes: 4 * values, flops: 2 * values * u64::from(p.rank) },
        );
    }
}
