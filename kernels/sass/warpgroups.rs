//! The time of a launch whose warps have roles: on Hopper one thread of a block copies boxes of tensors
//! into a ring of places in shared memory, and warpgroups multiply what is in them.
//!
//! A role's main loop is the innermost one that has its instruction (`UTMALDG`, `HGMMA`) and waits for
//! phases of barriers. The roles meet in the ring: the n-th phase that a warp which multiplies waits for
//! is that of the n-th filling; a place is filled again when all of them have arrived at its barrier.
//! Kernels with several rings, or whose warps take turns at named barriers, the model does not know.

use crate::multiprocessor::{Crew, Ring};
use crate::path::{Loop, Shape, loops};
use crate::{Gpu, Instruction, Kernel, Launch, Memory, Multiprocessor, Prediction, Unit, Work};
use std::ops::Range;

/// Warps of a warpgroup.
const WARPGROUP: u32 = 4;

/// Bytes that shared memory reads or writes in a cycle.
const SHARED_RATE: f64 = 128.0;

/// Steps of a tile, and tiles of a block, that are run; what more take follows from the last of them.
const STEPS: u32 = 96;
const TILES: u32 = 3;

/// The main loops of a kernel whose warps have roles, as ranges of its instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MainLoops {
    /// That of the warps that multiply.
    pub multiplies: Range<usize>,
    /// That of the thread that copies.
    pub copies: Range<usize>,
    /// Steps of an iteration of the one that multiplies.
    pub steps: u32,
}

impl Kernel {
    /// Returns the main loops, if its warps have roles.
    pub fn main_loops(&self) -> Option<MainLoops> {
        let roles = Roles::of(self, Work::default())?;
        let [multiplies, copies] = [&roles.multiplies, &roles.copies].map(Shape::range);
        let steps = count(&self.code[multiplies.clone()], is_phase);
        Some(MainLoops { multiplies, copies, steps })
    }
}

/// A kernel's roles.
pub(crate) struct Roles {
    multiplies: Shape,
    copies: Shape,
    places: usize,
    /// Steps of which both unrolled main loops take a whole number.
    unrolled: u32,
}

fn count(code: &[Instruction], unit: impl Fn(Unit) -> bool) -> u32 {
    code.iter().filter(|i| unit(i.unit)).count() as u32
}

fn is_phase(unit: Unit) -> bool {
    unit == Unit::Phase
}

fn is_product(unit: Unit) -> bool {
    matches!(unit, Unit::Warpgroup { .. })
}

fn is_box(unit: Unit) -> bool {
    unit == Unit::Box
}

/// Products of 16 by 8 by 16 of a warp.
fn products(code: &[Instruction]) -> f64 {
    let columns = |i: &Instruction| match i.unit {
        Unit::Warpgroup { columns, .. } => f64::from(columns) / 8.0,
        _ => 0.0,
    };
    code.iter().map(columns).sum()
}

/// The innermost loop that waits for phases and has most of these instructions.
fn main_loop(
    code: &[Instruction],
    loops: &[Loop],
    unit: impl Fn(Unit) -> bool + Copy,
) -> Option<usize> {
    let body = |l: &Loop| &code[l.first..=l.last];
    let has = |l: &&Loop| count(body(l), unit) > 0 && count(body(l), is_phase) > 0;
    let innermost = |n: &usize| {
        let this = loops[*n];
        has(&&this) && !loops.iter().filter(has).any(|other| other.inside(this))
    };
    (0..loops.len()).filter(innermost).max_by_key(|n| count(body(&loops[*n]), unit))
}

impl Roles {
    /// Returns the roles of a kernel that has them.
    pub(crate) fn of(kernel: &Kernel, work: Work) -> Option<Self> {
        let code = &kernel.code;
        // A branch back from behind the end of the code, where a wait goes on, makes no loop.
        let ends = |i: &Instruction| i.base() == "EXIT" && !i.guarded;
        let mut loops = loops(code);
        loops.retain(|l| !code[l.first..=l.last].iter().any(ends));
        let multiplies = main_loop(code, &loops, is_product)?;
        let copies = main_loop(code, &loops, is_box)?;
        let body = |n: usize| &code[loops[n].first..=loops[n].last];
        let phases = |n: usize| f64::from(count(body(n), is_phase));
        let per_step = if work.products > 0.0 {
            work.products / products(body(multiplies))
        } else {
            1.0 / phases(multiplies)
        };
        let copied = per_step * phases(multiplies) / phases(copies);
        let whole = |n: &u32| {
            let trips = [per_step, copied].map(|each| each * f64::from(*n));
            trips.iter().all(|trips| (trips - trips.round()).abs() < 1e-6)
        };
        let exchanged = code.iter().filter(|i| i.op.starts_with("SYNCS.EXCH")).count();
        Some(Self {
            unrolled: (1..=64).find(whole)?,
            // A place has a barrier that says that it is full, and one that says that it is empty.
            places: (exchanged / 2).max(1),
            multiplies: Shape::role(loops.clone(), multiplies, per_step),
            copies: Shape::role(loops, copies, copied),
        })
    }

