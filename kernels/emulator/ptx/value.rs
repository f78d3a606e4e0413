//! What instructions compute, a lane at a time. Registers hold bits, in the low part of a word.

use crate::op::{Binary, Compare, Order, Round, Type, Unary};
use std::cmp::Ordering;

/// Returns the low `bits` of a word.
#[inline(always)]
pub(crate) fn low(word: u64, bits: u32) -> u64 {
    if bits >= 64 { word } else { word & ((1 << bits) - 1) }
}

#[inline(always)]
fn signed(word: u64, bits: u32) -> i64 {
    (word << (64 - bits)) as i64 >> (64 - bits)
}

/// Returns a number, whole or not, with all of its bits.
#[inline(always)]
fn wide(word: u64, kind: Type) -> i128 {
    match kind {
        Type::Signed(bits) => i128::from(signed(word, bits)),
        kind => i128::from(low(word, kind.bits())),
    }
}

#[inline(always)]
pub(crate) fn float(word: u64) -> f32 {
    f32::from_bits(word as u32)
}

#[inline(always)]
fn word(value: f32) -> u64 {
    u64::from(value.to_bits())
}

pub(crate) fn unary(op: Unary, kind: Type, a: u64) -> u64 {
    let bits = kind.bits();
    if kind == Type::F32 {
        let x = float(a);
        return word(match op {
            Unary::Negative => -x,
            Unary::Absolute => x.abs(),
            // Approximations of the hardware: of 2 ulp at most, as the host's own rounding here.
            Unary::Exp2(flush) => {
                let y = f64::from(x).exp2() as f32;
                if flush && y.is_subnormal() { 0.0 } else { y }
            }
            Unary::Log2 => f64::from(x).log2() as f32,
            Unary::Inverse => 1.0 / x,
            Unary::Root => x.sqrt(),
            Unary::InverseRoot => (1.0 / f64::from(x).sqrt()) as f32,
            Unary::Not | Unary::Ones | Unary::LeadingZeros | Unary::Reverse => f32::NAN,
        });
    }
    match op {
        Unary::Not => low(!a, bits),
        Unary::Negative => low(a.wrapping_neg(), bits),
        Unary::Absolute => low(signed(a, bits).wrapping_abs() as u64, bits),
        Unary::Ones => u64::from(low(a, bits).count_ones()),
        Unary::LeadingZeros => u64::from(low(a, bits).leading_zeros() - (64 - bits)),
        Unary::Reverse => low(a, bits).reverse_bits() >> (64 - bits),
        // Of floats only.
        Unary::Exp2(_) | Unary::Log2 | Unary::Inverse | Unary::Root | Unary::InverseRoot => 0,
    }
}

#[inline(always)]
pub(crate) fn binary(op: Binary, kind: Type, a: u64, b: u64) -> u64 {
    let bits = kind.bits();
    if kind == Type::F32 {
        let (x, y) = (float(a), float(b));
        return match op {
            Binary::Add => word(x + y),
            Binary::Subtract => word(x - y),
            Binary::Multiply => word(x * y),
            Binary::Divide => word(x / y),
            Binary::Min => word(x.min(y)),
            Binary::Max => word(x.max(y)),
            _ => b,
        };
    }
    match op {
        Binary::Add => low(a.wrapping_add(b), bits),
        Binary::Subtract => low(a.wrapping_sub(b), bits),
        Binary::Multiply => low(a.wrapping_mul(b), bits),
        Binary::MultiplyHigh => low(((wide(a, kind) * wide(b, kind)) >> bits) as u64, bits),
        // Division by 0 gives some number.
        Binary::Divide => low(wide(a, kind).checked_div(wide(b, kind)).unwrap_or(-1) as u64, bits),
        Binary::Remainder => {
            low(wide(a, kind).checked_rem(wide(b, kind)).unwrap_or(-1) as u64, bits)
        }
        Binary::Min => low(wide(a, kind).min(wide(b, kind)) as u64, bits),
        Binary::Max => low(wide(a, kind).max(wide(b, kind)) as u64, bits),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        // A shift by all bits or more leaves none; the right one of a signed number, its sign.
        Binary::ShiftLeft => {
            if b < 64 {
                low(a << b, bits)
            } else {
                0
            }
        }
        Binary::ShiftRight => low((wide(a, kind) >> b.min(64)) as u64, bits),
        Binary::Exchange => b,
    }
}

