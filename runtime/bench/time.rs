//! Times repeated runs, and computes the median and spread of their times.

use crate::Result;
use gritlm_model::measure::Measure;
use std::time::Instant;

/// The times of the repeats, in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times(Vec<f64>);

impl Times {
    /// Takes the times in any order; there must be at least one.
    pub fn new(mut microseconds: Vec<f64>) -> Self {
        microseconds.sort_by(f64::total_cmp);
        Self(microseconds)
    }

    /// Returns the number of times.
    pub fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Returns the shortest time.
    pub fn best(&self) -> f64 {
        self.0[0]
    }

    /// Returns the median time.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns (third quartile − first quartile) / median.
    pub fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / self.median()
    }

    /// Returns a quantile, interpolated between the two nearest times.
    fn quantile(&self, share: f64) -> f64 {
        let place = share * (self.0.len() - 1) as f64;
        let (low, high) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }
}

/// Returns the times of `repeats` calls of `run`, which returns seconds, after `warm` calls that
/// are not counted. There are fewer repeats if they would exceed `budget` seconds, but at least
/// one.
///
/// # Errors
/// The error of `run`.
pub fn repeated(
    repeats: u32,
    warm: u32,
    budget: f64,
    mut run: impl FnMut() -> Result<f64>,
) -> Result<Times> {
    for _ in 0..warm {
        run()?;
    }
    let (mut all, mut wanted) = (Vec::new(), repeats.max(1));
    while all.len() < wanted as usize {
        let seconds = run()?;
        wanted = wanted.min((budget / seconds).clamp(1.0, 1e6) as u32);
        all.push(seconds * 1e6);
    }
    Ok(Times::new(all))
}

/// Times `launch` on a device `repeats` times, after one warm-up. Before each, displaces the
/// contents of the caches with `displaced` bytes. The times are from the device's own clock if it
/// was opened for measuring, and from the host's clock otherwise, from the call until the device
/// is done.
///
/// # Errors
/// When the device fails.
pub fn timed<O: Measure>(
    ops: &O,
    repeats: u32,
    displaced: u64,
    mut launch: impl FnMut() -> gritlm_model::ops::Result<()>,
) -> Result<Times> {
    let (mut all, mut own_clock) = (Vec::new(), false);
    for repeat in 0..=repeats.max(1) {
        if displaced > 0 {
            ops.displace(displaced)?;
        }
        // A device with a clock of its own goes on from displacing without a pause: it would stand
        // still while the launch is under way, which its first event would count.
        if !own_clock {
            pollster::block_on(ops.finish())?;
            ops.profile();
        }
        let start = Instant::now();
        launch()?;
        pollster::block_on(ops.finish())?;
        let host = start.elapsed().as_secs_f64() * 1e6;
        let device: f64 = ops.profile().iter().map(|op| op.nanoseconds / 1e3).sum();
        own_clock = device > 0.0;
        if repeat > 0 {
            all.push(if device > 0.0 { device } else { host });
        }
    }
    Ok(Times::new(all))
}
