//! 32 threads that take the same instructions, as far as their branches agree.

use crate::cluster::Cluster;
use crate::counts::Counts;
use crate::hopper::Hopper;
use crate::mbarrier::Place;
use crate::op::Op;
use crate::parse::{Instruction, Operand, Special};
use crate::value::low;
use crate::wgmma::Products;
use crate::{Error, Launch, Result};
use std::collections::VecDeque;

/// Threads of a warp.
pub(crate) const LANES: usize = 32;

/// A register of each lane.
pub(crate) type Lanes = [u64; LANES];

/// What a lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    /// The other lanes of an instruction of the warp.
    Meets,
    /// Something that others do.
    Waits(Wait),
    Ended,
}

/// What others must do before a lane goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// End this turn of a barrier of the block.
    Barrier(usize, u32),
    /// End this phase of an mbarrier.
    Phase(Place, u32),
    /// End this turn of the cluster's barrier.
    Cluster(u32),
    /// Come to a product of the warpgroup: the group's number, and the product's.
    Group(usize, u32),
    /// Give so many registers back.
    Registers(u32),
}

/// Why a warp has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its lanes wait for others.
    Waits,
    Ended,
}

/// A `cp.async`: as much of the source as is read, and zeros after that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) read: u64,
    pub(crate) bytes: u64,
}

/// The copies of a thread that are under way: those since its last commit, and its groups.
#[derive(Clone, Default)]
pub(crate) struct Copies {
    pub(crate) open: Vec<Copy>,
    pub(crate) groups: VecDeque<Vec<Copy>>,
}

pub(crate) struct Warp<'a> {
    pub(crate) launch: &'a Launch<'a>,
    block: [u32; 3],
    /// The block's number in the cluster, and the warp's in the block and in the cluster.
    pub(crate) rank: usize,
    pub(crate) number: u32,
    pub(crate) agent: usize,
    pub(crate) registers: Vec<Lanes>,
    /// Whether all lanes that have not ended run, and are at `code`.
    together: bool,
    code: usize,
    /// The lanes that have not ended.
    pub(crate) alive: u32,
    /// Of each lane, unless they are together.
    next: [usize; LANES],
    states: [State; LANES],
    pub(crate) copies: Vec<Copies>,
    pub(crate) local: Vec<u8>,
    /// The allocation that was touched last.
    pub(crate) known: (u64, u64),
    /// Where a fault would be.
    pub(crate) at: (usize, usize),
    pub(crate) counts: Counts,
    pub(crate) products: Products,
    /// The turn of the cluster's barrier that it has arrived for.
    pub(crate) arrived: Option<u32>,
}

impl<'a> Warp<'a> {
    pub(crate) fn new(
        launch: &'a Launch<'a>,
        block: [u32; 3],
        (rank, agent): (usize, usize),
        number: u32,
    ) -> Self {
        let threads: u32 = launch.block.iter().product();
        let lanes = (threads as usize - number as usize * LANES).min(LANES);
        let mut states = [State::Ended; LANES];
        states[..lanes].fill(State::Runs);
        let entry = launch.entry;
        Self {
            launch,
            block,
            rank,
            number,
            agent,
            // What nobody has written is no number.
            registers: entry.registers.iter().map(|bits| [low(u64::MAX, *bits); LANES]).collect(),
            together: true,
            code: 0,
            alive: u32::MAX >> (LANES - lanes),
            next: [0; LANES],
            states,
            copies: vec![Copies::default(); LANES],
            local: vec![0xff; entry.local * LANES],
            known: (0, 0),
            at: (0, 0),
            counts: Counts::default(),
            products: Products::new(if entry.multiplies { entry.registers.len() } else { 0 }),
            arrived: None,
        }
    }

    /// Runs until no lane can go on without other warps.
    ///
    /// # Errors
    /// At a fault. The error says where.
    pub(crate) fn run(&mut self, cluster: &mut Cluster<'_>) -> Result<Stop> {
        self.go(cluster).map_err(|fault| self.fault(fault))
    }

