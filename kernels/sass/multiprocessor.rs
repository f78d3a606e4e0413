//! A multiprocessor, cycle by cycle.
//!
//! Four schedulers issue one instruction a cycle each, of the warp that issued last if it can, else of
//! the one that is furthest behind. An instruction waits for its scoreboards and its pipe. The pipes of
//! arithmetic belong to a scheduler; shared memory and the queue of bytes from memory to all four.

use crate::{Instruction, Path, Unit};

/// Warps of each block that go the same way.
pub(crate) struct Crew {
    pub(crate) path: Path,
    pub(crate) warps: u32,
    /// Whether they copy what the others multiply.
    pub(crate) copies: bool,
}

/// Places in shared memory that some warps of a block fill and others empty, in turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    pub(crate) places: usize,
    /// Boxes of each filling.
    pub(crate) fillings: Vec<u32>,
    /// Bytes that each box asks for.
    pub(crate) bytes: f64,
    /// Cycles that writing a box keeps shared memory busy.
    pub(crate) passes: f64,
}

/// What a multiprocessor gets from memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Bytes a cycle.
    pub rate: f64,
    /// Cycles from a request to its bytes, if no other is under way.
    pub latency: u64,
}

/// The rates of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiprocessor {
    /// Cycles between two products of 16 by 8 by 16 of a scheduler's tensor core.
    pub tensor: u64,
    /// What it gets from memory.
    pub memory: Memory,
}

/// A warp's scoreboards.
const BOARDS: usize = 6;

/// Cycles of requests to shared memory that may wait before the next one is held back.
const QUEUE: u64 = 32;

/// Cycles between the starts of two blocks on one multiprocessor.
const STAGGER: u64 = 100;

/// Cycles of a box of a tensor beside the latency of memory: its descriptor, its addresses.
const BOX: u64 = 200;

/// Cycles of a product of a warpgroup beside those that it keeps the tensor cores busy.
const PRODUCT: u64 = 30;

/// Cycles from an issue until a result can be used, for those that set a scoreboard.
fn latency(instruction: &Instruction) -> u64 {
    match instruction.base() {
        // From L1.
        "LDG" => 40,
        "LDSM" => 33,
        "LDS" => 29,
        "SHFL" => 26,
        "STS" => 25,
        "MUFU" | "I2F" | "F2I" | "I2FP" | "F2F" => 22,
        "LDC" | "ULDC" => 40,
        "SYNCS" => 20,
        "S2R" | "S2UR" => 30,
        _ => 12,
    }
}

struct Warp {
    block: usize,
    crew: usize,
    at: usize,
    /// Phases that it has waited for, groups of products that may still be under way behind the wait
    /// before, and fillings that it does not need any more.
    phases: usize,
    pending: usize,
    emptied: usize,
    /// Cycle from which on it may issue.
    ready: u64,
    /// Cycles at which each scoreboard's results have arrived, the last one.
    boards: [u64; BOARDS],
    /// Cycle at which each group of copies has arrived, and the open one.
    groups: Vec<u64>,
    open: u64,
    waiting: bool,
}

/// What has become of a block's ring.
#[derive(Clone, Default)]
struct Filled {
    /// Fillings that have been begun.
    begun: usize,
    /// Boxes that are still to be asked for, and the cycle at which the last one lands.
    fillings: Vec<(u32, u64)>,
}

/// Cycles until a scheduler's pipe takes the next instruction: tensor, float, multiply, integer,
/// special.
type Pipes = [u64; 5];

fn pipe(unit: Unit, tensor: u64) -> Option<(usize, u64)> {
    match unit {
        Unit::Tensor => Some((0, tensor)),
        Unit::Float => Some((1, 1)),
        // At half the rate: 16 lanes.
        Unit::Multiply => Some((2, 2)),
        Unit::Integer => Some((3, 2)),
        Unit::Special => Some((4, 8)),
        _ => None,
    }
}

impl Multiprocessor {
    /// Returns the cycles that so many blocks of so many warps take, each along this path.
    pub fn run(&self, code: &[Instruction], path: &Path, warps: u32, blocks: u32) -> u64 {
        let crew = Crew { path: path.clone(), warps, copies: false };
        self.run_crews(code, &[crew], &Ring::default(), blocks)
    }

