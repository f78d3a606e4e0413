//! What the GPU moves at best, for benches: the limits beside which an op's time says something.

use crate::Cuda;
use crate::gpu::Use;
use gritlm_model::ops::{Ops, Result};
use rayon::prelude::*;
use std::time::Instant;

/// Copies in a row: the wait at their end is then nothing beside them.
const COPIES: usize = 8;

impl Cuda {
    /// Bytes per second, read and written, of copies of so many bytes on the GPU: the median of
    /// five runs.
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn copies(&self, bytes: u64) -> Result<f64> {
        let from = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut values = vec![0; bytes as usize];
        scramble(&mut values);
        self.gpu.write(&from, 0, &values)?;
        self.rate(2 * bytes, || self.gpu.copy((&from, 0), (&to, 0), bytes))
    }

    /// Bytes per second of copies to the GPU from so many pinned bytes.
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn pinned(&self, bytes: u64) -> Result<f64> {
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut pinned = self.gpu.driver.pinned(bytes as usize)?;
        let values =
            pinned.as_mut_slice().map_err(|e| crate::driver::said("gives no pinned memory", e))?;
        scramble(values);
        self.rate(bytes, || self.gpu.upload(&to, 0, values))
    }

    /// Copies so many bytes that are of no use to anyone: more than the L2 cache holds take its
    /// place. Not waited for.
    ///
    /// # Errors
    /// With what has gone wrong before.
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

/// Bytes that no memory can compress.
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