    /// Says where a fault is.
    pub(crate) fn fault(&self, Error(fault): Error) -> Error {
        Error(format!("{}: {fault}", self.place(self.at.0, self.at.1)))
    }

    fn place(&self, code: usize, lane: usize) -> String {
        let Launch { entry, .. } = self.launch;
        let line = entry.code.get(code).map_or(0, |instruction| instruction.line);
        let [x, y, z] = self.block;
        let thread = self.number as usize * LANES + lane;
        format!("{}, block {x},{y},{z}, thread {thread}, line {line} of the PTX", entry.name)
    }

    fn go(&mut self, cluster: &mut Cluster<'_>) -> Result<Stop> {
        self.wake(cluster);
        while self.alive != 0 {
            let (code, mut meet, active) = match self.together {
                true => (self.code, false, self.alive),
                false => match self.furthest_behind() {
                    Some(found) => found,
                    None => break,
                },
            };
            self.at = (code, active.trailing_zeros() as usize);
            let entry = self.launch.entry;
            let Some(instruction) = entry.code.get(code) else {
                return Err(Error("runs past the end".into()));
            };
            if instruction.op.is_of_warp() && instruction.guard.is_none() {
                let all = self.members(instruction);
                if active & all != all {
                    if !meet {
                        self.set_state(active, State::Meets);
                        continue;
                    }
                    // Who waits for other warps may still come.
                    if each(all & !active).any(|lane| matches!(self.states[lane], State::Waits(_)))
                    {
                        return Ok(Stop::Waits);
                    }
                    return Err(Error(format!(
                        "is at an instruction of lanes {all:08x}, of which only {active:08x} come"
                    )));
                }
                meet = true;
            }
            if meet {
                self.set_state(active, State::Runs);
            }
            cluster.line = instruction.line;
            self.step(instruction, code, active, cluster)?;
            // The warp itself may have done what a lane of it waits for.
            if matches!(instruction.op, Op::Hopper(_) | Op::Barrier { .. }) {
                self.wake(cluster);
            }
        }
        match self.alive {
            0 => Ok(Stop::Ended),
            _ => Ok(Stop::Waits),
        }
    }

    /// Returns which lanes go next, where they are, and whether they come to meet others. Those
    /// that are furthest behind go first: where branches meet again, all are there.
    fn furthest_behind(&mut self) -> Option<(usize, bool, u32)> {
        let first = |wanted| {
            let at = self.states.iter().zip(&self.next).filter(|(state, _)| **state == wanted);
            at.map(|(_, next)| *next).min()
        };
        let (wanted, code) = match first(State::Runs) {
            Some(code) => (State::Runs, code),
            None => (State::Meets, first(State::Meets)?),
        };
        let mut active = 0u32;
        for lane in 0..LANES {
            if self.states[lane] == wanted && self.next[lane] == code {
                active |= 1 << lane;
            }
        }
        (self.together, self.code) = (active == self.alive && wanted == State::Runs, code);
        Some((code, wanted == State::Meets, active))
    }

    /// Writes down where each lane is, before they part.
    fn part(&mut self) {
        if self.together {
            self.together = false;
            for lane in each(self.alive) {
                (self.next[lane], self.states[lane]) = (self.code, State::Runs);
            }
        }
    }

    /// Lets lanes go on somewhere.
    pub(crate) fn go_to(&mut self, lanes: u32, code: usize) {
        if self.together && lanes == self.alive {
            self.code = code;
            return;
        }
        self.part();
        for lane in each(lanes) {
            self.next[lane] = code;
        }
    }

    /// Lets the lanes go on for which others have done what they wait for.
    fn wake(&mut self, cluster: &Cluster<'_>) {
        if self.together {
            return;
        }
        // Lanes mostly wait for the same.
        let mut over = None;
        for state in &mut self.states {
            let State::Waits(wait) = *state else { continue };
            if over.is_none_or(|(known, _)| known != wait) {
                over = Some((wait, cluster.is_over(self.rank, wait)));
            }
            if over.is_some_and(|(_, is_over)| is_over) {
                *state = State::Runs;
            }
        }
    }

