//! adamw: a step of the optimiser on the weights of one matrix; see adamw.wgsl.

use crate::gpu::Grid;
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Wgpu, shader};
use gritlm_model::ops::AdamW;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in adamw.wgsl.
    Step {
        count: u32,
        before: u32,
        cols: u32,
        stride: u32,
        len: u32,
        rate: f32,
        beta1: f32,
        beta2: f32,
        epsilon: f32,
        decay: f32,
        scale: f32,
        first: f32,
        second: f32,
    }
}

pub(crate) fn adamw(device: &Wgpu, p: AdamW, gradient: &Buffer, [m, v]: [&Buffer; 2], w: &Matrix) {
    let corrected = |beta: f32| (1.0 - f64::from(beta).powi(p.step as i32)) as f32;
    for chunk in w.chunks() {
        let stride = 4 * chunk.format.vectors();
        debug_assert!([gradient, m, v].iter().all(|buffer| buffer.stride == stride));
        let params = Step {
            count: chunk.rows * stride,
            before: chunk.first * stride,
            cols: w.cols,
            stride,
            len: p.len,
            rate: p.rate,
            beta1: p.beta1,
            beta2: p.beta2,
            epsilon: p.epsilon,
            decay: p.decay,
            scale: p.scale,
            first: corrected(p.beta1),
            second: corrected(p.beta2),
        };
        let values = u64::from(chunk.rows) * u64::from(w.cols);
        device.gpu.launch(
            &shader::ADAMW,
            &[],
            bytemuck::bytes_of(&params),
            &[bind(&gradient.raw), bind(&m.raw), bind(&v.raw), chunk.binding()],
            Grid::flat(params.count.div_ceil(64)),
            Work { op: "adamw", bytes: 28 * values, flops: 16 * values },
        );
    }
}
