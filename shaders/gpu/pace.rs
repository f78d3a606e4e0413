//! How much work a submit and a dispatch have. Windows resets a GPU whose submit takes two seconds and
//! amdgpu one that takes some more, and until then nobody else computes on it, the desktop included.
//! A pass is therefore cut into submits of about 100 ms, by its flops and by the rate at which earlier
//! submits have run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time that a submit should take.
const SUBMIT: Duration = Duration::from_millis(100);

/// Flops of a submit before one has been timed: 100 ms at 0.25 TFLOP/s, below every GPU of the last
/// ten years. One token of a model with 7 billion weights stays one submit.
const START: u64 = 25_000_000_000;

/// Flops of every submit where nobody can wait for one and time it, as in a browser.
pub(super) const FIXED: Option<u64> = if cfg!(target_family = "wasm") { Some(START) } else { None };

/// Least flops of a submit; a slower device would spend its time on the submits themselves.
const LEAST: u64 = START / 64;

/// The flops that a submit may have at the moment.
pub(super) struct Pace {
    budget: AtomicU64,
    is_fixed: bool,
}

impl Pace {
    /// Begins with `fixed` flops, and stays there, or with few and learns.
    pub(super) fn new(fixed: Option<u64>) -> Self {
        let budget = AtomicU64::new(fixed.unwrap_or(START).max(1));
        Self { budget, is_fixed: fixed.is_some() }
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Learns that a submit of this many flops took this long.
    pub(super) fn learn(&self, flops: u64, time: Duration) {
        if !self.is_fixed {
            self.budget.store(next(self.budget(), flops, time), Ordering::Relaxed);
        }
    }
}

/// Returns the budget after a submit. One with little to compute says nothing about the rate. The
/// budget at most doubles, so that one wrong time cannot make a submit of seconds.
fn next(budget: u64, flops: u64, time: Duration) -> u64 {
    if flops < budget / 2 {
        return budget;
    }
    let fitting = flops as f64 * SUBMIT.as_secs_f64() / time.as_secs_f64().max(1e-9);
    (fitting as u64).clamp(LEAST, budget.saturating_mul(2).max(LEAST))
}

/// Returns how many commands of these flops the next submit has, and their flops together: as many as
/// the budget allows, and at least one.
pub(super) fn piece(commands: impl Iterator<Item = u64>, budget: u64) -> (usize, u64) {
    let (mut count, mut sum) = (0, 0);
    for flops in commands {
        if count > 0 && sum + flops > budget {
            break;
        }
        count += 1;
        sum += flops;
    }
    (count, sum)
}

/// Returns how many of the `count` equal parts of a launch with these flops one dispatch may have.
pub(super) fn share(count: u32, flops: u64, budget: u64) -> u32 {
    let dispatches = flops.div_ceil(budget).clamp(1, u64::from(count.max(1)));
    count.div_ceil(dispatches as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 TFLOP/s after a start at a 32nd of it: the budget doubles until a submit takes 100 ms, and
    /// stays. A device that becomes slow, by heat, gets less at once.
    #[test]
    fn the_budget_follows_the_rate() {
        let pace = Pace::new(None);
        let run = |rate: f64| {
            let flops = pace.budget();
            pace.learn(flops, Duration::from_secs_f64(flops as f64 / rate));
            pace.budget()
        };
        let budgets = [run(8e12), run(8e12), run(8e12), run(8e12), run(8e12), run(8e12)];
        assert_eq!(budgets.map(|b| b / 1_000_000_000), [50, 100, 200, 400, 800, 800]);
        assert_eq!(run(1e12) / 1_000_000_000, 100);
        assert_eq!(run(1.0), LEAST);
        // A submit of few flops, such as a pass of norms alone, says nothing.
        pace.learn(LEAST / 2 - 1, Duration::from_secs(3));
        assert_eq!(pace.budget(), LEAST);
        let fixed = Pace::new(Some(0));
        fixed.learn(5, Duration::from_secs(1));
        assert_eq!(fixed.budget(), 1);
    }

    #[test]
    fn submits_and_dispatches_stay_within_the_budget() {
        let piece = |flops: &[u64], budget| piece(flops.iter().copied(), budget);
        assert_eq!(piece(&[0, 3, 0, 4, 0, 1], 7), (5, 7));
        assert_eq!(piece(&[9, 1], 7), (1, 9));
        assert_eq!(piece(&[], 7), (0, 0));
        // 10 parts of 10 flops, 35 at a time: three dispatches of 4, 4 and 2 parts at most 40 flops.
        assert_eq!([share(10, 100, 100), share(10, 100, 35), share(10, 100, 1)], [10, 4, 1]);
        assert_eq!([share(0, 0, 7), share(3, 0, 7)], [1, 3]);
    }
}
