//! expert_gate_up, expert_down_add: the feed-forward of a mixture, grouped by expert on the device;
//! see expert_sort.cu, expert_gather.cu, expert_gate_up.cu, expert_down.cu and expert_add.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::product::{Call, Order, Product};
use crate::route;
use crate::tune::{Form, Shape};
use crate::{Buffer, Cuda, Format, Matrix, Routing};
use gritlm_model::ops::{Expert, Result};
use gritlm_model::params;
use std::borrow::Cow;

params! {
    /// Parameters; the fields are described in expert_gather.cu.
    Gather {
        a: Pointer,
        out: Pointer,
        routing: Pointer,
        rows: u32,
        stride: u32,
        assigned: u32,
        unused: u32,
    }
}

/// Returns the form of both products, which share the list of tiles. It is chosen for the
/// rows that an expert gets if all experts get the same number.
fn grouped(device: &Cuda, p: Expert) -> Form {
    let rows = (p.rows * p.top_k).div_ceil(p.experts);
    let shape = Shape { rows, weights: 2 * p.hidden, inner: p.dim, groups: p.experts };
    let hopper = device.on_hopper("expert_gate_up", Order::Halves, p.hidden)
        && device.on_hopper("expert_down", Order::Rows, p.dim);
    device.form(shape, hopper)
}

/// Returns the rows of bf16 in the order of the experts, as TMA needs them.
fn gathered(device: &Cuda, p: Expert, a: &Buffer, routing: &Routing) -> Result<Buffer> {
    let assigned = p.rows * p.top_k;
    let bytes = 2 * u64::from(assigned) * u64::from(a.stride);
    let raw = device.gpu.buffer(bytes)?;
    let params = Gather {
        a: a.raw.pointer(),
        out: raw.pointer(),
        routing: routing.raw.pointer(),
        rows: assigned,
        stride: a.stride,
        assigned: routing.assigned,
        unused: 0,
    };
    device.gpu.launch(
        Kernel { source: "expert_gather", entry: Cow::Borrowed("expert_gather_rows") },
        Grid { blocks: [assigned, 1, 1], threads: 128, shared: 0 },
        &params,
        Work { op: "expert_gate_up", bytes: 2 * bytes, ..Work::default() },
    );
    Ok(Buffer { raw, ..*a })
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
    let Some(narrow) = device.narrowed(h, p.rows) else { return };
    let mut a = Buffer { raw: narrow.raw, stride: narrow.stride, format: Format::Bf16, ..*h };
    if form.tile.is_hopper() {
        a = match gathered(device, p, &a, routing) {
            Ok(sorted) => sorted,
            Err(problem) => return device.gpu.fail(problem),
        };
    }
    let call = Call {
        op: "expert_gate_up",
        source: "expert_gate_up",
        order: Order::Halves,
        experts: p.experts,
        rows: p.rows * p.top_k,
        outputs: p.hidden,
        a: &a,
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
    device.product_as(&call, form);
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
        order: Order::Rows,
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
    device.product_as(&call, grouped(device, p));
    route::add_experts(device, p, &sorted, routing, x);
}
