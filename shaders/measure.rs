//! Measures a device: the rate of its copies, with which benches compare the time of an op, and
//! what it has launched and created.

use crate::Wgpu;
use crate::gpu::Use;
use gritlm_model::measure::{Created, Measure, OpTime, rate};
use gritlm_model::ops::{Ops, Result};

impl Measure for Wgpu {
    fn bound(&self) -> f64 {
        if self.f16 { 2e-3 } else { 1e-5 }
    }

    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        let [a, b] = [self.gpu.buffer(Use::Work, bytes)?, self.gpu.buffer(Use::Work, bytes)?];
        rate(2 * bytes, || {
            self.gpu.copy(&a, 0, &b, 0, bytes);
            pollster::block_on(self.finish())
        })
    }

    fn displace(&self, bytes: u64) -> Result<()> {
        let half = bytes / 2;
        let [a, b] = [self.gpu.buffer(Use::Work, half)?, self.gpu.buffer(Use::Work, half)?];
        self.gpu.copy(&a, 0, &b, 0, half);
        pollster::block_on(self.finish())
    }

    fn launched(&self) -> Vec<String> {
        self.gpu.profile.as_ref().map(|p| p.launched()).unwrap_or_default()
    }

    fn profile(&self) -> Vec<OpTime> {
        self.gpu.profile.as_ref().map(|p| p.take()).unwrap_or_default()
    }

    fn created(&self) -> Created {
        self.gpu.created()
    }
}