    /// Instructions of a step by a warp that multiplies.
    fn instructions(&self, code: &[Instruction]) -> u32 {
        (code[self.multiplies.range()].len() as f64 * self.multiplies.per_step()).ceil() as u32
    }
}

/// What a launch is run with.
struct Run<'a> {
    kernel: &'a Kernel,
    roles: &'a Roles,
    multiprocessor: Multiprocessor,
    /// Warps of a block that multiply, and blocks.
    warps: u32,
    blocks: u32,
    /// Bytes of a step that are asked for, and that are written.
    copied: f64,
    written: f64,
}

impl Run<'_> {
    /// Cycles of so many tiles of so many steps, of which both loops take a whole number.
    fn whole(&self, tiles: u32, steps: u32) -> f64 {
        let crew = |shape: &Shape, warps, copies| {
            let path = shape.repeated(tiles).path(self.kernel, shape.trips(steps));
            Crew { path, warps, copies }
        };
        let crews =
            [crew(&self.roles.multiplies, self.warps, false), crew(&self.roles.copies, 1, true)];
        let mut fillings = Vec::new();
        for at in &crews[1].path.0 {
            match self.kernel.code[*at as usize].unit {
                Unit::Arrival => fillings.push(0),
                Unit::Box => fillings.iter_mut().last().into_iter().for_each(|n| *n += 1),
                _ => {}
            }
        }
        let boxes = f64::from(fillings.iter().sum::<u32>()).max(1.0) / fillings.len().max(1) as f64;
        let ring = Ring {
            places: self.roles.places,
            fillings,
            bytes: self.copied / boxes,
            passes: self.written / boxes / SHARED_RATE,
        };
        self.multiprocessor.run_crews(&self.kernel.code, &crews, &ring, self.blocks) as f64
    }

    /// Cycles of so many tiles of any number of steps, and of one step more of each.
    fn cycles(&self, tiles: u32, steps: u32) -> (f64, f64) {
        let unrolled = self.roles.unrolled;
        let below = (steps.min(STEPS) / unrolled).max(1) * unrolled;
        let (less, more) = (self.whole(tiles, below), self.whole(tiles, below + 4 * unrolled));
        let each = (more - less) / f64::from(4 * unrolled);
        (less + each * (f64::from(steps) - f64::from(below)), each)
    }

    /// Cycles of any number of tiles, and of a step.
    fn all(&self, tiles: u32, steps: u32) -> (f64, f64) {
        let (some, each) = self.cycles(tiles.min(TILES), steps);
        let step = each / f64::from(tiles.clamp(1, TILES));
        if tiles <= TILES {
            return (some, step);
        }
        let (fewer, _) = self.cycles(TILES - 1, steps);
        (some + (some - fewer) * f64::from(tiles - TILES), step)
    }
}

