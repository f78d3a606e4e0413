//! Q4_0: `value = scale · code`, code in −8..=7. Q4_1: `value = scale · code + offset`, code in
//! 0..=15.
//!
//! ```text
//! byte  0      2                 18       byte  0      2       4                 20
//!       scale  16 pairs of codes                scale  offset  16 pairs of codes
//!       f16    (Q4_0)                           f16    f16     (Q4_1)
//! ```
//! Byte j of the pairs has the code of value j in its low half and that of value 16 + j in its
//! high half. Q4_0 stores its codes plus 8.

use super::scale::put_half;
use super::search::{self, Linear};
use super::{Block, NO_OFFSET, Units, bits_at, bytes_at};
use pulp::Simd;

pub(super) struct Q4_0;
pub(super) struct Q4_1;

/// Takes 16 pairs of codes apart.
#[inline(always)]
pub(super) fn take_pairs(pairs: [u8; 16]) -> [i8; 32] {
    let mut codes = [0; 32];
    for j in 0..16 {
        codes[j] = (pairs[j] & 15) as i8;
        codes[16 + j] = (pairs[j] >> 4) as i8;
    }
    codes
}

/// Puts the low halves of 32 codes together as 16 pairs from byte `at` on.
#[inline(always)]
pub(super) fn put_pairs(codes: [i8; 32], bytes: &mut [u8], at: usize) {
    for j in 0..16 {
        bytes[at + j] = (codes[j] as u8 & 15) | (codes[16 + j] as u8) << 4;
    }
}

impl Block<18, 1> for Q4_0 {
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes(bytes: &[u8; 18]) -> [[i8; 32]; 1] {
        let mut codes = take_pairs(bytes_at(bytes, 2));
        for code in &mut codes {
            *code -= 8;
        }
        [codes]
    }

    #[inline(always)]
    fn units(bytes: &[u8; 18]) -> Units {
        Units::one([bits_at(bytes, 0), NO_OFFSET])
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, [values]: &[[f32; 32]; 1], bytes: &mut [u8; 18]) {
        let scale = put_half(search::scale::<S, Linear<-8, 7>>(simd, values), bytes, 0);
        put_pairs(search::codes::<32, -8, 7>(values, scale, 0.0).map(|c| c + 8), bytes, 2);
    }
}

impl Block<20, 1> for Q4_1 {
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const SIGNED: bool = false;

    #[inline(always)]
    fn codes(bytes: &[u8; 20]) -> [[i8; 32]; 1] {
        [take_pairs(bytes_at(bytes, 4))]
    }

    #[inline(always)]
    fn units(bytes: &[u8; 20]) -> Units {
        Units::one([bits_at(bytes, 0), bits_at(bytes, 2)])
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, [values]: &[[f32; 32]; 1], bytes: &mut [u8; 20]) {
        let (scale, offset) = search::scale_offset(simd, values, 15, f32::INFINITY);
        let (scale, offset) = (put_half(scale, bytes, 0), put_half(offset, bytes, 2));
        put_pairs(search::codes::<32, 0, 15>(values, scale, offset), bytes, 4);
    }
}
