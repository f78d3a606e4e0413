//! expert_gate_up, expert_down_add: the feed-forward of a mixture, grouped by expert on the device;
//! see expert_sort.wgsl, expert_gate_up.wgsl, expert_down.wgsl and expert_add.wgsl.

use crate::gpu::{Grid, Use};
use crate::matrix::Segment;
use crate::product::{Call, Product, bind};
use crate::profile::Work;
use crate::tune::Form;
use crate::{Buffer, Matrix, Routing, Wgpu, shader};
use gritlm_model::ops::Expert;
use gritlm_model::params;

params! {
    /// Parameters of the sort; the fields are described in expert_sort.wgsl.
    Sort {
        count: u32,
        assigned: u32,
        experts: u32,
        top_k: u32,
        tile_rows: u32,
        gate_up: u32,
        down: u32,
        few: u32,
    }
}

params! {
    /// Parameters of the addition; the fields are described in expert_add.wgsl.
    Add {
        rows: u32,
        top_k: u32,
        assigned: u32,
        vectors: u32,
        x_stride: u32,
        y_stride: u32,
        weighted: u32,
    }
}

/// Returns the form of the grouped products, chosen for the rows that an expert gets if all
/// experts get the same number.
pub(crate) fn grouped(device: &Wgpu, p: Expert) -> Form {
    device.form((p.rows * p.top_k).div_ceil(p.experts))
}

pub(crate) fn expert_gate_up(
    device: &Wgpu,
    p: Expert,
    h: &Buffer,
    w: &Matrix,
    routing: &Routing,
    out: &Buffer,
) {
    if p.rows == 0 {
        return;
    }
    let form = grouped(device, p);
    sort(device, p, routing, form, form.across(p.hidden, true));
    let call = Call {
        op: "expert_gate_up",
        shaders: &shader::EXPERT_GATE_UP,
        pair: true,
        rows: p.rows * p.top_k,
        a: bind(&h.raw),
        a_stride: h.stride,
        w,
        rest: &[bind(&out.raw), bind(&routing.raw)],
        params: Product {
            out_stride: out.stride,
            hidden: p.hidden,
            assigned: routing.assigned,
            experts: p.experts,
            ..Product::default()
        },
    };
    let row = |expert: u32, member: u32, j: u32| (2 * expert + member) * p.hidden + j;
    by_expert(device, &call, form, routing, (p.experts, p.hidden, true), row);
}

/// Sorts the rows by expert and sizes the grids of both products; the first has `across` workgroups
/// across its outputs.
pub(crate) fn sort(device: &Wgpu, p: Expert, routing: &Routing, form: Form, across: u32) {
    let params = Sort {
        count: p.rows * p.top_k,
        assigned: routing.assigned,
        experts: p.experts,
        top_k: p.top_k,
        tile_rows: form.rows(),
        gate_up: across,
        down: form.across(p.dim, false),
        few: u32::from(form.is_few()),
    };
    device.gpu.launch(
        &shader::EXPERT_SORT,
        &[],
        bytemuck::bytes_of(&params),
        &[(&routing.raw).into(), (&routing.grids).into()],
        Grid::Of(1, 1),
        Work { op: "route", bytes: 16 * u64::from(params.count), flops: 0 },
    );
}

pub(crate) fn expert_down_add(
    device: &Wgpu,
    p: Expert,
    a: &Buffer,
    w: &Matrix,
    routing: &Routing,
    x: &Buffer,
) {
    if p.rows == 0 {
        return;
    }
    let assigned = p.rows * p.top_k;
    // Kept until the sum has been recorded; then the next layer may overwrite it.
    let Some(sorted) = device.work(assigned as usize, p.dim as usize, Use::Work) else { return };
    let op = "expert_down_add";
    let form = grouped(device, p);
    linear(device, op, p, form, (a, p.dim), w, routing, &sorted, false);
    add(device, op, p, routing, &sorted, x, true);
}

/// Computes `out (rows · top_k, outputs)` = `a` · W of each row's expert, both sorted by expert. The
/// product takes the grids of the sort's first one or of its second.
#[expect(clippy::too_many_arguments, reason = "a product with its sizes and who asks for it")]
pub(crate) fn linear(
    device: &Wgpu,
    op: &'static str,
    p: Expert,
    form: Form,
    (a, outputs): (&Buffer, u32),
    w: &Matrix,
    routing: &Routing,
    out: &Buffer,
    first: bool,
) {
    let call = Call {
        op,
        shaders: &shader::EXPERT_DOWN,
        pair: false,
        rows: p.rows * p.top_k,
        a: bind(&a.raw),
        a_stride: a.stride,
        w,
        rest: &[bind(&out.raw), bind(&routing.raw)],
        params: Product {
            out_stride: out.stride,
            hidden: outputs,
            assigned: routing.assigned,
            experts: p.experts,
            ..Product::default()
        },
    };
    let row = |expert: u32, _, j: u32| expert * outputs + j;
    by_expert(device, &call, form, routing, (p.experts, outputs, first), row);
}

/// Adds `y (rows · top_k, dim)`, sorted by expert, to the rows of `x (rows, dim)`, times the weights
/// of the experts where `weighted`.
pub(crate) fn add(
    device: &Wgpu,
    op: &'static str,
    p: Expert,
    routing: &Routing,
    y: &Buffer,
    x: &Buffer,
    weighted: bool,
) {
    let params = Add {
        rows: p.rows,
        top_k: p.top_k,
        assigned: routing.assigned,
        vectors: p.dim.div_ceil(4),
        x_stride: x.stride / 4,
        y_stride: y.stride / 4,
        weighted: u32::from(weighted),
    };
    let values = u64::from(p.rows) * u64::from(p.dim);
    let work = Work {
        op,
        bytes: 4 * values * (2 + u64::from(p.top_k)),
        flops: 2 * values * u64::from(p.top_k),
    };
    device.gpu.launch(
        &shader::EXPERT_ADD,
        &[],
        bytemuck::bytes_of(&params),
        &[(&y.raw).into(), (&routing.raw).into(), (&x.raw).into()],
        Grid::flat((p.rows * params.vectors).div_ceil(64)),
        work,
    );
}

/// Records a grouped product: one launch for all experts if the matrix lies in one buffer and the
/// launch does not take too long, else one for each expert and segment.
fn by_expert(
    device: &Wgpu,
    call: &Call<'_>,
    form: Form,
    routing: &Routing,
    (experts, outputs, first): (u32, u32, bool),
    row: impl Fn(u32, u32, u32) -> u32,
) {
    // Grids of the second product come after those of the first.
    let second = if first { 0 } else { u64::from(experts) + 1 };
    let grid = |n: u32| Grid::On(routing.grids.clone(), 12 * (second + u64::from(n)));
    if let [only] = call.w.chunks()
        && device.gpu.share(experts, call.flops(call.rows, outputs)) == experts
    {
        let segment = Segment { outputs: 0..outputs, chunks: [only, only] };
        return device.launch_product(call, form, &segment, 0, grid(0));
    }
    let members = if call.pair { 2 } else { 1 };
    for expert in 0..experts {
        for segment in call.w.segments(outputs, members, |member, j| row(expert, member, j)) {
            device.launch_product(call, form, &segment, expert + 1, grid(expert + 1));
        }
    }
}
