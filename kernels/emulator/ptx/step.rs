//! What each instruction does.

use crate::cluster::Cluster;
use crate::hopper::Hopper;
use crate::memory::Access;
use crate::op::{Binary, Op, Shuffle, Space, Type, Vote};
use crate::parse::{Instruction, Operand};
use crate::tma::PARAMETERS;
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
        for lane in each(active) {
            self.next[lane] = code + 1;
        }
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
                let to = self.read(&args[0])[0] as usize;
                for lane in each(active) {
                    self.next[lane] = to;
                }
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
                let places = |at: &Lanes| each(active).map(|lane| at[lane]).collect::<Vec<_>>();
                self.counts.shared(&places(&to), 16);
                let reads = each(active).filter(|lane| read[*lane] > 0).map(|lane| from[lane]);
                self.counts.global(&reads.collect::<Vec<_>>(), 16);
                for lane in each(active) {
                    self.at.1 = lane;
                    let copy = Copy {
                        to: to[lane],
                        from: from[lane],
                        read: read[lane],
                        bytes: bytes[lane],
                    };
                    if copy.read > copy.bytes {
                        return Err(Error(format!("a cp.async that reads {} bytes", copy.read)));
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
                let at = self.read(&args[1]);
                self.count_access(space, &at, active, kind.bytes() * count as u64);
                let mut found = [[0; LANES]; 4];
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
                let parts: Vec<Lanes> = match &args[1] {
                    Operand::List(list) if count > 1 => list.iter().map(|x| self.read(x)).collect(),
                    one => vec![self.read(one)],
                };
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
                let mut rows = vec![[0; 16]; 8 * count];
                self.counts.shared(&at[..8 * count], 16);
                for (lane, row) in rows.iter_mut().enumerate() {
                    self.at.1 = lane;
                    let bytes = cluster.touch(self.rank, self.agent, at[lane], 16, Access::Read)?;
                    row.copy_from_slice(bytes);
                }
                let found = matrix::fragments(&rows, transposed);
                let list = list(&args[0]);
                for (to, found) in list.iter().zip(&found) {
                    self.write(to, found, active);
                }
            }
            Op::Multiply16x8x16 => {
                expected(4)?;
                let (a, b, c) = (self.all(&args[1])?, self.all(&args[2])?, self.all(&args[3])?);
                let d = matrix::multiply(&a, &b, &c);
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
                let found = self.compute(op, &args[1..])?;
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
        let running = self.states.iter().filter(|state| **state != State::Ended).count();
        counts.parted +=
            u64::from(instruction.guard.is_none() && (active.count_ones() as usize) < running);
    }

    fn count_access(&mut self, space: Space, at: &Lanes, active: u32, bytes: u64) {
        let places: Vec<u64> = each(active).map(|lane| at[lane]).collect();
        match space {
            Space::Global => self.counts.global(&places, bytes),
            Space::Shared => self.counts.shared(&places, bytes),
            Space::Param | Space::Local => {}
        }
    }

    /// Returns what an instruction computes that a lane takes by itself.
    fn compute(&self, op: Op, args: &[Operand]) -> Result<Lanes> {
        let [a, b, c, d] = std::array::from_fn(|i| match args.get(i) {
            Some(operand) => self.read(operand),
            None => [0; LANES],
        });
        let one = |f: &dyn Fn(u64) -> u64| a.map(f);
        let lanes = |f: &dyn Fn(usize) -> u64| std::array::from_fn(f);
        Ok(match op {
            Op::Move | Op::Address => a,
            Op::AddressOfParam => one(&|a| a + PARAMETERS),
            Op::Unary(op, kind) => one(&|a| value::unary(op, kind, a)),
            Op::Binary(op, kind) => lanes(&|l| value::binary(op, kind, a[l], b[l])),
            Op::MultiplyWide(kind) => lanes(&|l| value::multiply_wide(kind, a[l], b[l])),
            Op::MultiplyAdd(kind) => lanes(&|l| {
                let product = value::binary(Binary::Multiply, kind, a[l], b[l]);
                value::binary(Binary::Add, kind, product, c[l])
            }),
            Op::MultiplyAddWide(kind) => {
                lanes(&|l| value::multiply_wide(kind, a[l], b[l]).wrapping_add(c[l]))
            }
            Op::Fused(down) => lanes(&|l| value::fused(down, a[l], b[l], c[l])),
            Op::Logic3 => lanes(&|l| value::logic3(a[l], b[l], c[l], d[l])),
            Op::Permute => lanes(&|l| value::permute(a[l], b[l], c[l])),
            Op::InsertBits(kind) => lanes(&|l| value::insert_bits(kind, a[l], b[l], c[l], d[l])),
            Op::ExtractBits(kind) => lanes(&|l| value::extract_bits(kind, a[l], b[l], c[l])),
            Op::Compare(how, kind) => lanes(&|l| u64::from(value::compare(how, kind, a[l], b[l]))),
            Op::Select => lanes(&|l| if c[l] & 1 != 0 { a[l] } else { b[l] }),
            Op::Convert { to, from, round, saturate } => {
                one(&|a| value::convert(to, from, round, saturate, a))
            }
            Op::Narrow2 => lanes(&|l| {
                let [high, low] = [a[l], b[l]].map(|x| u64::from(value::bf16(value::float(x))));
                high << 16 | low
            }),
            op => return Err(Error(format!("{op:?} is no computation"))),
        })
    }

    fn all<const N: usize>(&self, operand: &Operand) -> Result<[Lanes; N]> {
        let found: Vec<Lanes> = list(operand).iter().map(|one| self.read(one)).collect();
        found.try_into().map_err(|_| Error(format!("expected {N} registers")))
    }
}

/// Returns the operands of a list, or the one.
fn list(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::List(list) => list,
        one => std::slice::from_ref(one),
    }
}
