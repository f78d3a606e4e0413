//! Barriers of threads: those of a block, by number, and that of a cluster.

use crate::order::{Clock, Order};
use crate::{Error, Result};

/// Barriers of a block that have a number.
pub(crate) const NUMBERS: usize = 16;

/// A barrier of so many threads.
#[derive(Default)]
pub(crate) struct Barrier {
    /// Threads that it takes; set by the first that arrives.
    pub(crate) wanted: usize,
    /// Threads that have arrived.
    pub(crate) there: usize,
    /// How often all were there.
    pub(crate) turn: u32,
    /// What those that have arrived hand over.
    clock: Clock,
    /// Warps that wait.
    waiting: Vec<usize>,
    /// What the last turn has handed over.
    last: Clock,
}

impl Barrier {
    /// Threads of a warp arrive, and wait, or go on; returns the turn that they count for.
    ///
    /// # Errors
    /// When there are too many, or another number is asked for than by those that are there.
    pub(crate) fn arrive(
        &mut self,
        order: &mut Order,
        warp: usize,
        threads: usize,
        wanted: usize,
        waits: bool,
    ) -> Result<u32> {
        if self.there == 0 {
            self.wanted = wanted;
        }
        if self.wanted != wanted {
            return Err(Error(format!(
                "a barrier of {wanted} threads, where others wait for {}",
                self.wanted
            )));
        }
        self.there += threads;
        if self.there > wanted {
            return Err(Error(format!("{} threads at a barrier of {wanted}", self.there)));
        }
        order.release(warp, &mut self.clock);
        if waits && !self.waiting.contains(&warp) {
            self.waiting.push(warp);
        }
        let turn = self.turn;
        if self.there == wanted {
            self.last = std::mem::take(&mut self.clock);
            for warp in self.waiting.drain(..) {
                order.clock(warp).join(&self.last);
            }
            (self.there, self.turn) = (0, turn + 1);
        }
        Ok(turn)
    }

    /// A warp waits for a turn that it has arrived for; returns whether all are there.
    pub(crate) fn wait(&mut self, order: &mut Order, warp: usize, turn: u32) -> bool {
        let is_over = self.turn > turn;
        if is_over {
            order.clock(warp).join(&self.last);
        } else if !self.waiting.contains(&warp) {
            self.waiting.push(warp);
        }
        is_over
    }
}
