//! The blocks of a cluster, which run together: what they share, and whose turn it is.

use crate::barrier::{Barrier, NUMBERS};
use crate::counts::Counts;
use crate::mbarrier::Mbarrier;
use crate::memory::{Access, Shared};
use crate::order::{Order, Stamp};
use crate::registers::Budget;
use crate::tma::Copy;
use crate::warp::{LANES, Stop, Wait, Warp};
use crate::wgmma::Group;
use crate::{Error, Launch, Result};
use std::collections::BTreeMap;

/// Where the shared memory of another block begins, as `mapa` gives it: this many bytes times the
/// block's number, from 1. A block's own addresses lie below.
pub(crate) const WINDOW: u64 = 1 << 24;

/// Of those who cannot go on, as many are named.
const SAID: usize = 4;

/// Of a block, what is not of one warp.
pub(crate) struct Block {
    pub(crate) shared: Shared,
    pub(crate) barriers: [Barrier; NUMBERS],
    pub(crate) mbarriers: BTreeMap<u64, Mbarrier>,
    /// The warpgroups' products.
    pub(crate) groups: Vec<Group>,
    pub(crate) registers: Budget,
    /// Of what others have done to its shared memory: who, when, and at which line.
    touched: Vec<(Stamp, u32)>,
    has_ended: bool,
}

pub(crate) struct Cluster<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) order: Order,
    pub(crate) blocks: Vec<Block>,
    /// Of all threads.
    pub(crate) barrier: Barrier,
    /// Copies by TMA that are under way.
    pub(crate) copies: Vec<Copy>,
    /// Warps of a block.
    warps: usize,
    /// The line of the instruction that is taken.
    pub(crate) line: u32,
    turn: u64,
}

impl<'a> Cluster<'a> {
    fn new(launch: &'a Launch<'a>) -> Self {
        let threads = launch.block.iter().product::<u32>() as usize;
        let (count, warps) = (launch.entry.cluster as usize, threads.div_ceil(LANES));
        let block = |_| Block {
            shared: Shared::new(launch.entry.shared + launch.shared),
            barriers: Default::default(),
            mbarriers: BTreeMap::new(),
            groups: (0..warps.div_ceil(4)).map(|_| Group::default()).collect(),
            registers: Budget::new(launch, warps),
            touched: Vec::new(),
            has_ended: false,
        };
        Self {
            launch,
            order: Order::new(count, warps),
            blocks: (0..count).map(block).collect(),
            barrier: Barrier::default(),
            copies: Vec::new(),
            warps,
            line: 0,
            turn: launch.seed,
        }
    }

    /// Runs a cluster to its end; `first` is the place of its first block.
    ///
    /// # Errors
    /// At a fault, and when nobody can go on.
    pub(crate) fn run(launch: &'a Launch<'a>, first: [u32; 3]) -> Result<Counts> {
        let mut cluster = Self::new(launch);
        let count = cluster.blocks.len() * cluster.warps;
        let [x, y, z] = first;
        let warp = |i: usize| {
            let (rank, number) = (i / cluster.warps, i % cluster.warps);
            Warp::new(launch, [x + rank as u32, y, z], (rank, i), number as u32)
        };
        let mut warps: Vec<Warp<'_>> = (0..count).map(warp).collect();
        let mut has_ended = vec![false; count];
        loop {
            let drawn = cluster.draw();
            let (first, backwards) = (drawn / 2 % count, drawn & 1 != 0);
            let mut moved = false;
            for i in 0..count {
                let i = (first + if backwards { count - i } else { i }) % count;
                if has_ended[i] {
                    continue;
                }
                let before = warps[i].counts.instructions;
                has_ended[i] = warps[i].run(&mut cluster)? == Stop::Ended;
                moved |= has_ended[i] || warps[i].counts.instructions > before;
                if has_ended[i] {
                    let rank = i / cluster.warps;
                    let of_block = rank * cluster.warps..(rank + 1) * cluster.warps;
                    if has_ended[of_block].iter().all(|ended| *ended) {
                        cluster.end(rank).map_err(|e| warps[i].fault(e))?;
                    }
                }
            }
            if has_ended.iter().all(|ended| *ended) {
                let mut all = Counts::default();
                warps.iter().for_each(|warp| all += warp.counts);
                return Ok(all);
            }
            // Copies land when nobody can do without.
            if !moved && !cluster.land()? {
                return Err(stuck(&warps, &cluster));
            }
        }
    }

    /// Draws a number of 32 bits.
    pub(crate) fn draw(&mut self) -> usize {
        let next = self.turn.wrapping_mul(0x5851_f42d_4c95_7f2d);
        self.turn = next.wrapping_add(0x1405_7b7e_f767_814f);
        (self.turn >> 32) as usize
    }

    /// Returns the number in the cluster of the block that a warp is of.
    pub(crate) fn block_of(&self, warp: usize) -> usize {
        warp / self.warps
    }

