//! Barriers that lie in shared memory (mbarriers): a phase ends when so many threads have arrived
//! and all bytes that were announced have landed.
//!
//! Source: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".

use crate::cluster::Cluster;
use crate::memory::Access;
use crate::order::{Clock, Stamp};
use crate::{Error, Result};

/// Most bytes that may be announced and not landed, or landed and not announced (PTX ISA,
/// "Tx-count").
const MOST_BYTES: i64 = (1 << 20) - 1;

/// Most arrivals of a phase (PTX ISA, "mbarrier.init").
const MOST_ARRIVALS: u64 = (1 << 20) - 1;

/// A barrier in shared memory.
pub(crate) struct Mbarrier {
    /// Who has made it, and when.
    made: Stamp,
    /// The warp that has made it, and whether it has fenced that for the cluster and for TMA.
    maker: usize,
    shown: bool,
    /// Arrivals of a phase, and those that are missing of this one.
    wanted: u64,
    pub(crate) missing: u64,
    /// Bytes announced and not landed; negative if more have landed than were announced.
    pub(crate) bytes: i64,
    /// Phases that have ended, and those of which somebody knows.
    pub(crate) phase: u32,
    known: u32,
    /// The agent that the copies are which report here.
    pub(crate) agent: usize,
    /// What was handed over until now, and until the last phase's end.
    now: Clock,
    done: Clock,
}

/// Where a barrier is: the block's number in the cluster, and the address there.
pub(crate) type Place = (usize, u64);

