//! The instructions of Hopper: which an opcode is, and what a warp does at each.

use crate::cluster::{Cluster, WINDOW};
use crate::parse::{Instruction, Operand};
use crate::tma::Request;
use crate::warp::{LANES, Lanes, State, Wait, Warp, each};
use crate::{Error, Result};

/// An instruction that only Hopper has, without its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hopper {
    /// Makes an mbarrier, and ends one.
    BarrierInit,
    BarrierEnd,
    /// Announces bytes, arrives, or both; and whether what was done before is handed over.
    BarrierArrive {
        expects: bool,
        arrives: bool,
        release: bool,
    },
    /// Waits for a phase by its parity.
    BarrierWait,
    /// Shows mbarriers to others, and stores to the async proxy.
    ShowBarriers,
    FenceAsync,
    /// The address of a place in another block.
    MapAddress,
    /// A copy by TMA of this rank; whether to several blocks.
    CopyBox(usize, bool),
    PrefetchMap,
    Elect,
    ClusterArrive,
    ClusterWait,
    GiveRegisters,
    ClaimRegisters,
    ProductFence,
    ProductCommit,
    ProductWait,
    /// m64nNk16 with so many columns, bf16 × bf16 + f32.
    Product(usize),
}

/// Words that choose between memories that are one here, or say again what is the default.
const HINTS: [&str; 9] = [
    "shared",
    "shared::cta",
    "shared::cluster",
    "b64",
    "cta",
    "cluster",
    "release",
    "acquire",
    "relaxed",
];

impl Hopper {
    /// Returns `None` for what is not one of them, or not known here.
    pub(crate) fn parse(opcode: &str) -> Option<Self> {
        let words: Vec<&str> = opcode.split('.').collect();
        let release = !words.contains(&"relaxed");
        Some(match words[..] {
            ["mbarrier", ref rest @ ..] => {
                let rest: Vec<&str> =
                    rest.iter().copied().filter(|word| !HINTS.contains(word)).collect();
                match rest[..] {
                    ["init"] => Self::BarrierInit,
                    ["inval"] => Self::BarrierEnd,
                    ["arrive"] => Self::BarrierArrive { expects: false, arrives: true, release },
                    ["arrive", "expect_tx"] => {
                        Self::BarrierArrive { expects: true, arrives: true, release }
                    }
                    ["expect_tx"] => Self::BarrierArrive { expects: true, arrives: false, release },
                    ["try_wait" | "test_wait", "parity"] if release => Self::BarrierWait,
                    _ => return None,
                }
            }
            ["fence", "mbarrier_init", "release", "cluster"] => Self::ShowBarriers,
            ["fence", "proxy", "async"] | ["fence", "proxy", "async", "shared::cta"] => {
                Self::FenceAsync
            }
            ["mapa", "shared::cluster", "u32"] => Self::MapAddress,
            ["cp", "async", "bulk", "tensor", rank, "shared::cluster", "global", ref rest @ ..] => {
                let rank = ["1d", "2d", "3d", "4d", "5d"].iter().position(|one| *one == rank)? + 1;
                let rest = rest.strip_prefix(&["tile"]).unwrap_or(rest);
                match rest {
                    ["mbarrier::complete_tx::bytes"] => Self::CopyBox(rank, false),
                    ["mbarrier::complete_tx::bytes", "multicast::cluster"] => {
                        Self::CopyBox(rank, true)
                    }
                    _ => return None,
                }
            }
            ["prefetch", "tensormap"] => Self::PrefetchMap,
            ["elect", "sync"] => Self::Elect,
            ["barrier", "cluster", "arrive", "aligned"]
            | ["barrier", "cluster", "arrive", "release", "aligned"] => Self::ClusterArrive,
            ["barrier", "cluster", "wait", "aligned"]
            | ["barrier", "cluster", "wait", "acquire", "aligned"] => Self::ClusterWait,
            ["setmaxnreg", "dec", "sync", "aligned", "u32"] => Self::GiveRegisters,
            ["setmaxnreg", "inc", "sync", "aligned", "u32"] => Self::ClaimRegisters,
            ["wgmma", "fence", "sync", "aligned"] => Self::ProductFence,
            ["wgmma", "commit_group", "sync", "aligned"] => Self::ProductCommit,
            ["wgmma", "wait_group", "sync", "aligned"] => Self::ProductWait,
            ["wgmma", "mma_async", "sync", "aligned", shape, "f32", "bf16", "bf16"] => {
                let columns = shape.strip_prefix("m64n")?.strip_suffix("k16")?.parse().ok()?;
                match (8..=256).contains(&columns) && columns % 8 == 0 {
                    true => Self::Product(columns),
                    false => return None,
                }
            }
            _ => return None,
        })
    }

