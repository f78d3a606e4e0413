//! What a warp computes, all lanes at once.

use crate::op::{Binary, Compare, Op, Order, Type};
use crate::parse::Operand;
use crate::tma::PARAMETERS;
use crate::value::{self, low};
use crate::warp::{LANES, Lanes, Warp};
use crate::{Error, Result};

/// The lanes of one, two or three registers, each combined.
#[inline(always)]
fn one(a: &Lanes, to: &mut Lanes, f: impl Fn(u64) -> u64) {
    for l in 0..LANES {
        to[l] = f(a[l]);
    }
}

#[inline(always)]
fn two(a: &Lanes, b: &Lanes, to: &mut Lanes, f: impl Fn(u64, u64) -> u64) {
    for l in 0..LANES {
        to[l] = f(a[l], b[l]);
    }
}

#[inline(always)]
fn three(a: &Lanes, b: &Lanes, c: &Lanes, to: &mut Lanes, f: impl Fn(u64, u64, u64) -> u64) {
    for l in 0..LANES {
        to[l] = f(a[l], b[l], c[l]);
    }
}

/// Matches a pair of values with the ones that a kernel is full of, for each of which the compiler
/// makes a loop of its own, and with all others.
macro_rules! often {
    ($what:expr, $kind:expr, [$($w:pat => $op:expr),*], [$($k:pat => $type:expr),*], $f:ident) => {
        often!(@ $what, $kind, [$($w => $op),*], ($($k => $type),*), $f)
    };
    (@ $what:expr, $kind:expr, [$($w:pat => $op:expr),*], $kinds:tt, $f:ident) => {
        match $what {
            $($w => often!(@@ $kind, $op, $kinds, $f),)*
            #[allow(unreachable_patterns, reason = "the list may have all")]
            other => $f!(other, $kind),
        }
    };
    (@@ $kind:expr, $op:expr, ($($k:pat => $type:expr),*), $f:ident) => {
        match $kind {
            $($k => $f!($op, $type),)*
            other => $f!($op, other),
        }
    };
}

fn binary(op: Binary, kind: Type, a: &Lanes, b: &Lanes, to: &mut Lanes) {
    macro_rules! apply {
        ($op:expr, $kind:expr) => {{
            let (op, kind) = ($op, $kind);
            two(a, b, to, |a, b| value::binary(op, kind, a, b))
        }};
    }
    often!(
        op,
        kind,
        [
            Binary::Add => Binary::Add,
            Binary::Subtract => Binary::Subtract,
            Binary::Multiply => Binary::Multiply,
            Binary::And => Binary::And,
            Binary::Or => Binary::Or,
            Binary::Xor => Binary::Xor,
            Binary::Max => Binary::Max,
            Binary::ShiftLeft => Binary::ShiftLeft,
            Binary::ShiftRight => Binary::ShiftRight
        ],
        [
            Type::F32 => Type::F32,
            Type::Bits(32) => Type::Bits(32),
            Type::Signed(32) => Type::Signed(32),
            Type::Bits(64) => Type::Bits(64),
            Type::Signed(64) => Type::Signed(64)
        ],
        apply
    );
}

fn compare(how: Compare, kind: Type, a: &Lanes, b: &Lanes, to: &mut Lanes) {
    macro_rules! apply {
        ($order:expr, $kind:expr) => {{
            let (how, kind) = (Compare($order, how.1), $kind);
            two(a, b, to, |a, b| u64::from(value::compare(how, kind, a, b)))
        }};
    }
    often!(
        how.0,
        kind,
        [
            Order::Equal => Order::Equal,
            Order::NotEqual => Order::NotEqual,
            Order::Less => Order::Less,
            Order::Greater => Order::Greater,
            Order::GreaterOrEqual => Order::GreaterOrEqual
        ],
        [
            Type::F32 => Type::F32,
            Type::Bits(32) => Type::Bits(32),
            Type::Signed(32) => Type::Signed(32),
            Type::Bits(64) => Type::Bits(64)
        ],
        apply
    );
}

impl Warp<'_> {
    /// Returns what an instruction computes that a lane takes by itself.
    pub(crate) fn compute(&self, op: Op, args: &[Operand], to: &mut Lanes) -> Result<()> {
        let mut room = [[0; LANES]; 4];
        let [x, y, z, w] = &mut room;
        let a = self.get(args.first(), x);
        let b = self.get(args.get(1), y);
        let c = self.get(args.get(2), z);
        match op {
            Op::Move | Op::Address => *to = *a,
            Op::AddressOfParam => one(a, to, |a| a.wrapping_add(PARAMETERS)),
            Op::Unary(op, kind) => one(a, to, |a| value::unary(op, kind, a)),
            Op::Binary(op, kind) => binary(op, kind, a, b, to),
            Op::MultiplyWide(Type::Bits(32)) => two(a, b, to, |a, b| low(a, 32) * low(b, 32)),
            Op::MultiplyWide(kind) => two(a, b, to, |a, b| value::multiply_wide(kind, a, b)),
            Op::MultiplyAdd(Type::Bits(bits) | Type::Signed(bits)) => {
                three(a, b, c, to, |a, b, c| low(a.wrapping_mul(b).wrapping_add(c), bits));
            }
            Op::MultiplyAdd(kind) => three(a, b, c, to, |a, b, c| {
                let product = value::binary(Binary::Multiply, kind, a, b);
                value::binary(Binary::Add, kind, product, c)
            }),
            Op::MultiplyAddWide(kind) => {
                three(a, b, c, to, |a, b, c| value::multiply_wide(kind, a, b).wrapping_add(c))
            }
            Op::Fused(down) => three(a, b, c, to, |a, b, c| value::fused(down, a, b, c)),
            Op::Logic3 => {
                let d = self.get(args.get(3), w);
                for l in 0..LANES {
                    to[l] = value::logic3(a[l], b[l], c[l], d[l]);
                }
            }
            Op::Permute => three(a, b, c, to, value::permute),
            Op::InsertBits(kind) => {
                let d = self.get(args.get(3), w);
                for l in 0..LANES {
                    to[l] = value::insert_bits(kind, a[l], b[l], c[l], d[l]);
                }
            }
            Op::ExtractBits(kind) => {
                three(a, b, c, to, |a, b, c| value::extract_bits(kind, a, b, c));
            }
            Op::Compare(how, kind) => compare(how, kind, a, b, to),
            Op::Select => three(a, b, c, to, |a, b, c| if c & 1 != 0 { a } else { b }),
            Op::Convert { to: kind, from, round, saturate } => {
                one(a, to, |a| value::convert(kind, from, round, saturate, a));
            }
            Op::Narrow2 => two(a, b, to, |a, b| {
                let [high, low] = [a, b].map(|x| u64::from(value::bf16(value::float(x))));
                high << 16 | low
            }),
            op => return Err(Error(format!("{op:?} is no computation"))),
        }
        Ok(())
    }

    /// Returns an operand's lanes: a register's own, or others in `room`; zeros if there is none.
    pub(crate) fn get<'a>(&'a self, operand: Option<&Operand>, room: &'a mut Lanes) -> &'a Lanes {
        match operand {
            Some(Operand::Register(register)) => return &self.registers[*register],
            Some(Operand::Number(number)) => *room = [*number; LANES],
            Some(other) => *room = self.read(other),
            None => {}
        }
        room
    }
}
