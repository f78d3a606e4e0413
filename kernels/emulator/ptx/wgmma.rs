//! Products of a warpgroup (`wgmma`): four warps multiply together, asynchronously.
//!
//! A product reads shared memory when one of its warps waits for it, the latest that is allowed,
//! and its sums come into a warp's registers when that warp waits. Until then neither the registers
//! of the sums nor those of `a` may be touched. (PTX ISA, "Asynchronous warpgroup level matrix
//! instructions".)

use crate::cluster::Cluster;
use crate::descriptor::Descriptor;
use crate::matrix::half;
use crate::memory::Access;
use crate::order::Stamp;
use crate::parse::{Instruction, Operand};
use crate::value::float;
use crate::warp::{LANES, State, Wait, Warp};
use crate::{Error, Result};
use std::collections::VecDeque;

/// Warps of a warpgroup.
pub(crate) const WARPS: usize = 4;

/// Rows of a product, of a warp, and numbers that a product sums over.
const ROWS: usize = 64;
const OF_WARP: usize = ROWS / WARPS;
const DEEP: usize = 16;

/// What a warp brings to a product; all four bring the same.
#[derive(Clone, Copy, PartialEq)]
struct Part {
    line: u32,
    a: Option<u64>,
    b: u64,
    adds: bool,
}

/// Rows of `a`, of 16 numbers, and the 16 rows of `b`; no `a` if it is in registers.
type Operands = (Vec<f32>, Vec<f32>);

/// A product that is under way.
struct Product {
    number: u32,
    a: Option<Descriptor>,
    b: Descriptor,
    columns: usize,
    /// Its operands, once they were read.
    read: Option<Operands>,
    /// Warps that have not waited for it.
    left: usize,
}

/// A warpgroup's products.
#[derive(Default)]
pub(crate) struct Group {
    parts: [Option<Part>; WARPS],
    /// Products that all four warps have come to.
    pub(crate) begun: u32,
    under_way: VecDeque<Product>,
}

/// A product as one of its warps knows it.
struct Flight {
    number: u32,
    /// Of `sums`.
    sums: usize,
    columns: usize,
    /// Its rows of `a`, and the registers that they came from; empty if they are in shared memory.
    a: Vec<f32>,
    held: Vec<usize>,
    adds: bool,
    /// Of `a` and `b`.
    sign: f32,
}

/// Sums under way: registers, rows of values, and products that change them.
struct Sums {
    registers: Vec<usize>,
    values: Vec<f32>,
    products: usize,
}

/// The products of a warp.
#[derive(Default)]
pub(crate) struct Products {
    /// `wgmma.fence`s.
    fences: u32,
    /// By register: at how many fences it was touched last, and products that use it.
    touched: Vec<u32>,
    used: Vec<u32>,
    sums: Vec<Sums>,
    open: Vec<Flight>,
    groups: VecDeque<Vec<Flight>>,
}

impl Products {
    pub(crate) fn new(registers: usize) -> Self {
        Self { touched: vec![0; registers], used: vec![0; registers], ..Self::default() }
    }

    pub(crate) fn fence(&mut self) {
        self.fences += 1;
    }

    pub(crate) fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !self.open.is_empty() || self.groups.iter().any(|group| !group.is_empty())
    }

    /// An instruction touches the registers of an operand.
    ///
    /// # Errors
    /// When a product under way uses one.
    pub(crate) fn touch(&mut self, operand: &Operand) -> Result<()> {
        match operand {
            Operand::Register(register) => {
                self.touched[*register] = self.fences;
                match self.used[*register] {
                    0 => Ok(()),
                    _ => Err(Error(
                        "touches a register of a wgmma that has not been waited for".into(),
                    )),
                }
            }
            Operand::Address(base, _) => self.touch(base),
            Operand::List(list) => list.iter().try_for_each(|one| self.touch(one)),
            Operand::Number(_) | Operand::Special(_) => Ok(()),
        }
    }

    /// Returns the registers of an operand, which a product is about to use.
    fn fenced(&self, operand: &Operand, count: usize) -> Result<Vec<usize>> {
        let Operand::List(list) = operand else {
            return Err(Error("expected registers in braces".into()));
        };
        if list.len() != count {
            return Err(Error(format!("expected {count} registers, found {}", list.len())));
        }
        let register = |one: &Operand| match one {
            Operand::Register(register) if self.touched[*register] < self.fences => Ok(*register),
            Operand::Register(_) => Err(Error(
                "a wgmma on a register that was touched, and no wgmma.fence lies between".into(),
            )),
            _ => Err(Error("expected registers in braces".into())),
        };
        list.iter().map(register).collect()
    }
}

