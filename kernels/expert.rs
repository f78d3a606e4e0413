//! expert_gate_up, expert_down_add: the feed-forward of a mixture, grouped by expert on the device;
//! see expert_sort.cu, expert_gate_up.cu, expert_down.cu and expert_add.cu.

use crate::product::{Call, Product};
use crate::route;
use crate::tune::Form;
use crate::{Buffer, Cuda, Format, Matrix, Routing};
use gritlm_model::ops::Expert;

/// Returns the form of both products, which share the list of tiles. It is chosen for the
/// rows that an expert gets if all experts get the same number.
fn grouped(device: &Cuda, p: Expert) -> Form {
    device.form(p.rows * p.top_k, p.experts, [p.hidden, p.dim], true)
}

pub(crate) fn expert_gate_up(
    device: &Cuda,
    p: Expert,
    h: &Buffer,
    w: &Matrix,
    routing: &Routing,
    out: &mut Buffer,
) {
    out.format = Format::Bf16;
    let form = grouped(device, p);
    route::sort_by_expert(device, p, routing, form.tile.rows);
    let Some(a) = device.narrowed(h, p.rows) else { return };
    let call = Call {
        op: "expert_gate_up",
        source: "expert_gate_up",
        pair: true,
        experts: p.experts,
        rows: p.rows * p.top_k,
        outputs: p.hidden,
        a: &Buffer { raw: a.raw, stride: a.stride, format: Format::Bf16, ..*h },
        w,
        params: Product {
            out: out.raw.pointer(),
            words: routing.raw.pointer(),
            out_stride: out.stride,
            hidden: p.hidden,
            assigned: routing.assigned,
            ..Product::default()
        },
    };
    device.product(&call, form);
}

pub(crate) fn expert_down_add(
    device: &Cuda,
    p: Expert,
    a: &Buffer,
    w: &Matrix,
    routing: &Routing,
    x: &Buffer,
) {
    let assigned = p.rows * p.top_k;
    let sorted = match device.buffer_of(assigned as usize, p.dim as usize) {
        Ok(sorted) => sorted,
        Err(problem) => return device.gpu.fail(problem),
    };
    let call = Call {
        op: "expert_down_add",
        source: "expert_down",
        pair: false,
        experts: p.experts,
        rows: assigned,
        outputs: p.dim,
        a,
        w,
        params: Product {
            sum: sorted.raw.pointer(),
            words: routing.raw.pointer(),
            out_stride: sorted.stride,
            assigned: routing.assigned,
            ..Product::default()
        },
    };
    device.product(&call, grouped(device, p));
    route::add_experts(device, p, &sorted, routing, x);
}
