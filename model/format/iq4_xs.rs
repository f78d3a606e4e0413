//! IQ4_XS: `value = scale · level`, one of 16 uneven levels, in 8 runs of 32.
//!
//! ```text
//! byte  0     2                4              8                      136
//!       unit  8 high pairs of  8 low halves   128 pairs of codes
//!       f16   bits of scales   of scales
//! ```
//! A run's scale is its 6 bits minus 32, times the unit. A code is the index of a level: byte
//! 16 r + l of the pairs has that of value 32 r + l in its low half and that of value 32 r + 16 + l
//! in its high half.

use super::q4::{put_pairs, take_pairs};
use super::scale::{inverse, put_signed};
use super::search::{self, Levels};
use super::{Block, NO_OFFSET, Parts, Units, bits_at, bytes_at};
use pulp::Simd;
use std::hint::black_box;

/// The levels, denser around 0, where most weights are.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) struct Iq4Xs;

/// Returns the number of the level nearest to `value`.
#[inline(always)]
fn index(value: f32) -> i8 {
    let mut index = 0;
    for i in 1..16 {
        let middle = (f32::from(LEVELS[i - 1]) + f32::from(LEVELS[i])) / 2.0;
        index += i8::from(value > middle);
    }
    index
}

/// Returns a level by its number: with vectors, fifteen choices for 32 numbers at once are faster
/// than 32 loads.
#[inline(always)]
fn level(number: i8) -> i8 {
    let choose = |bit: i32, clear: i8, set: i8| {
        // All ones if the bit is set.
        let mask = number << (7 - bit) >> 7;
        clear ^ ((clear ^ set) & mask)
    };
    let of_two = |i: usize| choose(0, LEVELS[i], LEVELS[i + 1]);
    let of_four = |i: usize| choose(1, of_two(i), of_two(i + 2));
    let of_eight = |i: usize| choose(2, of_four(i), of_four(i + 4));
    choose(3, of_eight(0), of_eight(8))
}

impl Levels for Iq4Xs {
    const FIRST: f32 = -127.0;

    #[inline(always)]
    fn nearest<S: Simd>(simd: S, values: S::f32s) -> S::f32s {
        let mut level = simd.splat_f32s(f32::from(LEVELS[0]));
        for pair in LEVELS.windows(2) {
            let [below, above] = [pair[0], pair[1]].map(f32::from);
            let is_above = simd.greater_than_f32s(values, simd.splat_f32s((below + above) / 2.0));
            level = simd.select_f32s(is_above, simd.splat_f32s(above), level);
        }
        level
    }
}

impl Block<136, 8> for Iq4Xs {
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const SIGNED: bool = false;
    const LEVELS: Option<[i8; 16]> = Some(LEVELS);

    #[inline(always)]
    fn codes(bytes: &[u8; 136]) -> [[i8; 32]; 8] {
        let mut codes = [[0; 32]; 8];
        for r in 0..8 {
            codes[r] = take_pairs(bytes_at(bytes, 8 + 16 * r));
        }
        codes
    }

    #[inline(always)]
    fn units(bytes: &[u8; 136]) -> Units {
        let high = bits_at(bytes, 2);
        let mut scales = [0; 2];
        for r in 0..8 {
            let low = bytes[4 + r / 2] >> (4 * (r % 2)) & 15;
            let number = (low + 16 * (high >> (2 * r) & 3) as u8).wrapping_sub(32);
            scales[r / 4] |= u64::from(number) << (8 * (r % 4));
        }
        Units { units: [bits_at(bytes, 0), NO_OFFSET], scales, offsets: [0; 2] }
    }

    #[inline(always)]
    fn take(bytes: &[u8; 136]) -> Parts<8> {
        let numbers = Self::codes(bytes);
        // As in `unpack.rs`: from memory, the compiler takes 32 at once.
        let numbers = black_box(&numbers).as_flattened();
        let mut levels = [[0; 32]; 8];
        for i in 0..256 {
            levels.as_flattened_mut()[i] = level(numbers[i]);
        }
        Parts::new(levels, Self::RUN, &Self::units(bytes))
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 136]) {
        let mut scales = [0.0; 8];
        for r in 0..8 {
            scales[r] = search::scale::<S, Self>(simd, &values[r]);
        }
        bytes.fill(0);
        let (unit, scales) = put_signed(&scales, -32, 31, bytes, 0);
        let mut high = 0;
        for r in 0..8 {
            let scale = (scales[r] + 32) as u8;
            bytes[4 + r / 2] |= (scale & 15) << (4 * (r % 2));
            high |= u16::from(scale >> 4) << (2 * r);
            let inverse = inverse(unit * scales[r] as f32);
            put_pairs(values[r].map(|value| index(value * inverse)), bytes, 8 + 16 * r);
        }
        bytes[2..4].copy_from_slice(&high.to_le_bytes());
    }
}