    /// The same of blocks whose warps have roles.
    pub(crate) fn run_crews(
        &self,
        code: &[Instruction],
        crews: &[Crew],
        ring: &Ring,
        blocks: u32,
    ) -> u64 {
        let crew_of = |(n, crew): (usize, &Crew)| vec![n; crew.warps as usize];
        let crew_of: Vec<usize> = crews.iter().enumerate().flat_map(crew_of).collect();
        let (each, warps) = (crew_of.len(), crew_of.len() as u32);
        let mut all: Vec<Warp> = (0..each * blocks as usize)
            .map(|n| Warp {
                block: n / each,
                crew: crew_of[n % each],
                at: 0,
                phases: 0,
                pending: 0,
                emptied: 0,
                ready: (n / each) as u64 * STAGGER,
                boards: [0; BOARDS],
                groups: Vec::new(),
                open: 0,
                waiting: false,
            })
            .collect();
        let fillings = ring.fillings.iter().map(|boxes| (*boxes, 0)).collect();
        let mut rings = vec![Filled { begun: 0, fillings }; blocks as usize];
        // Cycles at which shared memory has read and written what was asked of it so far by products
        // of warpgroups and by boxes.
        let mut operands = 0.0f64;
        let empty = crews.iter().filter(|crew| crew.path.0.is_empty()).count();
        assert_eq!(empty, 0, "a crew has a path");
        let mut queues: [Vec<usize>; 4] = Default::default();
        (0..all.len()).for_each(|n| queues[n % 4].push(n));
        let mut arrived = vec![0; blocks as usize];
        let mut pipes = [Pipes::default(); 4];
        let (mut shared, mut memory) = (0, 0.0f64);
        let (mut left, mut now, mut end) = (all.len(), 0, 0);
        while left > 0 {
            let mut idle = u64::MAX;
            for scheduler in 0..4 {
                let mut chosen = None;
                for (place, &n) in queues[scheduler].iter().enumerate() {
                    let crew = &crews[all[n].crew];
                    let mut from =
                        self.issues(code, &crew.path.0, &all[n], &pipes[scheduler], shared);
                    let next = &code[crew.path.0[all[n].at] as usize];
                    if from <= now && next.unit == Unit::Phase {
                        from = from.max(phase(ring, &rings, crews, &all, n));
                    }
                    if from <= now {
                        chosen = Some((place, n));
                        break;
                    }
                    idle = idle.min(from);
                }
                let Some((place, n)) = chosen else { continue };
                idle = now;
                let crew = &crews[all[n].crew];
                let instruction = &code[crew.path.0[all[n].at] as usize];
                let mut done = now + latency(instruction);
                if let Some((index, cycles)) = pipe(instruction.unit, self.tensor) {
                    pipes[scheduler][index] = now + cycles;
                }
                match instruction.unit {
                    Unit::Shared(_) | Unit::Cached => {
                        // L1 is the same memory: 16 bytes a lane are four passes.
                        let passes =
                            if let Unit::Shared(passes) = instruction.unit { passes } else { 4 };
                        shared = shared.max(now + 2) + u64::from(passes);
                        done = shared + latency(instruction) - 4;
                    }
                    Unit::Load(bytes) | Unit::Copy(bytes) | Unit::Store(bytes) => {
                        memory = memory.max(now as f64) + f64::from(bytes) / self.memory.rate;
                        let arrives = memory.ceil() as u64 + self.memory.latency;
                        // The operands of stores and copies have been read long before.
                        done = match instruction.unit {
                            Unit::Load(_) => arrives,
                            _ => now + 20,
                        };
                        if matches!(instruction.unit, Unit::Copy(_)) {
                            shared = shared.max(now + 2) + u64::from(bytes / 128);
                            all[n].open = all[n].open.max(arrives);
                        }
                    }
                    Unit::Warpgroup { columns, ends } => {
                        // A quarter of the 64 rows, 32 bytes each, and of the columns: 128 bytes a
                        // cycle.
                        operands = operands.max(now as f64) + 4.0 + f64::from(columns) / 16.0;
                        let begins = pipes[scheduler][0].max(now);
                        let over = (begins + u64::from(columns) / 2).max(operands.ceil() as u64);
                        pipes[scheduler][0] = over;
                        let warp = &mut all[n];
                        warp.open = warp.open.max(over + PRODUCT);
                        if ends {
                            let open = std::mem::take(&mut warp.open);
                            warp.groups.push(open);
                        }
                    }
                    Unit::Phase => all[n].phases += 1,
                    Unit::Arrival if crew.copies => rings[all[n].block].begun += 1,
                    Unit::Arrival => {
                        let warp = &mut all[n];
                        warp.emptied = warp.emptied.max(warp.phases.saturating_sub(warp.pending));
                    }
                    Unit::Wait(pending) => all[n].pending = pending as usize,
                    Unit::Box => {
                        memory = memory.max(now as f64) + ring.bytes / self.memory.rate;
                        operands = operands.max(now as f64) + ring.passes;
                        let filled = &mut rings[all[n].block];
                        let filling = filled.begun.saturating_sub(1);
                        if let Some((boxes, lands)) = filled.fillings.get_mut(filling) {
                            *boxes = boxes.saturating_sub(1);
                            *lands = memory.ceil() as u64 + self.memory.latency + BOX;
                        }
                    }
                    Unit::Fence => all[n].ready = now + self.memory.latency,
                    Unit::Commit => {
                        let open = std::mem::take(&mut all[n].open);
                        all[n].groups.push(open);
                    }
                    Unit::Barrier => {
                        let block = all[n].block;
                        all[n].waiting = true;
                        arrived[block] += 1;
                        if arrived[block] == warps {
                            arrived[block] = 0;
                            for warp in &mut all[block * each..][..each] {
                                warp.waiting = false;
                                warp.ready = warp.ready.max(now + 20);
                            }
                        }
                    }
                    _ => {}
                }
                let warp = &mut all[n];
                if let Some(board) = instruction.writes {
                    let board = &mut warp.boards[usize::from(board).min(BOARDS - 1)];
                    *board = (*board).max(done);
                }
                if let Some(board) = instruction.reads {
                    let board = &mut warp.boards[usize::from(board).min(BOARDS - 1)];
                    *board = (*board).max(done.min(now + 10));
                }
                warp.ready = warp.ready.max(now + u64::from(instruction.stall.max(1)));
                warp.at += 1;
                end = end.max(now + 1);
                if warp.at == crew.path.0.len() {
                    left -= 1;
                    queues[scheduler].remove(place);
                } else {
                    // It stays first; the others in the order of what they still have to do.
                    queues[scheduler][..=place].rotate_right(1);
                    queues[scheduler][1..].sort_by_key(|n| all[*n].at);
                }
            }
            if idle == u64::MAX {
                // Everybody waits for somebody else, which the paths of a kernel that runs never do.
                return u64::MAX;
            }
            now = idle.max(now + 1);
        }
        end
    }

