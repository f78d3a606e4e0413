//! route_backward: the gradients of the router's logits, then both products; see route_backward.wgsl
//! and outer.wgsl.

use crate::gpu::{Grid, Use};
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Routing, Wgpu, shader};
use gritlm_model::ops::Route;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in route_backward.wgsl.
    RouteBackward {
        rows: u32,
        experts: u32,
        top_k: u32,
        assigned: u32,
        stride: u32,
        dz_stride: u32,
        dg_cols: u32,
        dg_stride: u32,
    }
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn route_backward(
    device: &Wgpu,
    p: Route,
    h: &Buffer,
    w: &Matrix,
    routing: &Routing,
    dweights: &Buffer,
    balance: &[f32],
    dh: &Buffer,
    dw: Option<&mut Buffer>,
) {
    let op = "route_backward";
    let balance = match device.gpu.send(bytemuck::cast_slice(balance)) {
        Ok(balance) => balance,
        Err(problem) => return device.gpu.fail(problem),
    };
    let Some(dz) = device.work(p.rows as usize, p.experts as usize, Use::Work) else { return };
    let params = RouteBackward {
        rows: p.rows,
        experts: p.experts,
        top_k: p.top_k,
        assigned: routing.assigned,
        stride: routing.logits.stride,
        dz_stride: dz.stride,
        dg_cols: dweights.cols as u32,
        dg_stride: dweights.stride,
    };
    let bytes = u64::from(p.rows) * (8 * u64::from(p.experts) + 12 * u64::from(p.top_k));
    device.gpu.launch(
        &shader::ROUTE_BACKWARD,
        &[],
        bytemuck::bytes_of(&params),
        &[
            bind(&routing.logits.raw),
            bind(&routing.raw),
            bind(&dweights.raw),
            bind(&balance),
            bind(&dz.raw),
        ],
        Grid::Of(p.rows.div_ceil(64), 1),
        Work { op, bytes, flops: 0 },
    );
    let sizes = Sizes { rows: p.rows, inner: p.dim, outer: p.experts };
    outer::projection(device, op, sizes, h, w, &dz, dh, dw);
}
