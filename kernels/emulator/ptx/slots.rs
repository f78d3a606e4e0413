//! Which registers of the text share a place. Compilers name a register for each value, several
//! thousand of 256 bytes for a warp, of which few hold a value at the same time: in few places, all
//! of a warp's registers stay in the caches.
//!
//! A register that a lane may read before it has written it is there from the beginning, so what it
//! holds is still no number. Registers of `wgmma`, which are changed later than the text says, have
//! a place of their own.

use crate::hopper::Hopper;
use crate::op::Op;
use crate::parse::{Instruction, Operand};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A set of registers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(registers: usize) -> Self {
        Self(vec![0; registers.div_ceil(64)])
    }

    fn put(&mut self, register: usize, is_in: bool) {
        let bit = 1 << (register % 64);
        match is_in {
            true => self.0[register / 64] |= bit,
            false => self.0[register / 64] &= !bit,
        }
    }

    /// Adds another; returns whether it grew.
    fn join(&mut self, other: &Self) -> bool {
        let mut grew = false;
        for (mine, other) in self.0.iter_mut().zip(&other.0) {
            grew |= *other & !*mine != 0;
            *mine |= other;
        }
        grew
    }

    fn each(&self) -> impl Iterator<Item = usize> {
        let bits = |(i, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 64 * i + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

/// Calls `f` with each register of an operand.
fn registers(operand: &Operand, f: &mut impl FnMut(usize)) {
    match operand {
        Operand::Register(register) => f(*register),
        Operand::Address(base, _) => registers(base, f),
        Operand::List(list) => list.iter().for_each(|one| registers(one, f)),
        Operand::Number(_) | Operand::Special(_) => {}
    }
}

/// Whether an instruction only writes its first operand, in all lanes that take it.
fn writes(instruction: &Instruction) -> bool {
    let others = matches!(
        instruction.op,
        Op::Store(..)
            | Op::Atomic(..)
            | Op::AtomicSwapIf(..)
            | Op::CopyAsync
            | Op::CopyCommit
            | Op::CopyWait
            | Op::CopyWaitAll
            | Op::Barrier { .. }
            | Op::WarpBarrier
            | Op::Hopper(_)
            | Op::Fence
            | Op::Jump
            | Op::Return
    );
    instruction.guard.is_none() && !others
}

/// A stretch of code without a jump into it or out of it.
struct Block {
    first: usize,
    end: usize,
    next: Vec<usize>,
    /// Registers that it reads before it writes them, and those that it writes before it reads
    /// them.
    reads: Set,
    writes: Set,
    /// Registers that hold a value at its beginning, and at its end.
    before: Set,
    after: Set,
}

fn blocks(code: &[Instruction], count: usize) -> Vec<Block> {
    let target = |one: &Instruction| match (one.op, one.operands.first()) {
        (Op::Jump, Some(Operand::Number(to))) => Some(*to as usize),
        _ => None,
    };
    let leaves = |one: &Instruction| matches!(one.op, Op::Jump | Op::Return);
    let mut firsts: BTreeSet<usize> = code.iter().filter_map(target).collect();
    firsts.insert(0);
    firsts.extend((0..code.len()).filter(|i| leaves(&code[*i])).map(|i| i + 1));
    let firsts: Vec<usize> = firsts.into_iter().filter(|first| *first < code.len()).collect();
    let number: BTreeMap<usize, usize> = firsts.iter().copied().zip(0..).collect();
    let block = |(i, first): (usize, &usize)| {
        let end = firsts.get(i + 1).copied().unwrap_or(code.len());
        let last = &code[end - 1];
        let goes_on = !leaves(last) || last.guard.is_some();
        let mut next: Vec<usize> =
            target(last).and_then(|to| number.get(&to).copied()).into_iter().collect();
        next.extend((goes_on && i + 1 < firsts.len()).then_some(i + 1));
        let (mut reads, mut written) = (Set::new(count), Set::new(count));
        for one in code[*first..end].iter().rev() {
            let to = one.operands.first().filter(|_| writes(one));
            if let Some(to) = to {
                registers(to, &mut |register| {
                    reads.put(register, false);
                    written.put(register, true);
                });
            }
            let mut read = |register| {
                reads.put(register, true);
                written.put(register, false);
            };
            let from = &one.operands[usize::from(to.is_some())..];
            from.iter().for_each(|operand| registers(operand, &mut read));
            if let Some((register, _)) = one.guard {
                read(register);
            }
        }
        let (before, after) = (reads.clone(), Set::new(count));
        Block { first: *first, end, next, reads, writes: written, before, after }
    };
    firsts.iter().enumerate().map(block).collect()
}

/// Finds which registers hold values at the borders of blocks.
fn flow(blocks: &mut [Block]) {
    let mut changed = true;
    while changed {
        changed = false;
        for i in (0..blocks.len()).rev() {
            let mut after = std::mem::replace(&mut blocks[i].after, Set(Vec::new()));
            let mut grew = false;
            for n in 0..blocks[i].next.len() {
                grew |= after.join(&blocks[blocks[i].next[n]].before);
            }
            if grew {
                let Block { reads, writes, before, .. } = &mut blocks[i];
                let passed = after.0.iter().zip(&writes.0).zip(&reads.0);
                for (before, ((after, writes), reads)) in before.0.iter_mut().zip(passed) {
                    *before = after & !writes | reads;
                }
                changed = true;
            }
            blocks[i].after = after;
        }
    }
}

/// Gives registers places, and returns the bits of each place.
pub(crate) fn share(code: &mut [Instruction], bits: &[u32]) -> Vec<u32> {
    let mut blocks = blocks(code, bits.len());
    flow(&mut blocks);
    // From where to where in the text each register may hold a value.
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; bits.len()];
    let mut extend = |register: usize, at: usize| {
        let (first, last) = spans[register].unwrap_or((at, at));
        spans[register] = Some((first.min(at), last.max(at)));
    };
    for (at, one) in code.iter().enumerate() {
        let is_product = matches!(one.op, Op::Hopper(Hopper::Product(_)));
        for operand in &one.operands {
            registers(operand, &mut |register| {
                extend(register, at);
                if is_product {
                    extend(register, 0);
                    extend(register, code.len());
                }
            });
        }
        if let Some((register, _)) = one.guard {
            extend(register, at);
        }
    }
    for block in &blocks {
        block.before.each().for_each(|register| extend(register, block.first));
        block.after.each().for_each(|register| extend(register, block.end - 1));
    }
    // In the order of their beginnings, each gets a place that is free again.
    let mut order: Vec<(usize, usize, usize)> = Vec::new();
    for (register, span) in spans.iter().enumerate() {
        order.extend(span.map(|(first, last)| (first, last, register)));
    }
    order.sort_unstable();
    let (mut places, mut of) = (Vec::new(), vec![0; bits.len()]);
    // By bits: places, and when they are free, the earliest first.
    let mut used: BTreeMap<u32, BinaryHeap<std::cmp::Reverse<(usize, usize)>>> = BTreeMap::new();
    for (first, last, register) in order {
        let heap = used.entry(bits[register]).or_default();
        let place = match heap.peek() {
            Some(std::cmp::Reverse((free, place))) if *free < first => {
                let place = *place;
                heap.pop();
                place
            }
            _ => {
                places.push(bits[register]);
                places.len() - 1
            }
        };
        of[register] = place;
        heap.push(std::cmp::Reverse((last, place)));
    }
    for one in code {
        one.operands.iter_mut().for_each(|operand| rename(operand, &of));
        if let Some((register, _)) = &mut one.guard {
            *register = of[*register];
        }
    }
    places
}

fn rename(operand: &mut Operand, of: &[usize]) {
    match operand {
        Operand::Register(register) => *register = of[*register],
        Operand::Address(base, _) => rename(base, of),
        Operand::List(list) => list.iter_mut().for_each(|one| rename(one, of)),
        Operand::Number(_) | Operand::Special(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::parse;

    /// The bits of the places that a body's registers get.
    fn places(body: &str) -> Vec<u32> {
        let registers = ".reg .b32 %r<8>; .reg .pred %p<4>;";
        let text = format!(".visible .entry kernel() {{ {registers} {body} ret; }}");
        parse(&text).unwrap().remove(0).registers
    }

    #[test]
    fn values_that_follow_one_another_share_a_place() {
        let chain =
            "mov.u32 %r0, 1; add.u32 %r1, %r0, 1; add.u32 %r2, %r1, 1; add.u32 %r3, %r2, 1;";
        assert_eq!(places(chain), [32, 32]);
        // The first is read at the end, too.
        assert_eq!(places(&format!("{chain} add.u32 %r4, %r0, %r3;")), [32, 32, 32]);
        // A predicate has another width.
        assert_eq!(places("mov.u32 %r0, 1; setp.eq.u32 %p0, %r0, 1; not.pred %p1, %p0;").len(), 3);
    }

    /// What a loop carries from its end to its beginning is not written over in between, and what
    /// is only written where a guard holds keeps what it was.
    #[test]
    fn what_is_carried_has_a_place_of_its_own() {
        let carried = "mov.u32 %r0, 0; A: add.u32 %r1, %r0, 1; add.u32 %r2, %r1, 1; \
            mov.u32 %r0, %r2; setp.lt.u32 %p0, %r0, 9; @%p0 bra A; ";
        assert_eq!(places(carried).iter().filter(|bits| **bits == 32).count(), 3);
        let guarded = "mov.u32 %r0, 0; mov.u32 %r1, 1; setp.eq.u32 %p0, %r1, 1; \
            @%p0 mov.u32 %r0, 5; add.u32 %r2, %r1, %r0;";
        assert_eq!(places(guarded).iter().filter(|bits| **bits == 32).count(), 3);
        // One that may be read before it was written shares with nobody before.
        let unwritten = "mov.u32 %r0, 1; add.u32 %r1, %r0, 1; add.u32 %r3, %r1, %r2;";
        assert_eq!(places(unwritten), [32, 32, 32]);
    }
}