    /// Returns a cycle before which a warp cannot issue; `now` or earlier if it can.
    fn issues(
        &self,
        code: &[Instruction],
        path: &[u32],
        warp: &Warp,
        pipes: &Pipes,
        shared: u64,
    ) -> u64 {
        if warp.waiting {
            return u64::MAX;
        }
        let instruction = &code[path[warp.at] as usize];
        let mut from = warp.ready;
        for board in (0..BOARDS).filter(|board| instruction.waits >> board & 1 == 1) {
            from = from.max(warp.boards[board]);
        }
        match instruction.unit {
            Unit::Wait(pending) => {
                let done = warp.groups.len().saturating_sub(pending as usize);
                from = from.max(warp.groups[..done].iter().copied().max().unwrap_or(0));
            }
            Unit::Shared(_) | Unit::Cached | Unit::Load(_) | Unit::Store(_) | Unit::Copy(_) => {
                from = from.max(shared.saturating_sub(QUEUE));
            }
            unit => {
                if let Some((index, _)) = pipe(unit, self.tensor) {
                    from = from.max(pipes[index]);
                }
            }
        }
        from
    }
}

/// Returns the cycle at which the phase has ended that this warp waits for, if that is known.
fn phase(ring: &Ring, rings: &[Filled], crews: &[Crew], all: &[Warp], n: usize) -> u64 {
    let warp = &all[n];
    let filled = &rings[warp.block];
    if !crews[warp.crew].copies {
        return match filled.fillings.get(warp.phases) {
            Some((0, lands)) => *lands,
            Some(_) => u64::MAX,
            None => 0,
        };
    }
    // The place that is filled next has been emptied, or never been filled.
    let emptied = (filled.begun + 1).saturating_sub(ring.places);
    let others = all.iter().filter(|w| w.block == warp.block && !crews[w.crew].copies);
    if others.into_iter().all(|w| w.emptied >= emptied) { 0 } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::{Crew, Memory, Multiprocessor, Ring};
    use crate::path::Path;
    use crate::{Instruction, Unit};

    const SM: Multiprocessor =
        Multiprocessor { tensor: 6, memory: Memory { rate: 32.0, latency: 700 } };

    fn instruction(op: &str, unit: Unit) -> Instruction {
        Instruction {
            op: op.into(),
            guarded: false,
            target: None,
            unit,
            stall: 1,
            waits: 0,
            writes: None,
            reads: None,
        }
    }

    /// Cycles of 1,000 instructions by each of so many warps.
    fn cycles(unit: Unit, warps: u32) -> u64 {
        SM.run(&[instruction("X", unit)], &Path(vec![0; 1000]), warps, 1)
    }

    #[test]
    fn pipes_have_their_rates() {
        // Two warps on each of four schedulers: 2,000 products a tensor core, six cycles apart.
        assert_eq!(cycles(Unit::Tensor, 8), 1999 * 6 + 1);
        assert_eq!(cycles(Unit::Float, 8), 2000);
        assert_eq!(cycles(Unit::Integer, 8), 1999 * 2 + 1);
        // One pipe for all schedulers.
        let shared = cycles(Unit::Shared(4), 8);
        assert!((32_000 - 64..32_064).contains(&shared), "{shared}");
    }

    #[test]
    fn a_warp_waits_for_what_it_loads() {
        let mut load = instruction("LDG.E.128", Unit::Load(512));
        load.writes = Some(0);
        let mut used = instruction("FADD", Unit::Float);
        used.waits = 1;
        let code = [load, used];
        // One load at a time: its latency, and 16 cycles of its 512 bytes.
        let one = SM.run(&code, &Path([0, 1].repeat(10)), 1, 1);
        assert!((7160..7180).contains(&one), "{one}");
        // 64 warps hide the latency, and the rate is left.
        let many = SM.run(&code, &Path([0, 1].repeat(10)), 32, 2);
        assert!((640 * 16..640 * 16 + 800).contains(&many), "{many}");
    }

    #[test]
    fn products_of_warpgroups_have_their_rate() {
        let cycles = |columns| {
            let product = instruction("HGMMA", Unit::Warpgroup { columns, ends: true });
            let code = [product, instruction("WARPGROUP.DEPBAR.LE", Unit::Wait(0))];
            let path = Path([vec![0; 1000], vec![1]].concat());
            SM.run(&code, &path, 4, 1)
        };
        // Half as many cycles as columns; or, for few of them, 16 for the rows and a quarter.
        for (columns, each) in [(256, 128), (128, 64), (64, 32), (8, 18)] {
            let found = cycles(columns);
            assert!((each * 1000..each * 1000 + 70).contains(&found), "{columns}: {found}");
        }
    }

    #[test]
    fn places_are_filled_and_emptied_in_turn() {
        let code = [
            instruction("SYNCS.PHASECHK", Unit::Phase),
            instruction("SYNCS.ARRIVE", Unit::Arrival),
            instruction("UTMALDG.2D", Unit::Box),
        ];
        let cycles = |places| {
            let copies = Crew { path: Path([0, 1, 2].repeat(100)), warps: 1, copies: true };
            let empties = Crew { path: Path([0, 1].repeat(100)), warps: 4, copies: false };
            let ring = Ring { places, fillings: vec![1; 100], bytes: 3200.0, passes: 25.0 };
            SM.run_crews(&code, &[empties, copies], &ring, 1)
        };
        // One place: each box waits for the one before, 100 cycles at its rate and 900 until it lands.
        let (one, many) = (cycles(1), cycles(20));
        assert!((100_000..102_000).contains(&one), "{one}");
        // Many places hide all but the rate and one latency.
        assert!((10_900..11_100).contains(&many), "{many}");
        // A place that nobody fills.
        let empties = Crew { path: Path(vec![0, 1]), warps: 4, copies: false };
        let ring = Ring { places: 1, fillings: vec![1], ..Ring::default() };
        assert_eq!(SM.run_crews(&code, &[empties], &ring, 1), u64::MAX);
    }

    #[test]
    fn a_fence_takes_the_latency_of_memory() {
        let code = [instruction("MEMBAR.ALL.GPU", Unit::Fence), instruction("FADD", Unit::Float)];
        let cycles = SM.run(&code, &Path(vec![0, 1]), 1, 1);
        assert!((700..705).contains(&cycles), "{cycles}");
    }

    #[test]
    fn a_barrier_waits_for_all_warps() {
        let mut slow = instruction("X", Unit::None);
        slow.stall = 15;
        let code = [slow, instruction("BAR.SYNC", Unit::Barrier)];
        let cycles = SM.run(&code, &Path(vec![0, 1]), 8, 1);
        assert!((15..20).contains(&cycles), "{cycles}");
    }
}
