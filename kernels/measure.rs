//! Measures the GPU: the transfer rates that it reaches, with which benches compare the time of an
//! op, and what it has launched and created.

use crate::Cuda;
use crate::gpu::Use;
use gritlm_model::measure::{Created, Measure, OpTime, rate};
use gritlm_model::ops::Result;
use rayon::prelude::*;

/// Copies per measurement: enough for the wait at their end not to count.
const COPIES: usize = 8;

impl Measure for Cuda {
    fn bound(&self) -> f64 {
        8e-3
    }

    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        let from = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut values = vec![0; bytes as usize];
        scramble(&mut values);
        self.gpu.write(&from, 0, &values)?;
        self.rate(2 * bytes, || self.gpu.copy((&from, 0), (&to, 0), bytes))
    }

    fn pinned_rate(&self, bytes: u64) -> Result<Option<f64>> {
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut pinned = self.gpu.driver.pinned(bytes as usize)?;
        let values =
            pinned.as_mut_slice().map_err(|e| crate::driver::said("gives no pinned memory", e))?;
        scramble(values);
        self.rate(bytes, || self.gpu.upload(&to, 0, values)).map(Some)
    }

    fn displace(&self, bytes: u64) -> Result<()> {
        // Half of the bytes are read and half written, which displaces what the L2 cache holds.
        // The launches that follow wait for the copy.
        let (from, to) = (self.gpu.buffer(bytes / 2)?, self.gpu.buffer(bytes / 2)?);
        self.gpu.copy((&from, 0), (&to, 0), bytes / 2)
    }

    fn launched(&self) -> Vec<String> {
        self.gpu.launched()
    }

    fn profile(&self) -> Vec<OpTime> {
        self.gpu.profile()
    }

    fn created(&self) -> Created {
        self.gpu.created()
    }
}

impl Cuda {
    /// Returns the bytes per second of a copy of `bytes` bytes.
    fn rate(&self, bytes: u64, copy: impl Fn() -> Result<()>) -> Result<f64> {
        rate(COPIES as u64 * bytes, || {
            (0..COPIES).try_for_each(|_| copy())?;
            self.gpu.submit()?;
            self.gpu.driver.wait()
        })
    }
}

/// Fills bytes with values that no memory can compress.
fn scramble(bytes: &mut [u8]) {
    bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(n, bytes)| {
        let mut x = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(n as u64 + 1);
        for word in bytes.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&x.to_ne_bytes()[..word.len()]);
        }
    });
}