impl Gpu {
    /// Predicts a launch of a kernel whose warps have these roles.
    pub(crate) fn predict_roles(
        &self,
        kernel: &Kernel,
        roles: &Roles,
        launch: &Launch,
    ) -> Prediction {
        let Launch { blocks, block, work, bytes } = *launch;
        let resident = self.resident(block);
        let tiles = work.tiles.max(1);
        let steps = (work.longest / tiles).max(1);
        // All bytes that are asked for in the loop, and by a warp behind it.
        let warps = WARPGROUP * (block.threads.div_ceil(32 * WARPGROUP) - 1).max(1);
        let path = roles.multiplies.path(kernel, 1);
        let ends: f64 = path.0.iter().map(|at| asked(&kernel.code[*at as usize])).sum();
        let asked = blocks as f64
            * f64::from(work.steps)
            * (f64::from(work.copied) + ends * f64::from(warps) / f64::from(steps));
        let fresh = (bytes as f64 / asked.max(1.0)).min(1.0);
        // Cycles of so many blocks on each of the multiprocessors, of so many blocks in all.
        let cycles = |each: u32, of: u64| {
            // Who has nothing to do leaves the others its share.
            let ours = self.copy / self.clock * f64::from(each) / of as f64;
            let memory = Memory::of(ours, fresh);
            let run = Run {
                kernel,
                roles,
                multiprocessor: Multiprocessor { tensor: 0, memory },
                warps,
                blocks: each,
                copied: f64::from(work.copied),
                written: f64::from(block.shared) / roles.places as f64,
            };
            run.all(tiles, steps)
        };
        let wave = u64::from(self.multiprocessors) * u64::from(resident);
        let (waves, rest) = (blocks / wave, blocks % wave);
        let (mut total, mut step) = (0.0, 0.0);
        if waves > 0 {
            let (wave, each) = cycles(resident, wave);
            (total, step) = (waves as f64 * wave, each);
        }
        if rest > 0 {
            let each = rest.div_ceil(u64::from(self.multiprocessors)) as u32;
            let (last, of_step) = cycles(each, rest);
            total += last;
            step = if waves == 0 { of_step } else { step };
        }
        if total >= u64::MAX as f64 {
            // Everybody waits for somebody else: the kernel has more rings than one, or turns.
            return Prediction { seconds: f64::INFINITY, resident, ..Prediction::default() };
        }
        // The share of the cycles in which the tensor cores are busy. From half of them on the clock is
        // lowered for it.
        let busy = blocks as f64 * f64::from(work.steps) * work.products * f64::from(warps)
            / (f64::from(self.multiprocessors) * total);
        let clock = self.clock - (self.clock - self.heavy) * (2.0 * busy - 1.0).clamp(0.0, 1.0);
        let least = bytes as f64 / self.copy;
        let seconds = (total / clock).max(least) + crate::predict::BETWEEN;
        Prediction { seconds, resident, step, instructions: roles.instructions(&kernel.code) }
    }
}

/// Bytes that an instruction of a warp asks for itself.
fn asked(instruction: &Instruction) -> f64 {
    match instruction.unit {
        Unit::Load(bytes) | Unit::Store(bytes) => f64::from(bytes),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::Roles;
    use crate::{Instruction, Kernel, MainLoops, Unit, Work};

    /// A kernel of one letter an instruction: `H` a product of 64 by 128, `B` a box, `P` a phase, `A` an
    /// arrival, `X` a barrier that is made, `E` the end; `b3` goes back by three, `u3` always, `f3` forward.
    fn kernel(text: &str) -> Kernel {
        let mut code = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let (op, unit) = match letter {
                'H' => ("HGMMA.64x128x16.F32.BF16", Unit::Warpgroup { columns: 128, ends: true }),
                'B' => ("UTMALDG.2D", Unit::Box),
                'P' => ("SYNCS.PHASECHK", Unit::Phase),
                'A' => ("SYNCS.ARRIVE", Unit::Arrival),
                'X' => ("SYNCS.EXCH.64", Unit::None),
                'E' => ("EXIT", Unit::None),
                _ => ("BRA", Unit::None),
            };
            let far = |letters: &mut std::str::Chars| letters.next().unwrap().to_digit(36).unwrap();
            let target = match letter {
                'b' | 'u' => Some(code.len() - far(&mut letters) as usize),
                'f' => Some(code.len() + far(&mut letters) as usize),
                _ => None,
            };
            let guarded = matches!(letter, 'b' | 'f');
            let (op, stall, waits, writes, reads) = (op.into(), 1, 0, None, None);
            code.push(Instruction { op, guarded, target, unit, stall, waits, writes, reads });
        }
        Kernel { name: "k".into(), code }
    }

    #[test]
    fn roles_have_their_loops_and_paths() {
        // Two barriers; a branch to who copies; two steps an iteration, one left, the next tile; the
        // copies of a step; and where a wait goes on behind the end.
        let kernel = kernel("XXff.PHAPHAb6f4PHAbcEPABb3EPb1uj");
        let loops = kernel.main_loops().unwrap();
        assert_eq!(loops, MainLoops { multiplies: 4..11, copies: 17..21, steps: 2 });
        let work = Work { products: 16.0, ..Work::default() };
        let roles = Roles::of(&kernel, work).unwrap();
        assert_eq!((roles.places, roles.unrolled), (1, 2));
        let path =
            |shape: &super::Shape, tiles| shape.repeated(tiles).path(&kernel, shape.trips(4)).0;
        let tile = [vec![3], (4..11).collect::<Vec<_>>().repeat(2), vec![11, 15]].concat();
        let path_of = |tiles| [vec![0, 1, 2], tile.repeat(tiles), vec![16]].concat();
        assert_eq!(path(&roles.multiplies, 1), path_of(1));
        assert_eq!(path(&roles.multiplies, 3), path_of(3));
        let copied = [vec![0, 1, 2], [17, 18, 19, 20].repeat(4), vec![21]].concat();
        assert_eq!(path(&roles.copies, 1), copied);
        assert!(Roles::of(&super::tests::kernel("Eu1"), work).is_none());
    }
}
