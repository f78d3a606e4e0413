//! Measures the transfer rates that the GPU reaches. Benches compare the time of an op with these
//! limits.

use crate::Cuda;
use crate::gpu::Use;
use gritlm_model::ops::{Ops, Result};
use rayon::prelude::*;
use std::time::Instant;

/// Copies per measurement: enough for the wait at their end not to count.
const COPIES: usize = 8;

impl Cuda {
    /// Measures copies of `bytes` bytes within the GPU. Returns bytes per second, reads and
    /// writes both counted, as the median of five runs.
    ///
    /// # Errors
    /// When the GPU is out of memory.
    pub(crate) fn copies(&self, bytes: u64) -> Result<f64> {
        let from = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut values = vec![0; bytes as usize];
        scramble(&mut values);
        self.gpu.write(&from, 0, &values)?;
        self.rate(2 * bytes, || self.gpu.copy((&from, 0), (&to, 0), bytes))
    }

    /// Measures copies of `bytes` pinned bytes to the GPU, in bytes per second.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn pinned(&self, bytes: u64) -> Result<f64> {
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut pinned = self.gpu.driver.pinned(bytes as usize)?;
        let values =
            pinned.as_mut_slice().map_err(|e| crate::driver::said("gives no pinned memory", e))?;
        scramble(values);
        self.rate(bytes, || self.gpu.upload(&to, 0, values))
    }

    /// Copies `bytes` bytes of no use, which displace the contents of the L2 cache if they are
    /// more than it holds. Does not wait for the copy.
    ///
    /// # Errors
    /// With the first error since the last read or submit, or when the GPU is out of memory.
    pub(crate) fn displaced(&self, bytes: u64) -> Result<()> {
        let (from, to) = (self.gpu.buffer(bytes)?, self.gpu.buffer(bytes)?);
        self.gpu.copy((&from, 0), (&to, 0), bytes)
    }

    fn rate(&self, bytes: u64, copy: impl Fn() -> Result<()>) -> Result<f64> {
        let mut rates = Vec::new();
        copy()?;
        for _ in 0..5 {
            self.finish()?;
            let start = Instant::now();
            (0..COPIES).try_for_each(|_| copy())?;
            self.finish()?;
            rates.push((COPIES as u64 * bytes) as f64 / start.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
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
