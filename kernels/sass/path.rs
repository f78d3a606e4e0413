//! The way of a warp through a kernel.
//!
//! The model does not compute, so it cannot know which way a branch goes. It assumes: the main loop,
//! the one with the most products or loads, runs as often as the launch needs; a loop inside it
//! that has products, as often as the rest of its products needs; others once. A branch forward is
//! taken if it leaves out what is rare: calls (slow paths of divisions), the end of the thread, or
//! the masking of the last keys, of which more than a fifth are selections. All others are not
//! taken.

use crate::{Instruction, Kernel, Unit};
use std::ops::Range;

/// What a warp has to do in the main loop.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Iterations, as the source writes them, in the mean over all blocks.
    pub steps: u32,
    /// Iterations of the block that has most.
    pub longest: u32,
    /// Products of 16 by 8 by 16 in each, if it has any.
    pub products: f64,
    /// Tiles of the block that has most, whose iterations those are; on Hopper.
    pub tiles: u32,
    /// Bytes that a block's copies of boxes ask for in each iteration.
    pub copied: u32,
}

/// Indices of instructions, in the order in which a warp issues them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub(crate) Vec<u32>);

/// Instructions `first..=last` of which the last goes back to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loop {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl Loop {
    fn contains(self, at: usize) -> bool {
        (self.first..=self.last).contains(&at)
    }

    pub(crate) fn inside(self, other: Self) -> bool {
        self != other && other.contains(self.first) && other.contains(self.last)
    }
}

/// Loops by their first instruction; those that begin at the same one are one.
pub(crate) fn loops(code: &[Instruction]) -> Vec<Loop> {
    let mut all: Vec<Loop> = Vec::new();
    for (last, instruction) in code.iter().enumerate() {
        // A branch to itself stands behind the end of the code.
        let Some(first) = instruction.target.filter(|first| *first < last) else { continue };
        match all.iter_mut().find(|known| known.first == first) {
            Some(known) => known.last = last,
            None => all.push(Loop { first, last }),
        }
    }
    all
}

fn products(code: &[Instruction]) -> usize {
    code.iter().filter(|i| i.unit == Unit::Tensor).count()
}

fn loads(code: &[Instruction]) -> u32 {
    let bytes = |i: &Instruction| match i.unit {
        Unit::Load(bytes) | Unit::Copy(bytes) => bytes,
        _ => 0,
    };
    code.iter().map(bytes).sum()
}

/// A kernel's loops, and how often each runs.
pub(crate) struct Shape {
    loops: Vec<Loop>,
    main: Option<usize>,
    /// Iterations of a loop inside the main one, and of the main loop for a step.
    inner: u32,
    per_step: f64,
    /// Iterations of a loop around the main one, where warps have roles.
    around: Option<u32>,
}

impl Shape {
    pub(crate) fn of(kernel: &Kernel, work: Work) -> Self {
        let loops = loops(&kernel.code);
        let body = |l: &Loop| &kernel.code[l.first..=l.last];
        let weight = |l: &Loop| (products(body(l)), loads(body(l)), l.last - l.first);
        let main = (0..loops.len()).max_by_key(|n| weight(&loops[*n]));
        let (mut inner, mut per_step) = (1, 1.0);
        if let Some(main) = main.map(|n| loops[n]) {
            let inside = loops.iter().filter(|l| l.inside(main)).map(|l| products(body(l)));
            let (all, nested) = (products(body(&main)), inside.max().unwrap_or(0));
            if work.products > 0.0 && nested > 0 {
                let left = work.products - (all - nested) as f64;
                inner = (left / nested as f64).round().max(1.0) as u32;
            } else if work.products > 0.0 && all > 0 {
                per_step = work.products / all as f64;
            }
        }
        Self { loops, main, inner, per_step, around: None }
    }

    /// The loops of warps with a role, of which the one with this number is the main one.
    pub(crate) fn role(loops: Vec<Loop>, main: usize, per_step: f64) -> Self {
        Self { loops, main: Some(main), inner: 1, per_step, around: Some(1) }
    }

    /// The same, where the loops around the main one run so often.
    pub(crate) fn repeated(&self, times: u32) -> Self {
        let loops = self.loops.clone();
        Self { loops, around: Some(times), ..*self }
    }

    /// The instructions of the main loop.
    pub(crate) fn range(&self) -> Range<usize> {
        self.main.map_or(0..0, |main| self.loops[main].first..self.loops[main].last + 1)
    }

    /// Iterations of the main loop for a step.
    pub(crate) fn per_step(&self) -> f64 {
        self.per_step
    }

    /// How often the main loop runs for so many steps.
    pub(crate) fn trips(&self, steps: u32) -> u32 {
        (f64::from(steps) * self.per_step).round().max(1.0) as u32
    }

    fn times(&self, code: &[Instruction], index: usize, trips: u32) -> u32 {
        let this = self.loops[index];
        match self.main {
            Some(main) if main == index => trips,
            Some(main) if self.loops[main].inside(this) => self.around.unwrap_or(1),
            Some(main)
                if this.inside(self.loops[main]) && products(&code[this.first..=this.last]) > 0 =>
            {
                self.inner
            }
            _ => 1,
        }
    }