impl Warp<'_> {
    /// Comes to a product with `columns` columns; with the fourth warp it begins.
    pub(crate) fn multiply(
        &mut self,
        instruction: &Instruction,
        columns: usize,
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let args = &instruction.operands;
        let [sums, a, b, adds, signs @ ..] = &args[..] else {
            return Err(Error(format!("a wgmma with {} operands", args.len())));
        };
        let signs: Vec<i64> = signs.iter().map(|sign| self.read(sign)[0] as i64).collect();
        let (is_held, signs, across) = match (a, &signs[..]) {
            (Operand::List(_), [x, y, b]) => (true, [*x, *y], [0, *b]),
            (_, [x, y, a, b]) => (false, [*x, *y], [*a, *b]),
            _ => return Err(Error(format!("a wgmma with {} operands", args.len()))),
        };
        if signs.iter().any(|sign| ![1, -1].contains(sign))
            || across.iter().any(|is| !(0..2).contains(is))
        {
            return Err(Error("a wgmma whose signs are not 1 or -1, or order not 0 or 1".into()));
        }
        let group = self.number as usize / WARPS;
        let registers = self.products.fenced(sums, columns / 2)?;
        let held = if is_held { self.products.fenced(a, 4)? } else { Vec::new() };
        let flight = Flight {
            number: cluster.blocks[self.rank].groups[group].begun,
            sums: self.sums(registers, columns)?,
            columns,
            a: self.rows(&held),
            held,
            adds: self.same(adds)? & 1 != 0,
            sign: (signs[0] * signs[1]) as f32,
        };
        for register in &flight.held {
            if self.products.sums.iter().any(|sums| sums.registers.contains(register)) {
                return Err(Error("a wgmma that reads the sums of one under way".into()));
            }
            self.products.used[*register] += 1;
        }
        let part = Part {
            line: instruction.line,
            a: if is_held { None } else { Some(self.same(a)?) },
            b: self.same(b)?,
            adds: flight.adds,
        };
        let number = flight.number;
        self.products.open.push(flight);
        let descriptors = (
            part.a.map(|a| Descriptor::new(a, across[0] == 1)).transpose()?,
            Descriptor::new(part.b, across[1] == 1)?,
        );
        if !cluster.meet(self.rank, self.number as usize, part, descriptors, columns)? {
            self.set_state(u32::MAX, State::Waits(Wait::Group(group, number)));
        }
        Ok(())
    }

    /// Returns a register's value, which all lanes have.
    fn same(&self, operand: &Operand) -> Result<u64> {
        let lanes = self.read(operand);
        match lanes.iter().all(|lane| *lane == lanes[0]) {
            true => Ok(lanes[0]),
            false => Err(Error("a wgmma whose operands differ from lane to lane".into())),
        }
    }

    /// Returns which sums are in these registers, and takes their values out if none are under way.
    /// Lane l has in register 4 c + 2 h + i row l / 4 + 8 h, column 8 c + 2 (l % 4) + i.
    fn sums(&mut self, registers: Vec<usize>, columns: usize) -> Result<usize> {
        let all = &mut self.products.sums;
        if let Some(known) = all.iter().position(|sums| sums.registers == registers) {
            all[known].products += 1;
            return Ok(known);
        }
        let used = &mut self.products.used;
        if registers.iter().any(|register| used[*register] > 0) {
            return Err(Error("a wgmma on registers that another one under way uses".into()));
        }
        let mut values = vec![0.0; OF_WARP * columns];
        for (i, register) in registers.iter().enumerate() {
            used[*register] += 1;
            for (l, lane) in self.registers[*register].iter_mut().enumerate() {
                values[(l / 4 + i / 2 % 2 * 8) * columns + i / 4 * 8 + l % 4 * 2 + i % 2] =
                    float(*lane);
                *lane = u64::from(u32::MAX);
            }
        }
        // Places do not move while products use them.
        let sums = Sums { registers, values, products: 1 };
        match all.iter().position(|sums| sums.products == 0) {
            Some(free) => {
                all[free] = sums;
                Ok(free)
            }
            None => {
                all.push(sums);
                Ok(all.len() - 1)
            }
        }
    }

    /// Returns a warp's rows of `a` in registers, which lie as those of `mma.m16n8k16`.
    fn rows(&self, registers: &[usize]) -> Vec<f32> {
        let mut rows = vec![0.0; if registers.is_empty() { 0 } else { OF_WARP * DEEP }];
        for (i, register) in registers.iter().enumerate() {
            for (l, lane) in self.registers[*register].iter().enumerate() {
                let at = (l / 4 + i % 2 * 8) * DEEP + l % 4 * 2 + i / 2 * 8;
                (rows[at], rows[at + 1]) = (half(*lane, false), half(*lane, true));
            }
        }
        rows
    }

    /// Waits until at most `left` groups are under way.
    pub(crate) fn wait_products(&mut self, left: usize, cluster: &mut Cluster<'_>) -> Result<()> {
        while self.products.groups.len() > left {
            for flight in self.products.groups.pop_front().unwrap_or_default() {
                self.finish(flight, cluster)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, flight: Flight, cluster: &mut Cluster<'_>) -> Result<()> {
        let Products { used, sums, .. } = &mut self.products;
        let quarter = self.number as usize % WARPS;
        let columns = flight.columns;
        let sums = &mut sums[flight.sums];
        let mut add = |(a, b): &Operands| {
            let a = if a.is_empty() { &flight.a } else { &a[quarter * OF_WARP * DEEP..] };
            for (row, sums) in a.chunks_exact(DEEP).zip(sums.values.chunks_exact_mut(columns)) {
                // The order of the hardware's sum is not documented.
                let mut found = [0.0; 256];
                let found = &mut found[..columns];
                for (a, b) in row.iter().zip(b.chunks_exact(columns)) {
                    found.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                }
                for (sum, found) in sums.iter_mut().zip(found) {
                    *sum = flight.sign * *found + if flight.adds { *sum } else { 0.0 };
                }
            }
        };
        cluster.finish(self.rank, self.number as usize, flight.number, &mut add)?;
        sums.products -= 1;
        for register in &flight.held {
            used[*register] -= 1;
        }
        if sums.products > 0 {
            return Ok(());
        }
        for (i, register) in std::mem::take(&mut sums.registers).into_iter().enumerate() {
            used[register] -= 1;
            let lanes = &mut self.registers[register];
            for (l, lane) in lanes.iter_mut().enumerate().take(LANES) {
                let at = (l / 4 + i / 2 % 2 * 8) * columns + i / 4 * 8 + l % 4 * 2 + i % 2;
                *lane = u64::from(sums.values[at].to_bits());
            }
        }
        Ok(())
    }
}

impl Cluster<'_> {
    /// A warp comes to a product; returns whether it was the last of the four, and it begins.
    fn meet(
        &mut self,
        block: usize,
        warp: usize,
        part: Part,
        (a, b): (Option<Descriptor>, Descriptor),
        columns: usize,
    ) -> Result<bool> {
        let first = self.first_warp(block) + warp / WARPS * WARPS;
        let Self { blocks, order, .. } = self;
        let of_group = order.of_group(block, warp / WARPS);
        let block = &mut blocks[block];
        let group = &mut block.groups[warp / WARPS];
        group.parts[warp % WARPS] = Some(part);
        if let Some(other) = group.parts.iter().flatten().find(|other| **other != part) {
            return Err(Error(format!(
                "the warps of a warpgroup bring different operands to a wgmma, or other ones (lines {} \
                 and {} of the PTX)",
                part.line, other.line
            )));
        }
        if group.parts.contains(&None) {
            return Ok(false);
        }
        group.parts = [None; WARPS];
        let stamp = Stamp::new(of_group, group.begun + 1)?;
        // Each of the four warps must have been told that the operands are there.
        let common = order.common(first..first + WARPS);
        let parts = a.into_iter().flat_map(|a| a.parts(ROWS as u64));
        for (at, ..) in parts.chain(b.parts(columns as u64)) {
            block.shared.touch(order.by_async(&common, stamp), at, 16, Access::Read)?;
        }
        let number = group.begun;
        group.begun += 1;
        group.under_way.push_back(Product { number, a, b, columns, read: None, left: WARPS });
        Ok(true)
    }

    /// A warp has waited for a product: gives its operands, which are read now at the latest.
    fn finish(
        &mut self,
        block: usize,
        warp: usize,
        number: u32,
        add: &mut dyn FnMut(&Operands),
    ) -> Result<()> {
        let agent = self.order.of_group(block, warp / WARPS);
        let warp_of_all = self.first_warp(block) + warp;
        let Self { blocks, order, .. } = self;
        let block = &mut blocks[block];
        let products = &mut block.groups[warp / WARPS].under_way;
        let Some(at) = products.iter().position(|product| product.number == number) else {
            return Err(Error("waits for a wgmma that has not begun".into()));
        };
        let product = &mut products[at];
        let shared = &mut block.shared;
        let mut tile = |from: Descriptor, width: usize, by_depth: bool| {
            let mut tile = vec![0.0; width * DEEP];
            for (at, across, deep) in from.parts(width as u64) {
                let (across, deep) = (across as usize, deep as usize);
                for (i, number) in shared.bytes(at, 16).chunks_exact(2).enumerate() {
                    let (across, deep) = match from.is_across() {
                        true => (across + i, deep),
                        false => (across, deep + i),
                    };
                    let number = u32::from(u16::from_le_bytes([number[0], number[1]])) << 16;
                    let at = if by_depth { deep * width + across } else { across * DEEP + deep };
                    tile[at] = f32::from_bits(number);
                }
            }
            tile
        };
        let (a, b, columns) = (product.a, product.b, product.columns);
        let read = product.read.get_or_insert_with(|| {
            (a.map_or(Vec::new(), |a| tile(a, ROWS, false)), tile(b, columns, true))
        });
        add(read);
        product.left -= 1;
        if product.left == 0 {
            products.remove(at);
        }
        order.clock(warp_of_all).learn(agent, number + 1);
        Ok(())
    }
}
