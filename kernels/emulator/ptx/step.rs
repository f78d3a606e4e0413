//! What each instruction does.

use crate::cluster::Cluster;
use crate::hopper::Hopper;
use crate::memory::Access;
use crate::op::{Binary, Op, Shuffle, Space, Type, Vote};
use crate::parse::{Instruction, Operand};
use crate::value::{self, low};
use crate::warp::{Copies, Copy, LANES, Lanes, State, Warp, each};
use crate::{Error, Result, matrix};

impl Warp<'_> {
    /// Takes one instruction.
    pub(crate) fn step(
        &mut self,
        instruction: &Instruction,
        code: usize,
        mut active: u32,
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        self.go_to(active, code + 1);
        if let Some((register, not)) = instruction.guard {
            let guard = self.registers[register];
            for lane in each(active) {
                if (guard[lane] & 1 != 0) == not {
                    active &= !(1 << lane);
                }
            }
        }
        self.count(instruction, active);
        let is_product = matches!(instruction.op, Op::Hopper(Hopper::Product(_)));
        if self.launch.entry.multiplies && active != 0 && !is_product {
            instruction.operands.iter().try_for_each(|one| self.products.touch(one))?;
        }
        let args = &instruction.operands;
        let expected = |count: usize| match args.len() >= count {
            true => Ok(()),
            false => Err(Error(format!("expected {count} operands, found {}", args.len()))),
        };
        match instruction.op {
            Op::Jump => {
                expected(1)?;
                let Operand::Number(to) = args[0] else {
                    return Err(Error("a jump to no label".into()));
                };
                self.go_to(active, to as usize);
            }
            Op::Return => {
                for lane in each(active) {
                    self.at.1 = lane;
                    let Copies { open, groups } = &self.copies[lane];
                    if !open.is_empty() || groups.iter().any(|group| !group.is_empty()) {
                        return Err(Error("ends with cp.async not waited for".into()));
                    }
                }
                if self.products.is_under_way() {
                    return Err(Error("ends with a wgmma not waited for".into()));
                }
                self.set_state(active, State::Ended);
            }
            Op::Barrier { waits } => self.barrier(args, active, waits, cluster)?,
            Op::Hopper(op) => self.hopper(op, instruction, code, active, cluster)?,
            Op::WarpBarrier | Op::Fence => {}
            Op::CopyCommit => {
                for lane in each(active) {
                    let Copies { open, groups } = &mut self.copies[lane];
                    groups.push_back(std::mem::take(open));
                }
            }
            Op::CopyWait | Op::CopyWaitAll => {
                let left = match instruction.op {
                    Op::CopyWait => {
                        expected(1)?;
                        self.read(&args[0])[0] as usize
                    }
                    _ => 0,
                };
                for lane in each(active) {
                    self.at.1 = lane;
                    if instruction.op == Op::CopyWaitAll {
                        let Copies { open, groups } = &mut self.copies[lane];
                        groups.push_back(std::mem::take(open));
                    }
                    while self.copies[lane].groups.len() > left {
                        let group = self.copies[lane].groups.pop_front().unwrap_or_default();
                        group.into_iter().try_for_each(|copy| self.arrive(copy, cluster))?;
                    }
                }
            }
            Op::CopyAsync => {
                expected(3)?;
                let (to, from, bytes) =
                    (self.read(&args[0]), self.read(&args[1]), self.read(&args[2]));
                let read = args.get(3).map_or(bytes, |read| self.read(read));
                self.count_access(Space::Shared, &to, active, 16);
                let reads = each(active).filter(|lane| read[*lane] > 0);
                let reads = reads.fold(0, |lanes, lane| lanes | 1 << lane);
                self.count_access(Space::Global, &from, reads, 16);
                for lane in each(active) {
                    self.at.1 = lane;
                    let copy = Copy {
                        to: to[lane],
                        from: from[lane],
                        read: read[lane],
                        bytes: bytes[lane],
                    };
                    if copy.read > copy.bytes || ![4, 8, 16].contains(&copy.bytes) {
                        let Copy { read, bytes, .. } = copy;
                        return Err(Error(format!(
                            "a cp.async of {bytes} that reads {read} bytes"
                        )));
                    }
                    // Whatever arrives is written by this warp; until then nobody may look.
                    let (to, bytes) = (copy.to, copy.bytes);
                    cluster.touch(self.rank, self.agent, to, bytes, Access::Write)?.fill(0xff);
                    cluster.blocks[self.rank].shared.under_way(copy.to, copy.bytes, true);
                    self.copies[lane].open.push(copy);
                }
            }
            Op::Load(space, kind, count) => {
                expected(2)?;
                let mut found = [[0; LANES]; 4];
                let at = self.read(&args[1]);
                self.count_access(space, &at, active, kind.bytes() * count as u64);
                for lane in each(active) {
                    self.at.1 = lane;
                    let mut bytes = [0; 16];
                    let size = kind.bytes() as usize * count;
                    self.load(space, at[lane], lane, &mut bytes[..size], cluster)?;
                    for (found, part) in found.iter_mut().zip(bytes[..size].chunks(size / count)) {
                        let mut word = [0; 8];
                        word[..part.len()].copy_from_slice(part);
                        found[lane] = u64::from_le_bytes(word);
                        if let Type::Signed(bits) = kind {
                            found[lane] = value::binary(
                                Binary::ShiftRight,
                                Type::Signed(64),
                                found[lane] << (64 - bits),
                                u64::from(64 - bits),
                            );
                        }
                    }
                }
                match &args[0] {
                    Operand::List(list) if count > 1 => {
                        for (to, found) in list.iter().zip(&found) {
                            self.write(to, found, active);
                        }
                    }
                    to => self.write(to, &found[0], active),
                }
            }
            Op::Store(space, kind, count) => {
                expected(2)?;
                let at = self.read(&args[0]);
                self.count_access(space, &at, active, kind.bytes() * count as u64);
                let mut parts = [[0; LANES]; 4];
                match &args[1] {
                    Operand::List(list) if count > 1 => {
                        for (part, one) in parts.iter_mut().zip(list) {
                            *part = self.read(one);
                        }
                    }
                    one => parts[0] = self.read(one),
                }
                let width = kind.bytes() as usize;
                for lane in each(active) {
                    self.at.1 = lane;
                    let mut bytes = [0; 16];
                    for (bytes, part) in bytes.chunks_mut(width).zip(&parts) {
                        bytes.copy_from_slice(&part[lane].to_le_bytes()[..width]);
                    }
                    self.store(space, at[lane], lane, &bytes[..width * count], cluster)?;
                }
            }
            Op::Atomic(space, op, kind) => {
                expected(3)?;
                let (at, by) = (self.read(&args[1]), self.read(&args[2]));
                let change = |old: u64, lane: usize| value::binary(op, kind, old, by[lane]);
                self.atomic(space, kind, &at, active, &change, &args[0], cluster)?;
            }
            Op::AtomicSwapIf(space, kind) => {
                expected(4)?;
                let (at, if_is, to) =
                    (self.read(&args[1]), self.read(&args[2]), self.read(&args[3]));
                let change = |old: u64, lane: usize| {
                    if old == low(if_is[lane], kind.bits()) { to[lane] } else { old }
                };
                self.atomic(space, kind, &at, active, &change, &args[0], cluster)?;
            }
            Op::LoadMatrix(count, transposed) => {
                expected(2)?;
                let at = self.read(&args[1]);
                let mut rows = [[0; 16]; LANES];
                let rows = &mut rows[..8 * count];
                self.counts.shared(&at[..8 * count], 16);
                for (lane, row) in rows.iter_mut().enumerate() {
                    self.at.1 = lane;
                    let bytes = cluster.touch(self.rank, self.agent, at[lane], 16, Access::Read)?;
                    row.copy_from_slice(bytes);
                }
                for (to, rows) in list(&args[0]).iter().zip(rows.chunks(8)) {
                    self.write(to, &matrix::fragment(rows, transposed), active);
                }
            }
            Op::Multiply16x8x16 => {
                expected(4)?;
                let mut room = [[0; LANES]; 10];
                let (of_a, rest) = room.split_at_mut(4);
                let (of_b, of_c) = rest.split_at_mut(2);
                let a = self.all(&args[1], of_a)?;
                let (b, c) = (self.all(&args[2], of_b)?, self.all(&args[3], of_c)?);
                let d = matrix::multiply(a, b, c);
                for (to, d) in list(&args[0]).iter().zip(&d) {
                    self.write(to, d, active);
                }
            }
            Op::Shuffle(how) => {
                expected(5)?;
                let (from, by) = (self.read(&args[1]), self.read(&args[2]));
                let (clamp, mask) = (self.read(&args[3]), self.read(&args[4]));
                let (mut found, mut valid) = ([0; LANES], [0; LANES]);
                for lane in each(active) {
                    self.at.1 = lane;
                    let (by, clamp) = (by[lane] as usize & 31, clamp[lane] as usize);
                    let segment = clamp >> 8 & 31;
                    let most = lane & segment | clamp & 31 & !segment;
                    let (other, inside) = match how {
                        Shuffle::Up => (lane.wrapping_sub(by), lane >= by + most),
                        Shuffle::Down => (lane + by, lane + by <= most),
                        Shuffle::Butterfly => (lane ^ by, lane ^ by <= most),
                        Shuffle::Index => {
                            let other = lane & segment | by & !segment;
                            (other, other <= most)
                        }
                    };
                    let other = if inside { other } else { lane };
                    if mask[lane] >> other & 1 == 0 || active >> other & 1 == 0 {
                        return Err(Error(format!(
                            "takes a value from lane {other}, which is not there"
                        )));
                    }
                    (found[lane], valid[lane]) = (from[other], u64::from(inside));
                }
                match &args[0] {
                    Operand::List(both) if both.len() == 2 => {
                        self.write(&both[0], &found, active);
                        self.write(&both[1], &valid, active);
                    }
                    to => self.write(to, &found, active),
                }
            }
            Op::Vote(how) => {
                expected(3)?;
                let votes = self.read(&args[1]);
                let yes = each(active).fold(0, |yes, lane| yes | (votes[lane] & 1) << lane);
                let found = match how {
                    Vote::Ballot => yes,
                    Vote::All => u64::from(yes == u64::from(active)),
                    Vote::Any => u64::from(yes != 0),
                };
                self.write(&args[0], &[found; LANES], active);
            }
            op => {
                expected(2)?;
                let mut found = [0; LANES];
                self.compute(op, &args[1..], &mut found)?;
                self.write(&args[0], &found, active);
            }
        }
        Ok(())
    }

    fn count(&mut self, instruction: &Instruction, active: u32) {
        let counts = &mut self.counts;
        counts.instructions += 1;
        match instruction.op {
            Op::Multiply16x8x16 | Op::Hopper(Hopper::Product(_)) => counts.products += 1,
            Op::Barrier { .. } => counts.barriers += 1,
            _ => {}
        }
        // A guard parts no lanes: the others pass the instruction, too.
        counts.parted += u64::from(instruction.guard.is_none() && active != self.alive);
    }

    fn count_access(&mut self, space: Space, at: &Lanes, active: u32, bytes: u64) {
        if !matches!(space, Space::Global | Space::Shared) {
            return;
        }
        let (mut places, mut count) = ([0; LANES], 0);
        for lane in each(active) {
            places[count] = at[lane];
            count += 1;
        }
        match space {
            Space::Global => self.counts.global(&places[..count], bytes),
            _ => self.counts.shared(&places[..count], bytes),
        }
    }

    /// Returns the registers of a list, or others in `room`.
    fn all<'a, const N: usize>(
        &'a self,
        operand: &Operand,
        room: &'a mut [Lanes],
    ) -> Result<[&'a Lanes; N]> {
        let list = list(operand);
        if list.len() != N || room.len() != N {
            return Err(Error(format!("expected {N} registers")));
        }
        let mut room = room.iter_mut();
        let mut found = [const { &[0; LANES] }; N];
        for (found, (one, room)) in found.iter_mut().zip(list.iter().zip(&mut room)) {
            *found = self.get(Some(one), room);
        }
        Ok(found)
    }
}

/// Returns the operands of a list, or the one.
fn list(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::List(list) => list,
        one => std::slice::from_ref(one),
    }
}
