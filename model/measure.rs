//! What benches and tests ask of a backend beside the operations: rates, times, counts.
//!
//! A forward pass needs none of it.

use crate::ops::{Ops, Result};
use web_time::Instant;

/// Cost of one op on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Name of the op.
    pub op: &'static str,
    /// Launches.
    pub launches: u64,
    /// Time on the device, in nanoseconds.
    pub nanoseconds: f64,
    /// Lower bound of the bytes that the launches read and wrote.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
}

/// Counts of objects that a device has created since it was opened. Between two identical steps
/// only `submits` and `launches` grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// Buffers.
    pub buffers: u64,
    /// Bind groups.
    pub bind_groups: u64,
    /// Pipelines, or kernels looked up by name.
    pub pipelines: u64,
    /// Steps recorded for replay (CUDA graphs).
    pub graphs: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Launches submitted.
    pub launches: u64,
}

/// Returns the bytes per second of `step`, which moves `bytes` bytes: the median of five runs. One
/// run before them, which faults memory in, does not count.
///
/// # Errors
/// As `step`.
pub fn rate(bytes: u64, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    step()?;
    let mut times = [0.0; 5];
    for time in &mut times {
        let start = Instant::now();
        step()?;
        *time = start.elapsed().as_secs_f64();
    }
    times.sort_by(f64::total_cmp);
    Ok(bytes as f64 / times[2])
}

/// Measures a backend.
pub trait Measure: Ops {
    /// Returns the largest relative error that an op may have, given the number type it computes
    /// in. The default is for f32.
    fn bound(&self) -> f64 {
        1e-5
    }

    /// Measures a copy of `bytes` bytes within the device. Returns bytes per second, reads and
    /// writes both counted, as the median of five runs.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn copy_rate(&self, bytes: u64) -> Result<f64>;

    /// Measures copies of `bytes` pinned bytes to the device, in bytes per second; `None` where
    /// the device does not support pinned memory.
    ///
    /// # Errors
    /// When memory runs out.
    fn pinned_rate(&self, bytes: u64) -> Result<Option<f64>> {
        let _ = bytes;
        Ok(None)
    }

    /// Flushes the device's caches with `bytes` bytes, for cold timings: reads them, and writes as little
    /// as it can, because dirty lines are written back while the next launch is timed.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn displace(&self, bytes: u64) -> Result<()>;

    /// Returns the kernels of the last submit with their launch shapes, if the device was opened
    /// for measuring.
    fn launched(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns the cost of each op since the last call, if the device was opened for measuring.
    fn profile(&self) -> Vec<OpTime> {
        Vec::new()
    }

    /// Returns how many objects the device has created so far.
    fn created(&self) -> Created {
        Created::default()
    }
}