    /// Returns what the first lane that waits waits for, and where it is.
    pub(crate) fn waits_for(&self, cluster: &Cluster<'_>) -> Option<(String, String)> {
        (0..LANES).find_map(|lane| match self.states[lane] {
            State::Waits(wait) => {
                let at = self.next[lane].saturating_sub(1);
                Some((cluster.missing(self.rank, wait), self.place(at, lane)))
            }
            _ => None,
        })
    }

    /// Returns the mask of the lanes that must take part.
    fn members(&self, instruction: &Instruction) -> u32 {
        let mask = match instruction.op {
            Op::Shuffle(_) | Op::Vote(_) | Op::Hopper(Hopper::Elect) => instruction.operands.last(),
            Op::WarpBarrier => instruction.operands.first(),
            _ => None,
        };
        mask.map_or(u32::MAX, |mask| self.read(mask)[self.at.1] as u32)
    }

    pub(crate) fn set_state(&mut self, lanes: u32, state: State) {
        if self.together && state == State::Runs {
            return;
        }
        self.part();
        if state == State::Ended {
            self.alive &= !lanes;
        }
        for lane in each(lanes) {
            self.states[lane] = state;
        }
    }

    pub(crate) fn read(&self, operand: &Operand) -> Lanes {
        match operand {
            Operand::Register(register) => self.registers[*register],
            Operand::Number(number) => [*number; LANES],
            Operand::Special(special) => {
                let mut lanes = [0; LANES];
                for (lane, value) in lanes.iter_mut().enumerate() {
                    *value = u64::from(self.special(*special, lane as u32));
                }
                lanes
            }
            Operand::Address(base, offset) => {
                self.read(base).map(|base| base.wrapping_add_signed(*offset))
            }
            // The first is the lowest.
            Operand::List(list) => {
                let mut lanes = [0; LANES];
                let mut shift = 0;
                for part in list {
                    let bits = self.bits(part);
                    for (lane, part) in lanes.iter_mut().zip(self.read(part)) {
                        *lane |= low(part, bits) << shift;
                    }
                    shift += bits;
                }
                lanes
            }
        }
    }

    fn bits(&self, operand: &Operand) -> u32 {
        match operand {
            Operand::Register(register) => self.launch.entry.registers[*register],
            _ => 32,
        }
    }

    fn special(&self, special: Special, lane: u32) -> u32 {
        let [x, y, _] = self.launch.block;
        let thread = self.number * LANES as u32 + lane;
        match special {
            Special::Thread(axis) => [thread % x, thread / x % y, thread / (x * y)][axis],
            Special::Threads(axis) => self.launch.block[axis],
            Special::Block(axis) => self.block[axis],
            Special::Blocks(axis) => self.launch.grid[axis],
            Special::Lane => lane,
            Special::Warp => self.number,
            Special::Rank => self.rank as u32,
            Special::Ranks => self.launch.entry.cluster,
            Special::Cluster => self.block[0] / self.launch.entry.cluster,
            Special::Clusters => self.launch.grid[0] / self.launch.entry.cluster,
        }
    }

    pub(crate) fn write(&mut self, operand: &Operand, lanes: &Lanes, active: u32) {
        match operand {
            Operand::Register(register) => {
                let bits = self.launch.entry.registers[*register];
                let to = &mut self.registers[*register];
                if active == u32::MAX {
                    for (to, lane) in to.iter_mut().zip(lanes) {
                        *to = low(*lane, bits);
                    }
                    return;
                }
                for lane in each(active) {
                    to[lane] = low(lanes[lane], bits);
                }
            }
            Operand::List(list) => {
                let mut shift = 0;
                for part in list {
                    self.write(part, &lanes.map(|lane| lane >> shift), active);
                    shift += self.bits(part);
                }
            }
            _ => {}
        }
    }
}

/// The lanes of a mask.
#[inline]
pub(crate) fn each(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}