    /// Returns the number of a block's first warp.
    pub(crate) fn first_warp(&self, block: usize) -> usize {
        block * self.warps
    }

    /// Returns bytes of a block's shared memory that a warp touches.
    pub(crate) fn touch(
        &mut self,
        block: usize,
        warp: usize,
        at: u64,
        bytes: u64,
        access: Access,
    ) -> Result<&mut [u8]> {
        let by = self.order.by(warp)?;
        self.blocks[block].shared.touch(by, at, bytes, access)
    }

    /// Returns where an address is that block `own` knows as one of the cluster.
    pub(crate) fn place(&self, own: usize, at: u64) -> Result<(usize, u64)> {
        let at = at & u64::from(u32::MAX);
        match (at / WINDOW) as usize {
            0 => Ok((own, at)),
            block if block <= self.blocks.len() => Ok((block - 1, at % WINDOW)),
            _ => Err(Error(format!("{at:#x} is in no block of the cluster"))),
        }
    }

    /// A warp does something to another block's shared memory, now.
    pub(crate) fn remote(&mut self, warp: usize, block: usize) -> Result<()> {
        let (_, by) = self.order.by(warp)?;
        let stamp = by.stamp;
        self.touched_by(block, stamp)
    }

    /// What bears a stamp is done to a block, which must be told of it before it ends.
    pub(crate) fn touched_by(&mut self, block: usize, stamp: Stamp) -> Result<()> {
        if self.blocks[block].has_ended {
            return Err(Error(format!(
                "touches the shared memory of block {block} of the cluster, which has ended"
            )));
        }
        self.blocks[block].touched.push((stamp, self.line));
        Ok(())
    }

    /// A block ends.
    fn end(&mut self, block: usize) -> Result<()> {
        if let Some(copy) = self.copies.iter().find(|copy| copy.barrier.0 == block) {
            return Err(Error(format!(
                "the block ends while a copy by TMA (line {} of the PTX) is under way to it",
                copy.line
            )));
        }
        let unknown = |(stamp, _): &&(Stamp, u32)| !self.order.is_known_to(block, *stamp);
        if let Some((_, line)) = self.blocks[block].touched.iter().find(unknown) {
            return Err(Error(format!(
                "the block ends, and does not know whether what line {line} of the PTX does to its \
                 shared memory is over"
            )));
        }
        self.blocks[block].has_ended = true;
        Ok(())
    }
}

/// Nobody can go on: says who waits for what.
fn stuck(warps: &[Warp<'_>], cluster: &Cluster<'_>) -> Error {
    let mut waits: Vec<(String, String)> = Vec::new();
    for warp in warps {
        if let Some((what, place)) = warp.waits_for(cluster)
            && !waits.iter().any(|(other, _)| *other == what)
        {
            waits.push((what, place));
        }
    }
    let text: Vec<String> =
        waits.iter().take(SAID).map(|(what, place)| format!("{place}: {what}")).collect();
    match text.is_empty() {
        true => Error(format!("{}: nobody can go on", cluster.launch.entry.name)),
        false => Error(format!("nobody can go on: {}", text.join("; "))),
    }
}

impl Cluster<'_> {
    /// Returns whether what a lane of a block waits for is done.
    pub(crate) fn is_over(&self, block: usize, wait: Wait) -> bool {
        let of = &self.blocks[block];
        match wait {
            Wait::Barrier(number, turn) => of.barriers[number].turn > turn,
            Wait::Phase((block, at), phase) => {
                self.blocks[block].mbarriers.get(&at).is_none_or(|barrier| barrier.phase > phase)
            }
            Wait::Cluster(turn) => self.barrier.turn > turn,
            Wait::Group(group, number) => of.groups[group].begun > number,
            Wait::Registers(needed) => of.registers.has(needed),
        }
    }

    /// Says what a lane of a block waits for.
    pub(crate) fn missing(&self, block: usize, wait: Wait) -> String {
        let of = &self.blocks[block];
        match wait {
            Wait::Barrier(number, _) => {
                let Barrier { there, wanted, .. } = of.barriers[number];
                format!("barrier {number} is reached by {there} of {wanted} threads")
            }
            Wait::Phase((block, at), phase) => match self.blocks[block].mbarriers.get(&at) {
                Some(Mbarrier { missing, bytes, .. }) => format!(
                    "phase {phase} of the mbarrier at {at} never ends: {missing} arrivals and {bytes} \
                     bytes are missing"
                ),
                None => format!("there is no mbarrier at {at} any more"),
            },
            Wait::Cluster(_) => {
                let Barrier { there, wanted, .. } = self.barrier;
                format!("the cluster's barrier is reached by {there} of {wanted} threads")
            }
            Wait::Group(..) => "not all four warps of the warpgroup come to a wgmma".into(),
            Wait::Registers(needed) => format!("nobody gives {needed} registers back"),
        }
    }
}