#[inline(always)]
pub(crate) fn multiply_wide(kind: Type, a: u64, b: u64) -> u64 {
    low((wide(a, kind) * wide(b, kind)) as u64, 2 * kind.bits())
}

#[inline(always)]
pub(crate) fn compare(Compare(order, unordered): Compare, kind: Type, a: u64, b: u64) -> bool {
    let found = match kind {
        Type::F32 => float(a).partial_cmp(&float(b)),
        kind => Some(wide(a, kind).cmp(&wide(b, kind))),
    };
    let Some(found) = found else { return unordered };
    match order {
        Order::Equal => found == Ordering::Equal,
        Order::NotEqual => found != Ordering::Equal,
        Order::Less => found == Ordering::Less,
        Order::LessOrEqual => found != Ordering::Greater,
        Order::Greater => found == Ordering::Greater,
        Order::GreaterOrEqual => found != Ordering::Less,
    }
}

/// Returns a · b + c, rounded once: to the nearest float, or down.
pub(crate) fn fused(down: bool, a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (float(a), float(b), float(c));
    let nearest = a.mul_add(b, c);
    if !down {
        return word(nearest);
    }
    // The product is exact in f64; the sum's own error there is too small to matter.
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    word(if f64::from(nearest) > exact { nearest.next_down() } else { nearest })
}

pub(crate) fn convert(to: Type, from: Type, round: Round, saturate: bool, a: u64) -> u64 {
    let rounded = |x: f64| match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    };
    match (to, from) {
        (Type::F32, Type::F32) => {
            let x = float(a);
            word(match saturate {
                true if x.is_nan() => 0.0,
                true => x.clamp(0.0, 1.0),
                false => x,
            })
        }
        (Type::F32, Type::Bf16) => a << 16,
        (Type::F32, from) => word(wide(a, from) as f32),
        (Type::Bf16, Type::F32) => u64::from(bf16(float(a))),
        (to, Type::F32) => {
            let x = rounded(f64::from(float(a)));
            // Into the bounds of the type, as the hardware does.
            match to {
                Type::Signed(bits) => {
                    let most = 2f64.powi(bits as i32 - 1);
                    low(x.clamp(-most, most - 1.0) as i64 as u64, bits)
                }
                to => low(x.clamp(0.0, 2f64.powi(to.bits() as i32) - 1.0) as u64, to.bits()),
            }
        }
        (to, from) => low(wide(a, from) as u64, to.bits()),
    }
}

/// Returns the bits of the bf16 nearest to a float, of two the even one.
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    match x.is_nan() {
        true => 0x7fff,
        false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

/// Returns three words combined bit by bit: bit 4 a + 2 b + c of the table.
pub(crate) fn logic3(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).filter(|i| table >> i & 1 != 0).fold(0, |out, i| {
        let [a, b, c] = [(a, i & 4), (b, i & 2), (c, i & 1)].map(|(x, is)| match is {
            0 => !x,
            _ => x,
        });
        out | low(a & b & c, 32)
    })
}

/// Returns four of the eight bytes of `b` and `a`, chosen by the digits of `selector`.
pub(crate) fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let all = low(a, 32) | b << 32;
    (0..4).fold(0, |out, i| {
        let digit = selector >> (4 * i);
        let byte = all >> (8 * (digit & 7)) & 0xff;
        // The digit's top bit repeats the byte's sign instead.
        let byte = if digit & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        out | byte << (8 * i)
    })
}

/// Returns `b` with the low `count` bits of `a` from bit `at` on.
pub(crate) fn insert_bits(kind: Type, a: u64, b: u64, at: u64, count: u64) -> u64 {
    let (at, count) = (at & 0xff, count & 0xff);
    if at >= 64 {
        return b;
    }
    let mask = low(low(u64::MAX, count.min(64) as u32) << at, kind.bits());
    b & !mask | a << at & mask
}

/// Returns `count` bits of `a` from bit `at` on, with the sign of the highest if the type has one.
pub(crate) fn extract_bits(kind: Type, a: u64, at: u64, count: u64) -> u64 {
    let (at, count) = (at & 0xff, (count & 0xff).min(u64::from(kind.bits())) as u32);
    if count == 0 {
        return 0;
    }
    let shifted = (wide(a, kind) >> at.min(64)) as u64;
    match kind {
        Type::Signed(bits) => low(signed(shifted, count) as u64, bits),
        _ => low(shifted, count),
    }
}
