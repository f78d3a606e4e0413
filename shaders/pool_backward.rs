//! pool_backward: adds each vector's gradient to those of its rows, by their weights; see rows.wgsl.

use crate::rows::{self, Term};
use crate::{Buffer, Wgpu};
use gritlm_model::host::pool::records;
use gritlm_model::ops::PoolingSpan;

pub(crate) fn pool_backward(
    device: &Wgpu,
    dim: u32,
    spans: &[PoolingSpan],
    dout: &Buffer,
    dh: &Buffer,
) {
    let mut terms = Vec::new();
    for (from, [row, rows, weighted, _]) in (0..).zip(records(spans)) {
        let weight = |n: u32| if weighted == 1 { n as f32 + 1.0 } else { 1.0 };
        let total: f32 = (0..rows).map(weight).sum();
        terms.extend((0..rows).map(|n| Term { to: row + n, from, scale: weight(n) / total }));
    }
    rows::add(device, "pool_backward", dim, terms, dout, dh);
}
