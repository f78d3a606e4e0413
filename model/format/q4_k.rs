//! Q4_K: `value = scale · code + offset`, code in 0..=15, in 8 runs of 32.
//!
//! ```text
//! byte  0      2       4                    16                       144
//!       scale  offset  8 scales, 8 offsets  128 pairs of codes
//!       unit   unit    in 6 bits each
//!       f16    f16
//! ```
//! A run's scale is its 6 bits times the scale unit, its offset 6 bits times minus the offset
//! unit. Byte 32 n + l of the pairs has the code of value 64 n + l in its low half and that of
//! value 64 n + 32 + l in its high half.
//!
//! Of the 12 bytes of scales and offsets, r < 4: byte r has scale r and, on top, the high two bits
//! of scale 4 + r; byte 4 + r the same of the offsets; byte 8 + r the low four bits of scale 4 + r
//! and of offset 4 + r.

use super::scale::put_unsigned;
use super::{Block, Units, bits_at, bytes_at, negative_at, search};
use pulp::Simd;

pub(super) struct Q4K;

/// Takes 128 pairs of codes from byte `at` on apart.
#[inline(always)]
pub(super) fn codes(bytes: &[u8], at: usize) -> [[i8; 32]; 8] {
    let mut codes = [[0; 32]; 8];
    for n in 0..4 {
        let pairs = bytes_at::<32>(bytes, at + 32 * n);
        for l in 0..32 {
            codes[2 * n][l] = (pairs[l] & 15) as i8;
            codes[2 * n + 1][l] = (pairs[l] >> 4) as i8;
        }
    }
    codes
}

/// Takes the units and 6-bit numbers at the beginning of a block apart.
#[inline(always)]
pub(super) fn units(bytes: &[u8]) -> Units {
    let word = |at: usize| u32::from_le_bytes(bytes_at(bytes, at));
    // Four numbers at once.
    let (first, second, low) = (word(4), word(8), word(12));
    let numbers = |first: u32, low: u32| {
        let last = low & 0x0f0f_0f0f | first >> 2 & 0x3030_3030;
        [u64::from(first & 0x3f3f_3f3f), u64::from(last)]
    };
    let (scales, offsets) = (numbers(first, low), numbers(second, low >> 4));
    Units { units: [bits_at(bytes, 0), negative_at(bytes, 2)], scales, offsets }
}

/// Chooses scales and offsets for codes of `0..=HIGH` and stores them as [`units`] reads them, and
/// the low halves of the codes. Returns the codes.
#[inline(always)]
pub(super) fn put<S: Simd, const HIGH: i32>(
    simd: S,
    values: &[[f32; 32]; 8],
    bytes: &mut [u8],
    at: usize,
) -> [[i8; 32]; 8] {
    let (mut scales, mut offsets) = ([0.0; 8], [0.0; 8]);
    for r in 0..8 {
        let (scale, offset) = search::scale_offset(simd, &values[r], HIGH, 0.0);
        (scales[r], offsets[r]) = (scale, -offset);
    }
    let (unit, scales) = put_unsigned(&scales, 63, bytes, 0);
    let (offset_unit, offsets) = put_unsigned(&offsets, 63, bytes, 2);
    for r in 0..4 {
        let byte = |low: i32, high: i32, shift: u32| (low | high << shift) as u8;
        bytes[4 + r] = byte(scales[r], scales[4 + r] >> 4, 6);
        bytes[8 + r] = byte(offsets[r], offsets[4 + r] >> 4, 6);
        bytes[12 + r] = byte(scales[4 + r] & 15, offsets[4 + r] & 15, 4);
    }
    let mut codes = [[0; 32]; 8];
    for r in 0..8 {
        let (scale, offset) = (unit * scales[r] as f32, -offset_unit * offsets[r] as f32);
        codes[r] = search::codes::<32, 0, HIGH>(&values[r], scale, offset);
    }
    for n in 0..4 {
        for l in 0..32 {
            let (low, high) = (codes[2 * n][l] as u8, codes[2 * n + 1][l] as u8);
            bytes[at + 32 * n + l] = low & 15 | high << 4;
        }
    }
    codes
}

impl Block<144, 8> for Q4K {
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const SIGNED: bool = false;

    #[inline(always)]
    fn codes(bytes: &[u8; 144]) -> [[i8; 32]; 8] {
        codes(bytes, 16)
    }

    #[inline(always)]
    fn units(bytes: &[u8; 144]) -> Units {
        units(bytes)
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 144]) {
        put::<S, 15>(simd, values, bytes, 16);
    }
}
