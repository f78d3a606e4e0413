//! Measures what a device achieves at best: the rate of its own copy and of a large matrix
//! product. The limits are measured on the same device before anything else, because a share of a
//! limit says more than a rate.

use super::case::{Case, Op, Step};
use super::record::Limits;
use super::time::timed;
use crate::Result;
use gritlm_model::measure::Measure;
use gritlm_model::ops::LinearAdd;
use gritlm_model::weights::Dtype;

/// Bytes of the copy; larger than any cache.
const COPY: u64 = 256 << 20;

/// Longest expected time, in microseconds, of the next product to try. It keeps small devices from
/// taking minutes, while large ones go on to products that keep them busy.
const ENOUGH: f64 = 400_000.0;

/// Rows, inner and outer of the products to try. Each has 8 times the work of the one before, the
/// last 16 times.
const SIZES: [[u32; 3]; 4] =
    [[256, 512, 512], [512, 1024, 1024], [1024, 2048, 2048], [4096, 4096, 4096]];

/// Measures the limits of a device.
///
/// # Errors
/// When the device fails.
pub fn measure<O: Measure>(ops: &O, device: &str) -> Result<Limits> {
    let copy = ops.copy_rate(COPY)?;
    let mut rate = 0.0f64;
    for [rows, inner, outer] in SIZES {
        let case = Case::new(Op::LinearAdd(LinearAdd { rows, inner, outer }), Dtype::Bf16);
        let mut ready = case.ready(ops)?;
        let times = timed(ops, 3, 0, || ready(Step::Launch))?;
        rate = rate.max(case.flops() as f64 / times.median() / 1e3);
        if times.median() * 8.0 > ENOUGH {
            break;
        }
    }
    Ok(Limits {
        device: device.into(),
        name: ops.device(),
        copy_gb_s: copy / 1e9,
        matmul_gflop_s: rate,
        pinned_gb_s: ops.pinned_rate(COPY)?.map(|rate| rate / 1e9),
    })
}

impl Limits {
    /// Returns the limit that bounds `bytes` and `flops`, `copy` or `matmul`, and the share of it
    /// that a time of `us` microseconds reaches. An op without bytes has no limit.
    pub fn share(&self, bytes: f64, flops: f64, us: f64) -> (String, f64) {
        let [copy, matmul] = [bytes / self.copy_gb_s / 1e3, flops / self.matmul_gflop_s / 1e3];
        match (bytes > 0.0, copy >= matmul) {
            (false, _) => (String::new(), 0.0),
            (true, true) => ("copy".into(), copy / us),
            (true, false) => ("matmul".into(), matmul / us),
        }
    }
}
