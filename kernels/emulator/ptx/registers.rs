//! The registers of a block, which its warps give back and claim (`setmaxnreg`).

use crate::warp::LANES;
use crate::{Error, Launch, Result};

/// Registers of a multiprocessor.
const ALL: u32 = 1 << 16;

/// Registers of a block.
pub(crate) struct Budget {
    /// Those that nobody has.
    free: u32,
    /// Of each warp, for a thread.
    held: Vec<u32>,
}

impl Budget {
    /// Returns the budget of a launch. A thread begins with as many as the launch bounds allow:
    /// that is what ptxas gives a kernel with `setmaxnreg`.
    pub(crate) fn new(launch: &Launch<'_>, warps: usize) -> Self {
        let threads = launch.entry.threads.max(LANES as u32);
        let threads = threads.saturating_mul(launch.entry.at_once);
        let each = (ALL / threads / 8 * 8).min(248);
        Self { free: 0, held: vec![each; warps] }
    }

    /// Whether so many are there.
    pub(crate) fn has(&self, registers: u32) -> bool {
        self.free >= registers
    }

    /// A warp gives registers back, down to `to` a thread.
    pub(crate) fn give(&mut self, warp: usize, to: u64) -> Result<()> {
        let held = &mut self.held[warp];
        if u64::from(*held) < checked(to)? {
            return Err(Error(format!("gives registers back down to {to}, and has {held}")));
        }
        self.free += (*held - to as u32) * LANES as u32;
        *held = to as u32;
        Ok(())
    }

    /// A warp claims registers, up to `to` a thread; returns how many are missing.
    pub(crate) fn claim(&mut self, warp: usize, to: u64) -> Result<Option<u32>> {
        let held = &mut self.held[warp];
        if u64::from(*held) > checked(to)? {
            return Err(Error(format!("claims registers up to {to}, and has {held}")));
        }
        let needed = (to as u32 - *held) * LANES as u32;
        if needed > self.free {
            return Ok(Some(needed));
        }
        self.free -= needed;
        *held = to as u32;
        Ok(None)
    }
}

/// A count of registers that `setmaxnreg` takes (PTX ISA: 24 to 256, a multiple of 8).
fn checked(to: u64) -> Result<u64> {
    match (24..=256).contains(&to) && to.is_multiple_of(8) {
        true => Ok(to),
        false => Err(Error(format!("setmaxnreg of {to}: 24 to 256, in steps of 8, can be"))),
    }
}
