//! 32 threads that take the same instructions, as far as their branches agree.

use crate::counts::Counts;
use crate::memory::Shared;
use crate::op::Op;
use crate::parse::{Instruction, Operand, Special};
use crate::value::low;
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
    /// The other threads of the block.
    Waits,
    Ended,
}

/// Why a warp has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All of its lanes are at a barrier.
    Barrier,
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
    pub(crate) number: u32,
    pub(crate) registers: Vec<Lanes>,
    pub(crate) next: [usize; LANES],
    pub(crate) states: [State; LANES],
    pub(crate) copies: Vec<Copies>,
    pub(crate) local: Vec<u8>,
    /// The allocation that was touched last.
    pub(crate) known: (u64, u64),
    /// Where a fault would be.
    pub(crate) at: (usize, usize),
    pub(crate) counts: Counts,
}

impl<'a> Warp<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>, block: [u32; 3], number: u32) -> Self {
        let threads: u32 = launch.block.iter().product();
        let mut states = [State::Ended; LANES];
        for (lane, state) in states.iter_mut().enumerate() {
            if number as usize * LANES + lane < threads as usize {
                *state = State::Runs;
            }
        }
        let entry = launch.entry;
        Self {
            launch,
            block,
            number,
            // What nobody has written is no number.
            registers: entry.registers.iter().map(|bits| [low(u64::MAX, *bits); LANES]).collect(),
            next: [0; LANES],
            states,
            copies: vec![Copies::default(); LANES],
            local: vec![0xff; entry.local * LANES],
            known: (0, 0),
            at: (0, 0),
            counts: Counts::default(),
        }
    }

    /// Runs until no lane can go on without other warps.
    ///
    /// # Errors
    /// At a fault. The error says where.
    pub(crate) fn run(&mut self, shared: &mut Shared) -> Result<Stop> {
        self.go(shared).map_err(|Error(fault)| {
            let Launch { entry, .. } = self.launch;
            let (code, lane) = self.at;
            let line = entry.code.get(code).map_or(0, |instruction| instruction.line);
            let [x, y, z] = self.block;
            let thread = self.number as usize * LANES + lane;
            Error(format!(
                "{}, block {x},{y},{z}, thread {thread}, line {line} of the PTX: {fault}",
                entry.name
            ))
        })
    }

    fn go(&mut self, shared: &mut Shared) -> Result<Stop> {
        loop {
            let first = |states: &[State; LANES], next: &[usize; LANES], wanted| {
                let at = states.iter().zip(next).filter(|(state, _)| **state == wanted);
                at.map(|(_, next)| *next).min()
            };
            // The lanes that are furthest behind go first: where branches meet again, all are there.
            let (code, mut meet) = match first(&self.states, &self.next, State::Runs) {
                Some(code) => (code, false),
                None => match first(&self.states, &self.next, State::Meets) {
                    Some(code) => (code, true),
                    None => break,
                },
            };
            let wanted = if meet { State::Meets } else { State::Runs };
            let mut active = 0u32;
            for lane in 0..LANES {
                if self.states[lane] == wanted && self.next[lane] == code {
                    active |= 1 << lane;
                }
            }
            self.at = (code, active.trailing_zeros() as usize);
            let entry = self.launch.entry;
            let Some(instruction) = entry.code.get(code) else {
                return Err(Error("runs past the end".into()));
            };
            if instruction.op.is_of_warp() && instruction.guard.is_none() {
                let all = self.members(instruction);
                if active & all != all {
                    if meet {
                        return Err(Error(format!(
                            "is at an instruction of lanes {all:08x}, of which only {active:08x} come"
                        )));
                    }
                    self.set_state(active, State::Meets);
                    continue;
                }
                meet = true;
            }
            if meet {
                self.set_state(active, State::Runs);
            }
            self.step(instruction, code, active, shared)?;
        }
        match self.states.contains(&State::Waits) {
            true => Ok(Stop::Barrier),
            false => Ok(Stop::Ended),
        }
    }

    /// Lets all lanes go on behind a barrier.
    pub(crate) fn pass(&mut self) {
        for state in &mut self.states {
            if *state == State::Waits {
                *state = State::Runs;
            }
        }
    }

    /// Returns how many lanes wait at a barrier, and how many have ended there.
    pub(crate) fn waiting(&self) -> usize {
        self.states.iter().filter(|state| **state == State::Waits).count()
    }

    /// Returns the mask of the lanes that must take part.
    fn members(&self, instruction: &Instruction) -> u32 {
        let mask = match instruction.op {
            Op::Shuffle(_) | Op::Vote(_) => instruction.operands.last(),
            Op::WarpBarrier => instruction.operands.first(),
            _ => None,
        };
        mask.map_or(u32::MAX, |mask| self.read(mask)[self.at.1] as u32)
    }

    pub(crate) fn set_state(&mut self, lanes: u32, state: State) {
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
        }
    }

    pub(crate) fn write(&mut self, operand: &Operand, lanes: &Lanes, active: u32) {
        match operand {
            Operand::Register(register) => {
                let bits = self.launch.entry.registers[*register];
                let to = &mut self.registers[*register];
                for lane in 0..LANES {
                    if active >> lane & 1 != 0 {
                        to[lane] = low(lanes[lane], bits);
                    }
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
pub(crate) fn each(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 != 0)
}
