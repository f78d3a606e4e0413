//! Q5_0: `value = scale · code`, code in −16..=15. Q5_1: `value = scale · code + offset`, code in
//! 0..=31.
//!
//! ```text
//! byte  0      2             6                                 22
//!       scale  32 high bits  16 pairs of low halves of codes        (Q5_0)
//!       f16
//! byte  0      2       4             8                                 24
//!       scale  offset  32 high bits  16 pairs of low halves of codes        (Q5_1)
//!       f16    f16
//! ```
//! Bit i of the high bits, the lowest first, is bit 4 of the code of value i. The low halves are
//! those of Q4_0. Q5_0 stores its codes plus 16.

use super::q4::{put_pairs, take_pairs};
use super::scale::put_half;
use super::search::{self, Linear};
use super::{Block, NO_OFFSET, Units, bits_at, bytes_at};
use pulp::Simd;

pub(super) struct Q5_0;
pub(super) struct Q5_1;

#[inline(always)]
fn take_codes(bytes: &[u8], at: usize) -> [i8; 32] {
    let high = bytes_at::<4>(bytes, at);
    let mut codes = take_pairs(bytes_at(bytes, at + 4));
    // Each value gets its byte of high bits first: two loops become vectors, one does not.
    let mut bits = [0; 32];
    for i in 0..32 {
        bits[i] = high[i / 8];
    }
    for i in 0..32 {
        codes[i] += if bits[i] & 1 << (i % 8) != 0 { 16 } else { 0 };
    }
    codes
}

#[inline(always)]
fn put_codes(codes: [i8; 32], bytes: &mut [u8], at: usize) {
    let high = (0..32).fold(0, |high, i| high | (codes[i] as u32 >> 4 & 1) << i);
    bytes[at..at + 4].copy_from_slice(&high.to_le_bytes());
    put_pairs(codes, bytes, at + 4);
}

impl Block<22, 1> for Q5_0 {
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes(bytes: &[u8; 22]) -> [[i8; 32]; 1] {
        let mut codes = take_codes(bytes, 2);
        for code in &mut codes {
            *code -= 16;
        }
        [codes]
    }

    #[inline(always)]
    fn units(bytes: &[u8; 22]) -> Units {
        Units::one([bits_at(bytes, 0), NO_OFFSET])
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, [values]: &[[f32; 32]; 1], bytes: &mut [u8; 22]) {
        let scale = put_half(search::scale::<S, Linear<-16, 15>>(simd, values), bytes, 0);
        put_codes(search::codes::<32, -16, 15>(values, scale, 0.0).map(|c| c + 16), bytes, 2);
    }
}

impl Block<24, 1> for Q5_1 {
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const SIGNED: bool = false;

    #[inline(always)]
    fn codes(bytes: &[u8; 24]) -> [[i8; 32]; 1] {
        [take_codes(bytes, 4)]
    }

    #[inline(always)]
    fn units(bytes: &[u8; 24]) -> Units {
        Units::one([bits_at(bytes, 0), bits_at(bytes, 2)])
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, [values]: &[[f32; 32]; 1], bytes: &mut [u8; 24]) {
        let (scale, offset) = search::scale_offset(simd, values, 31, f32::INFINITY);
        let (scale, offset) = (put_half(scale, bytes, 0), put_half(offset, bytes, 2));
        put_codes(search::codes::<32, 0, 31>(values, scale, offset), bytes, 4);
    }
}
