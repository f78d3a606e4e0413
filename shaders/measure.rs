//! Measures a device: the rate of its copies, with which benches compare the time of an op, and
//! what it has launched and created.

use crate::Wgpu;
use crate::gpu::Use;
use gritlm_model::measure::{Created, Measure, OpTime};
use gritlm_model::ops::{Ops, Result};
use std::time::Instant;

impl Measure for Wgpu {
    fn bound(&self) -> f64 {
        if self.f16 { 2e-3 } else { 1e-5 }
    }

    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        let [a, b] = [self.gpu.buffer(Use::Work, bytes)?, self.gpu.buffer(Use::Work, bytes)?];
        let mut times = Vec::new();
        // The first copy, which also fills both buffers with zeros, is not counted.
        for _ in 0..6 {
            let start = Instant::now();
            self.gpu.copy(&a, 0, &b, 0, bytes);
            pollster::block_on(self.finish())?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.remove(0);
        times.sort_by(f64::total_cmp);
        Ok(2.0 * bytes as f64 / times[2])
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