    /// Returns whether all lanes of a warp do it together.
    pub(crate) fn is_of_warp(self) -> bool {
        match self {
            Self::Elect
            | Self::ClusterArrive
            | Self::ClusterWait
            | Self::GiveRegisters
            | Self::ClaimRegisters
            | Self::ProductFence
            | Self::ProductCommit
            | Self::ProductWait
            | Self::Product(_) => true,
            Self::BarrierInit
            | Self::BarrierEnd
            | Self::BarrierArrive { .. }
            | Self::BarrierWait
            | Self::ShowBarriers
            | Self::FenceAsync
            | Self::MapAddress
            | Self::CopyBox(..)
            | Self::PrefetchMap => false,
        }
    }
}

impl Warp<'_> {
    /// Lanes come to a barrier of the block.
    pub(crate) fn barrier(
        &mut self,
        args: &[Operand],
        active: u32,
        waits: bool,
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let threads = self.launch.block.iter().product::<u32>();
        let number = args.first().map_or([0; LANES], |number| self.read(number));
        let wanted = args.get(1).map_or([u64::from(threads); LANES], |wanted| self.read(wanted));
        if args.len() < 2 && !waits {
            return Err(Error("an arrival at a barrier without its number of threads".into()));
        }
        // Lanes may come to different barriers.
        let mut left = active;
        while let Some(lane) = each(left).next() {
            let same = |other: &usize| number[*other] == number[lane];
            let lanes = each(left).filter(same).fold(0, |all, lane| all | 1 << lane);
            left &= !lanes;
            let (number, wanted) = (number[lane] as usize, wanted[lane] as usize);
            let Cluster { blocks, order, .. } = &mut *cluster;
            let Some(barrier) = blocks[self.rank].barriers.get_mut(number) else {
                return Err(Error(format!("barrier {number}: there are 0 to 15")));
            };
            let there = lanes.count_ones() as usize;
            let turn = barrier.arrive(order, self.agent, there, wanted, waits)?;
            if waits {
                self.set_state(lanes, State::Waits(Wait::Barrier(number, turn)));
            }
        }
        Ok(())
    }

    /// Takes an instruction of Hopper.
    pub(crate) fn hopper(
        &mut self,
        op: Hopper,
        instruction: &Instruction,
        code: usize,
        active: u32,
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let args = &instruction.operands;
        let arg = |i: usize| -> Result<&Operand> {
            args.get(i).ok_or_else(|| Error(format!("expected more than {} operands", args.len())))
        };
        let (rank, agent) = (self.rank, self.agent);
        match op {
            Hopper::BarrierInit => {
                let (at, wanted) = (self.read(arg(0)?), self.read(arg(1)?));
                for lane in each(active) {
                    self.at.1 = lane;
                    cluster.make_barrier(agent, (rank, at[lane]), wanted[lane])?;
                }
            }
            Hopper::BarrierEnd => {
                let at = self.read(arg(0)?);
                for lane in each(active) {
                    self.at.1 = lane;
                    cluster.end_barrier(agent, (rank, at[lane]))?;
                }
            }
            Hopper::BarrierArrive { expects, arrives, release } => {
                // The state that it returns may be left out, if nothing arrives there is none.
                let first = usize::from(arrives && !matches!(args.first(), Some(a) if is_place(a)));
                let at = self.read(arg(first)?);
                let number = args.get(first + 1).map(|number| self.read(number));
                let mut phases = [0; LANES];
                for lane in each(active) {
                    self.at.1 = lane;
                    let number = number.map(|number| number[lane] & u64::from(u32::MAX));
                    let (times, bytes) = match (expects, arrives) {
                        (true, _) => {
                            let bytes = number.ok_or_else(|| Error("no bytes".into()))?;
                            (u64::from(arrives), bytes)
                        }
                        (false, _) => (number.unwrap_or(1), 0),
                    };
                    let at = cluster.place(rank, at[lane])?;
                    phases[lane] = u64::from(cluster.arrive(agent, at, times, bytes, release)?);
                }
                if first == 1 {
                    self.write(arg(0)?, &phases, active);
                }
            }
            Hopper::BarrierWait => {
                let (at, parity) = (self.read(arg(1)?), self.read(arg(2)?));
                let mut over = [1; LANES];
                for lane in each(active) {
                    self.at.1 = lane;
                    let place = (rank, at[lane]);
                    // Whoever is told that the phase has not ended comes again when it has.
                    if let Some(phase) = cluster.phase(agent, place, parity[lane])? {
                        over[lane] = 0;
                        self.set_state(1 << lane, State::Waits(Wait::Phase(place, phase)));
                    }
                }
                self.write(arg(0)?, &over, active);
            }
            Hopper::ShowBarriers => cluster.show_barriers(agent),
            Hopper::FenceAsync => {
                cluster.show_barriers(agent);
                cluster.order.fence(agent);
            }
            Hopper::MapAddress => {
                let (at, block) = (self.read(arg(1)?), self.read(arg(2)?));
                let mut found = [0; LANES];
                for lane in each(active) {
                    self.at.1 = lane;
                    if block[lane] as usize >= cluster.blocks.len() {
                        let (block, all) = (block[lane], cluster.blocks.len());
                        return Err(Error(format!("block {block} of a cluster of {all}")));
                    }
                    found[lane] = at[lane] % WINDOW + (block[lane] + 1) * WINDOW;
                }
                self.write(arg(0)?, &found, active);
            }
            Hopper::CopyBox(dimensions, is_multicast) => {
                let (Operand::List(from), to) = (arg(1)?, self.read(arg(0)?)) else {
                    return Err(Error("expected a tensor map and a place".into()));
                };
                let [map, place] = &from[..] else {
                    return Err(Error("expected a tensor map and a place".into()));
                };
                let place: Vec<Lanes> = match place {
                    Operand::List(list) => list.iter().map(|one| self.read(one)).collect(),
                    one => vec![self.read(one)],
                };
                if place.len() != dimensions {
                    let found = place.len();
                    return Err(Error(format!("expected a place of {dimensions}, found {found}")));
                }
                let (map, barrier) = (self.read(map), self.read(arg(2)?));
                let blocks = if is_multicast { Some(self.read(arg(3)?)) } else { None };
                for lane in each(active) {
                    self.at.1 = lane;
                    let at: Vec<i32> = place.iter().map(|one| one[lane] as i32).collect();
                    let request = Request {
                        map: map[lane],
                        at: &at,
                        to: cluster.place(rank, to[lane])?,
                        barrier: cluster.place(rank, barrier[lane])?,
                        blocks: blocks.map(|blocks| blocks[lane] & 0xffff),
                    };
                    cluster.copy(agent, &request)?;
                }
            }
            Hopper::PrefetchMap => {
                let at = self.read(arg(0)?);
                for lane in each(active) {
                    self.at.1 = lane;
                    cluster.prefetch(at[lane])?;
                }
            }
            Hopper::Elect => {
                let chosen = active.trailing_zeros();
                let mut is_chosen = [0; LANES];
                is_chosen[chosen as usize % LANES] = 1;
                let Operand::List(both) = arg(0)? else {
                    return Err(Error("expected two results".into()));
                };
                for (to, value) in both.iter().zip([[u64::from(chosen); LANES], is_chosen]) {
                    self.write(to, &value, active);
                }
            }
            Hopper::ClusterArrive => {
                if self.arrived.is_some() {
                    return Err(Error("arrives twice at the cluster's barrier".into()));
                }
                let wanted = self.launch.block.iter().product::<u32>() as usize;
                let wanted = wanted * cluster.blocks.len();
                let Cluster { barrier, order, .. } = cluster;
                let there = active.count_ones() as usize;
                self.arrived = Some(barrier.arrive(order, agent, there, wanted, false)?);
            }
            Hopper::ClusterWait => {
                let Some(turn) = self.arrived.take() else {
                    return Err(Error(
                        "waits at the cluster's barrier, and has not arrived".into(),
                    ));
                };
                let Cluster { barrier, order, .. } = cluster;
                if !barrier.wait(order, agent, turn) {
                    self.set_state(active, State::Waits(Wait::Cluster(turn)));
                }
            }
            Hopper::GiveRegisters => {
                let to = self.read(arg(0)?)[0];
                cluster.blocks[rank].registers.give(self.number as usize, to)?;
            }
            Hopper::ClaimRegisters => {
                let to = self.read(arg(0)?)[0];
                let budget = &mut cluster.blocks[rank].registers;
                if let Some(missing) = budget.claim(self.number as usize, to)? {
                    // It comes here again.
                    self.go_to(active, code);
                    self.set_state(active, State::Waits(Wait::Registers(missing)));
                }
            }
            Hopper::ProductFence => self.products.fence(),
            Hopper::ProductCommit => self.products.commit(),
            Hopper::ProductWait => {
                let left = self.read(arg(0)?)[0] as usize;
                self.wait_products(left, cluster)?;
            }
            Hopper::Product(columns) => self.multiply(instruction, columns, cluster)?,
        }
        Ok(())
    }
}

/// Whether an operand is an address.
fn is_place(operand: &Operand) -> bool {
    matches!(operand, Operand::Address(..))
}
