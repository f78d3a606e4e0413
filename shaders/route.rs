//! route: the router's logits, and each row's experts; see linear.wgsl and route.wgsl.

use crate::gpu::Grid;
use crate::linear_add;
use crate::profile::Work;
use crate::{Buffer, Matrix, Routing, Wgpu, shader};
use gritlm_model::ops::Route;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in route.wgsl.
    RouteParams {
        rows: u32,
        experts: u32,
        top_k: u32,
        assigned: u32,
        stride: u32,
    }
}

pub(crate) fn route(device: &Wgpu, p: Route, h: &Buffer, w: &Matrix, routing: &Routing) {
    linear_add::linear(device, "route", (p.rows, p.experts), h, w, &routing.logits, false);
    let params = RouteParams {
        rows: p.rows,
        experts: p.experts,
        top_k: p.top_k,
        assigned: routing.assigned,
        stride: routing.logits.stride,
    };
    let bytes = u64::from(p.rows) * (4 * u64::from(p.experts) + 8 * u64::from(p.top_k));
    device.gpu.launch(
        &shader::ROUTE,
        &[],
        bytemuck::bytes_of(&params),
        &[(&routing.logits.raw).into(), (&routing.raw).into()],
        Grid::Of(p.rows.div_ceil(64), 1),
        Work { op: "route", bytes, flops: 0 },
    );
}
