//! route: chooses each row's experts, sorts the rows by expert, and adds up each row's experts;
//! see route.cu, expert_sort.cu and expert_add.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda, Format, Matrix, Routing};
use gritlm_model::ops::{Expert, Route};
use gritlm_model::params;

params! {
    /// Parameters of the choice; the fields are described in route.cu.
    RouteParams {
        h: Pointer,
        w: Pointer,
        logits: Pointer,
        routing: Pointer,
        dim: u32,
        experts: u32,
        top_k: u32,
        assigned: u32,
        h_stride: u32,
        w_stride: u32,
        logits_stride: u32,
        unused: u32,
    }
}

params! {
    /// Parameters of the sort; the fields are described in expert_sort.cu.
    Sort {
        routing: Pointer,
        count: u32,
        assigned: u32,
        experts: u32,
        top_k: u32,
        tile_rows: u32,
        unused: u32,
    }
}

params! {
    /// Parameters of the sum; the fields are described in expert_add.cu.
    Add {
        y: Pointer,
        routing: Pointer,
        x: Pointer,
        dim: u32,
        top_k: u32,
        assigned: u32,
        x_stride: u32,
        y_stride: u32,
        unused: u32,
    }
}

/// Sums that a block of `route` holds at a time: 8 experts for each of its 8 warps.
const SUMS: u32 = 8 * 8;

pub(crate) fn route(device: &Cuda, p: Route, h: &Buffer, w: &Matrix, routing: &Routing) {
    let params = RouteParams {
        h: h.raw.pointer(),
        w: w.raw.pointer(),
        logits: routing.logits.raw.pointer(),
        routing: routing.raw.pointer(),
        dim: p.dim,
        experts: p.experts,
        top_k: p.top_k,
        assigned: routing.assigned,
        h_stride: h.stride,
        w_stride: w.stride,
        logits_stride: routing.logits.stride,
        unused: 0,
    };
    let (entry, width) = match h.format {
        Format::F32 => ("route_f32", 4),
        Format::Bf16 => ("route_bf16", 2),
    };
    let [rows, dim, experts] = [p.rows, p.dim, p.experts].map(u64::from);
    let bytes = rows * (width * dim + 4 * experts + 8 * u64::from(p.top_k)) + 2 * experts * dim;
    device.gpu.launch(
        Kernel { source: "route", entry: entry.into() },
        Grid { blocks: [p.rows, 1, 1], threads: 256, shared: 4 * (SUMS + p.experts) },
        &params,
        Work { op: "route", bytes, flops: 2 * rows * experts * dim, ..Work::default() },
    );
}

/// Sorts the choices of [`Cuda::choose`] by expert, and lists the tiles of `tile_rows` rows
/// of one expert.
pub(crate) fn sort_by_expert(device: &Cuda, p: Expert, routing: &Routing, tile_rows: u32) {
    if p.rows == 0 {
        return;
    }
    let params = Sort {
        routing: routing.raw.pointer(),
        count: p.rows * p.top_k,
        assigned: routing.assigned,
        experts: p.experts,
        top_k: p.top_k,
        tile_rows,
        unused: 0,
    };
    // A count for each warp and expert, and the experts' first places and tiles.
    let shared = 4 * (32 * p.experts + 2 * (p.experts + 1));
    device.gpu.launch(
        Kernel { source: "expert_sort", entry: "expert_sort_rows".into() },
        Grid { blocks: [1, 1, 1], threads: 1024, shared },
        &params,
        Work { op: "route", bytes: 16 * u64::from(params.count), flops: 0, ..Work::default() },
    );
}

/// Adds to each row of `x` its rows of `sorted (rows · top_k, dim)`, times their weights.
pub(crate) fn add_experts(
    device: &Cuda,
    p: Expert,
    sorted: &Buffer,
    routing: &Routing,
    x: &Buffer,
) {
    let params = Add {
        y: sorted.raw.pointer(),
        routing: routing.raw.pointer(),
        x: x.raw.pointer(),
        dim: p.dim,
        top_k: p.top_k,
        assigned: routing.assigned,
        x_stride: x.stride,
        y_stride: sorted.stride,
        unused: 0,
    };
    let (values, top_k) = (u64::from(p.rows) * u64::from(p.dim), u64::from(p.top_k));
    device.gpu.launch(
        Kernel { source: "expert_add", entry: "expert_add_rows".into() },
        Grid { blocks: [p.rows, p.dim.div_ceil(4 * 256), 1], threads: 256, shared: 0 },
        &params,
        Work {
            op: "expert_down_add",
            bytes: 4 * values * (2 + top_k),
            flops: 2 * values * top_k,
            ..Work::default()
        },
    );
}
