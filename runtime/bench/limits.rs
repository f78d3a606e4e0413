//! What a device achieves at best: the rate of its own copy and of a large matrix product. A share
//! of a limit says more than a rate.
//!
//! The copy is measured on the same device before anything else. A share of our own product would
//! flatter our other products, so the limit is the product of the fastest peer in the record, else
//! what the maker publishes; only where neither is known is it our own.

use super::case::{Case, Op, Step};
use super::record::{Limits, Record};
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

/// Published rates of products of bf16 with sums in f32, without sparsity, in 10¹² operations per
/// second, by a part of the device's name: NVIDIA's data sheets. The first that fits counts.
const PUBLISHED: [(&str, f64); 9] = [
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
    ("A10", 125.0),
    ("RTX 3090", 71.0),
];

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
    let name = ops.device();
    let published = PUBLISHED.iter().find(|(part, _)| name.contains(part));
    let (rate, by) = match published {
        // A peak is reached with bf16 only.
        Some((part, peak)) if ops.bound() > 2e-3 => (peak * 1e3, format!("{part}, published")),
        _ => (rate, String::new()),
    };
    Ok(Limits {
        device: device.into(),
        name,
        copy_gb_s: copy / 1e9,
        matmul_gflop_s: rate,
        matmul_by: by,
        pinned_gb_s: ops.pinned_rate(COPY)?.map(|rate| rate / 1e9),
    })
}

impl Record {
    /// Takes the fastest product of a peer as the limit of each device that one ran on (`matmul` with
    /// a shape like `4096 x 4096 x 4096`), and measures the rows' shares by it.
    pub fn judge_by_peers(&mut self) {
        for at in 0..self.devices.len() {
            let limits = &self.devices[at];
            let products = self.peers.iter().filter(|p| p.op == "matmul" && p.ran_on(limits));
            let rates = products.filter_map(|p| Some((product(&p.shape)? / p.us / 1e3, p)));
            let Some((rate, peer)) = rates.max_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
            let (matmul_gflop_s, matmul_by) = (rate, peer.peer.clone());
            let limits = Limits { matmul_gflop_s, matmul_by, ..limits.clone() };
            for row in self.rows.iter_mut().filter(|row| row.device == limits.device) {
                if ["copy", "matmul"].contains(&row.limit.as_str()) {
                    (row.limit, row.share) = limits.share(row.bytes, row.flops, row.us);
                }
            }
            self.devices[at] = limits;
        }
    }
}

/// Operations of a product whose shape is written as three numbers.
fn product(shape: &str) -> Option<f64> {
    let sizes: Vec<f64> = shape.split(" x ").map(|n| n.parse().ok()).collect::<Option<_>>()?;
    (sizes.len() == 3).then(|| 2.0 * sizes.iter().product::<f64>())
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