    /// The path with so many iterations of the main loop.
    pub(crate) fn path(&self, kernel: &Kernel, trips: u32) -> Path {
        let code = &kernel.code;
        let mut done = vec![0; self.loops.len()];
        let (mut path, mut at) = (Vec::new(), 0);
        while let Some(instruction) = code.get(at) {
            path.push(at as u32);
            let next = match instruction.target {
                None if instruction.base() == "EXIT" && !instruction.guarded => break,
                None => at + 1,
                Some(target) if target > at => {
                    if instruction.guarded && !self.leaves_out(code, at, target) {
                        at + 1
                    } else {
                        target
                    }
                }
                Some(target) => match self.loops.iter().position(|l| l.first == target) {
                    // A loop whose last branch this is not goes round once more in it.
                    Some(index) => {
                        done[index] += 1;
                        if done[index] < self.times(code, index, trips) {
                            target
                        } else {
                            done[index] = 0;
                            self.after(code, index, at)
                        }
                    }
                    None => break,
                },
            };
            at = next;
        }
        Path(path)
    }

    /// Where a loop ends that is left from its branch back at `at`.
    fn after(&self, code: &[Instruction], index: usize, at: usize) -> usize {
        let this = self.loops[index];
        if code[at].guarded {
            return at + 1;
        }
        let exits = code[this.first..=this.last].iter().filter_map(|i| i.target);
        exits.filter(|target| *target > this.last).min().unwrap_or(at + 1)
    }

    /// Whether a branch from `at` to `target` leaves out what is rare.
    fn leaves_out(&self, code: &[Instruction], at: usize, target: usize) -> bool {
        let between = &code[at + 1..target.min(code.len())];
        let leaves_loop = self.loops.iter().any(|l| l.contains(at) && target > l.last);
        // Whether a branch passes the main loop.
        let passes = |from: usize, to: usize| {
            self.main.is_some_and(|n| (from + 1..to).contains(&self.loops[n].first))
        };
        if leaves_loop || passes(at, target) {
            return false;
        }
        if let (Some(main), Some(_)) = (self.main.map(|n| self.loops[n]), self.around) {
            // Another role's instructions, or those of steps that are left by an unrolled loop.
            let another = |i: &Instruction| matches!(i.unit, Unit::Warpgroup { .. } | Unit::Box);
            if !main.contains(at) && between.iter().any(another) {
                return true;
            }
            // Behind the main loop there may be several ends.
            if at > main.last {
                return between.iter().any(|i| i.base() == "CALL");
            }
        }
        let ends = |i: &Instruction| {
            let gone = !i.guarded && i.target.is_some_and(|to| passes(at, to));
            i.base() == "CALL" || (i.base() == "EXIT" && !i.guarded) || gone
        };
        let selects = between.iter().filter(|i| matches!(i.base(), "FSEL" | "SEL")).count();
        let works = |i: &Instruction| {
            matches!(i.unit, Unit::Tensor | Unit::Copy(_) | Unit::Store(_) | Unit::Barrier)
        };
        between.iter().any(ends) || (5 * selects > between.len() && !between.iter().any(works))
    }
}

#[cfg(test)]
mod tests {
    use super::{Shape, Work};
    use crate::{Instruction, Kernel, Unit};

    /// A kernel of one letter an instruction: `T` a product, `L` a load, `S` a selection, `.` another,
    /// `E` the end; `b3` goes back by three, `f3` forward by three, `F` for `f` always.
    fn kernel(text: &str) -> Kernel {
        let mut code = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let (op, unit) = match letter {
                'T' => ("HMMA", Unit::Tensor),
                'L' => ("LDG", Unit::Load(512)),
                'S' => ("FSEL", Unit::Integer),
                'E' => ("EXIT", Unit::None),
                'b' | 'f' | 'F' => ("BRA", Unit::None),
                _ => ("NOP", Unit::None),
            };
            let target = (op == "BRA").then(|| {
                let far = letters.next().and_then(|digit| digit.to_digit(10)).unwrap() as usize;
                if letter == 'b' { code.len() - far } else { code.len() + far }
            });
            let guarded = op == "BRA" && letter != 'F';
            let (op, waits) = (op.into(), 0);
            let (writes, reads, stall) = (None, None, 1);
            code.push(Instruction { op, guarded, target, unit, stall, waits, writes, reads });
        }
        Kernel { name: "k".into(), code }
    }

    fn path(text: &str, trips: u32, products: f64) -> Vec<u32> {
        let (kernel, work) =
            (kernel(text), Work { steps: trips, longest: trips, products, ..Work::default() });
        let shape = Shape::of(&kernel, work);
        shape.path(&kernel, shape.trips(trips)).0
    }

    #[test]
    fn the_main_loop_runs_as_often_as_asked() {
        // The loop with loads is the main one; the other runs once.
        assert_eq!(path("..b1Lb1E", 3, 0.0), [0, 1, 2, 3, 4, 3, 4, 3, 4, 5]);
        // Two products are unrolled: half as many iterations.
        assert_eq!(path("TTb2E", 4, 1.0), [0, 1, 2, 0, 1, 2, 3]);
        // A loop inside it has what is left of the products: three times one.
        assert_eq!(path("TTb1b3E", 1, 4.0), [0, 1, 2, 1, 2, 1, 2, 3, 4]);
    }

    #[test]
    fn what_is_rare_is_left_out() {
        // Selections, and what ends the thread; not loads, nor the main loop.
        assert_eq!(path("Tf3SSb4E", 1, 1.0), [0, 1, 4, 5]);
        assert_eq!(path("f2ETb1E", 1, 1.0), [0, 2, 3, 4]);
        assert_eq!(path("Tf2Lb3E", 1, 1.0), [0, 1, 2, 3, 4]);
        assert_eq!(path("f3Tb1E", 1, 1.0), [0, 1, 2, 3]);
        // What passes the main loop for good.
        assert_eq!(path("f3.F4Tb1.E", 1, 1.0), [0, 3, 4, 5, 6]);
    }
}
