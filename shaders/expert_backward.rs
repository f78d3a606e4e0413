//! expert_gate_up_kept, expert_down_add_backward, expert_gate_up_backward: the feed-forward of a
//! mixture with its products kept, and its gradients, over copies of the rows sorted by expert; see
//! rows.wgsl, expert_down.wgsl, gate_up_backward.wgsl, outer.wgsl, expert_backward.wgsl and
//! expert_add.wgsl.

use crate::gate_up_backward::gated;
use crate::gpu::{Grid, Use};
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Routing, Wgpu, expert, rows, shader, tune};
use gritlm_model::ops::Expert;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in expert_backward.wgsl.
    ExpertBackward {
        count: u32,
        assigned: u32,
        vectors: u32,
        dy_vectors: u32,
        a_stride: u32,
        da_stride: u32,
        dy_stride: u32,
        dg_cols: u32,
        dg_stride: u32,
    }
}

/// Returns a copy of the rows, sorted by expert. `None` if there is no room.
fn sorted(
    device: &Wgpu,
    op: &'static str,
    p: Expert,
    routing: &Routing,
    from: &Buffer,
) -> Option<Buffer> {
    let count = p.rows * p.top_k;
    let to = device.work(count as usize, p.dim as usize, Use::Work)?;
    rows::by_expert(device, op, (p.dim, count), routing, from, &to);
    Some(to)
}

pub(crate) fn expert_gate_up_kept(
    device: &Wgpu,
    p: Expert,
    h: &Buffer,
    w: &Matrix,
    routing: &Routing,
    out: &Buffer,
    kept: &Buffer,
) {
    if p.rows == 0 {
        return;
    }
    let op = "expert_gate_up";
    let form = expert::grouped(device, p);
    let outputs = 2 * p.hidden;
    expert::sort(device, p, routing, form, form.across(outputs, false));
    let Some(h) = sorted(device, op, p, routing, h) else { return };
    expert::linear(device, op, p, form, (&h, outputs), w, routing, kept, true);
    gated(device, op, (p.rows * p.top_k, p.hidden), kept, out, true);
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn expert_down_add_backward(
    device: &Wgpu,
    p: Expert,
    a: &Buffer,
    w: &Matrix,
    routing: &Routing,
    dx: &Buffer,
    da: &Buffer,
    dweights: &Buffer,
    dw: Option<&mut Buffer>,
) {
    if p.rows == 0 {
        return;
    }
    let op = "expert_down_add_backward";
    let count = p.rows * p.top_k;
    let Some(dy) = sorted(device, op, p, routing, dx) else { return };
    let sizes = Sizes { rows: count, inner: p.hidden, outer: p.dim };
    let experts = Some((routing, p.experts));
    outer::input(device, op, sizes, experts, &dy, w, da);
    let params = ExpertBackward {
        count,
        assigned: routing.assigned,
        vectors: p.hidden.div_ceil(4),
        dy_vectors: p.dim.div_ceil(4),
        a_stride: a.stride / 4,
        da_stride: da.stride / 4,
        dy_stride: dy.stride / 4,
        dg_cols: dweights.cols as u32,
        dg_stride: dweights.stride,
    };
    let values = u64::from(count) * u64::from(p.hidden);
    device.gpu.launch(
        &shader::EXPERT_BACKWARD,
        &[("LANES", f64::from(tune::LANES))],
        bytemuck::bytes_of(&params),
        &[bind(&a.raw), bind(&routing.raw), bind(&da.raw), bind(&dy.raw), bind(&dweights.raw)],
        Grid::flat(count),
        Work { op, bytes: 12 * values, flops: 3 * values },
    );
    if let Some(dw) = dw {
        outer::weights(device, op, sizes, experts, &dy, a, dw, true);
    }
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn expert_gate_up_backward(
    device: &Wgpu,
    p: Expert,
    h: &Buffer,
    w: &Matrix,
    routing: &Routing,
    kept: &Buffer,
    dout: &Buffer,
    dh: &Buffer,
    dw: Option<&mut Buffer>,
) {
    if p.rows == 0 {
        return;
    }
    let op = "expert_gate_up_backward";
    let count = p.rows * p.top_k;
    gated(device, op, (count, p.hidden), kept, dout, false);
    let sizes = Sizes { rows: count, inner: p.dim, outer: 2 * p.hidden };
    let experts = Some((routing, p.experts));
    {
        let Some(part) = device.work(count as usize, p.dim as usize, Use::Work) else { return };
        outer::input(device, op, sizes, experts, kept, w, &part);
        expert::add(device, op, p, routing, &part, dh, false);
    }
    if let Some(dw) = dw {
        let Some(h) = sorted(device, op, p, routing, h) else { return };
        outer::weights(device, op, sizes, experts, kept, &h, dw, true);
    }
}