impl Cluster<'_> {
    /// Makes a barrier, in the warp's own block.
    ///
    /// # Errors
    /// When there is one, or memory says no.
    pub(crate) fn make_barrier(&mut self, warp: usize, at: Place, wanted: u64) -> Result<()> {
        if !(1..=MOST_ARRIVALS).contains(&wanted) {
            return Err(Error(format!("an mbarrier of {wanted} arrivals")));
        }
        if self.blocks[at.0].mbarriers.contains_key(&at.1) {
            return Err(Error(format!("makes an mbarrier at {} where one is", at.1)));
        }
        self.touch(at.0, warp, at.1, 8, Access::Write)?;
        let (_, by) = self.order.by(warp)?;
        let made = by.stamp;
        let agent = self.order.agent();
        let block = &mut self.blocks[at.0];
        block.shared.barrier(at.1, true);
        let barrier = Mbarrier {
            made,
            maker: warp,
            shown: false,
            wanted,
            missing: wanted,
            bytes: 0,
            phase: 0,
            known: 0,
            agent,
            now: Clock::default(),
            done: Clock::default(),
        };
        block.mbarriers.insert(at.1, barrier);
        Ok(())
    }

    /// Ends a barrier, after which its memory can be used for something else.
    ///
    /// # Errors
    /// When there is none, or copies are under way to it.
    pub(crate) fn end_barrier(&mut self, warp: usize, at: Place) -> Result<()> {
        self.barrier(warp, at)?;
        if self.copies.iter().any(|copy| copy.barrier == at) {
            return Err(Error("ends an mbarrier while a copy to it is under way".into()));
        }
        let block = &mut self.blocks[at.0];
        block.mbarriers.remove(&at.1);
        block.shared.barrier(at.1, false);
        self.touch(at.0, warp, at.1, 8, Access::Write)?;
        Ok(())
    }

    /// Shows the barriers that a warp has made to the cluster and to TMA.
    pub(crate) fn show_barriers(&mut self, warp: usize) {
        for barrier in self.blocks.iter_mut().flat_map(|block| block.mbarriers.values_mut()) {
            barrier.shown |= barrier.maker == warp;
        }
    }

    /// Returns the barrier in a place, which a warp may use.
    fn barrier(&mut self, warp: usize, at: Place) -> Result<&mut Mbarrier> {
        let Some(barrier) = self.blocks[at.0].mbarriers.get_mut(&at.1) else {
            return Err(Error(format!("there is no mbarrier at {} of shared memory", at.1)));
        };
        if !self.order.clock(warp).knows(barrier.made) {
            let by = barrier.maker;
            return Err(Error(format!(
                "uses the mbarrier at {}, which warp {by} has made, and no barrier lies between",
                at.1
            )));
        }
        Ok(barrier)
    }

    /// Returns a barrier that TMA or another block uses.
    pub(crate) fn shown_barrier(&mut self, warp: usize, at: Place) -> Result<&mut Mbarrier> {
        let barrier = self.barrier(warp, at)?;
        if !barrier.shown {
            return Err(Error(format!(
                "the mbarrier at {} is used by TMA or by another block, and no fence.mbarrier_init \
                 has shown it",
                at.1
            )));
        }
        Ok(barrier)
    }

    /// Announces bytes, then arrives so many times; returns the phase's number.
    ///
    /// # Errors
    /// When the warp may not, or that is too much.
    pub(crate) fn arrive(
        &mut self,
        warp: usize,
        at: Place,
        times: u64,
        bytes: u64,
        release: bool,
    ) -> Result<u32> {
        let is_own = self.block_of(warp) == at.0;
        if !is_own {
            self.remote(warp, at.0)?;
        }
        match is_own {
            true => self.barrier(warp, at)?,
            false => self.shown_barrier(warp, at)?,
        };
        let Self { blocks, order, .. } = self;
        let Some(barrier) = blocks[at.0].mbarriers.get_mut(&at.1) else { return Ok(0) };
        let phase = barrier.phase;
        if times > barrier.missing {
            return Err(Error(format!(
                "arrives {times} times at the mbarrier at {}, whose phase {phase} misses {} of {} \
                 arrivals and {} bytes",
                at.1, barrier.missing, barrier.wanted, barrier.bytes
            )));
        }
        if release && times > 0 {
            order.release(warp, &mut barrier.now);
        }
        barrier.bytes += bytes as i64;
        barrier.missing -= times;
        self.settle(at)?;
        Ok(phase)
    }

    /// Bytes have landed.
    pub(crate) fn landed(&mut self, at: Place, bytes: u64) -> Result<()> {
        if let Some(barrier) = self.blocks[at.0].mbarriers.get_mut(&at.1) {
            barrier.bytes -= bytes as i64;
        }
        self.settle(at)
    }

    /// Ends the phase if nothing is missing.
    fn settle(&mut self, at: Place) -> Result<()> {
        let Some(barrier) = self.blocks[at.0].mbarriers.get_mut(&at.1) else { return Ok(()) };
        if barrier.bytes.abs() > MOST_BYTES {
            return Err(Error(format!(
                "the mbarrier at {} expects {} bytes, at most {MOST_BYTES} can be",
                at.1, barrier.bytes
            )));
        }
        if barrier.missing > 0 || barrier.bytes != 0 {
            return Ok(());
        }
        let of_phase = |copy: &&crate::tma::Copy| copy.barrier == at;
        if let Some(copy) = self.copies.iter().find(of_phase) {
            return Err(Error(format!(
                "phase {} of the mbarrier at {} ends while a copy of {} bytes (line {} of the PTX) is \
                 under way: too few bytes were expected",
                barrier.phase, at.1, copy.bytes, copy.line
            )));
        }
        // By its parity, a phase can be waited for only until the next one has ended.
        if barrier.known < barrier.phase {
            return Err(Error(format!(
                "phase {} of the mbarrier at {} ends, and nobody has waited for the one before: too \
                 many arrivals, or no wait",
                barrier.phase, at.1
            )));
        }
        barrier.phase += 1;
        barrier.missing = barrier.wanted;
        barrier.now.learn(barrier.agent, barrier.phase);
        barrier.done = barrier.now.clone();
        Ok(())
    }

    /// Returns whether the phase with this parity has ended; if so, the warp is told of what was
    /// handed over. If not, returns the phase that it would be.
    pub(crate) fn phase(&mut self, warp: usize, at: Place, parity: u64) -> Result<Option<u32>> {
        self.barrier(warp, at)?;
        let Self { blocks, order, .. } = self;
        let Some(barrier) = blocks[at.0].mbarriers.get_mut(&at.1) else { return Ok(None) };
        if u64::from(barrier.phase) & 1 == parity & 1 {
            return Ok(Some(barrier.phase));
        }
        barrier.known = barrier.phase;
        order.clock(warp).join(&barrier.done);
        Ok(None)
    }
}
