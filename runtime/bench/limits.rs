//! What a device does at best: its own copy, and a large matrix product. Measured before anything
//! else on the same device, because a share of a limit says more than a rate.

use super::case::{Case, Op, Step};
use super::record::Limits;
use super::time::timed;
use crate::Result;
use gritlm_model::ops::{LinearAdd, Ops};
use gritlm_model::weights::Dtype;

/// Bytes of the copy: more than any cache.
const COPY: u64 = 256 << 20;

/// The product is as large as takes about this long, in microseconds, so that small devices do not
/// take minutes and large ones are busy.
const ENOUGH: f64 = 400_000.0;

/// Rows, inner and outer of the products that are tried, each 8 times the one before.
const SIZES: [[u32; 3]; 4] =
    [[256, 512, 512], [512, 1024, 1024], [1024, 2048, 2048], [4096, 4096, 4096]];

/// Measures a device.
///
/// # Errors
/// When it refuses.
pub fn measure<O: Ops>(ops: &O, device: &str) -> Result<Limits> {
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
    /// The limit that bounds so many bytes and operations, and what share of it a time in
    /// microseconds reaches. Nothing bounds what has neither.
    pub fn share(&self, bytes: f64, flops: f64, us: f64) -> (String, f64) {
        let [copy, matmul] = [bytes / self.copy_gb_s / 1e3, flops / self.matmul_gflop_s / 1e3];
        match (bytes > 0.0, copy >= matmul) {
            (false, _) => (String::new(), 0.0),
            (true, true) => ("copy".into(), copy / us),
            (true, false) => ("matmul".into(), matmul / us),
        }
    }
}
