//! Q2_K: `value = scale · code + offset`, code in 0..=3, in 16 runs of 16.
//!
//! ```text
//! byte  0                      16                     80     82      84
//!       16 pairs: 4 bits of    64 times four codes    scale  offset
//!       scale, 4 bits of       of 2 bits              unit   unit
//!       offset                                        f16    f16
//! ```
//! A run's scale is its low four bits times the scale unit, its offset the high four times minus
//! the offset unit. Value 128 n + 32 j + l has bits 2 j and 2 j + 1 of byte 32 n + l of the codes.

use super::scale::put_unsigned;
use super::{Block, Units, bits_at, bytes_at, negative_at, search};
use pulp::Simd;

pub(super) struct Q2K;

/// Takes 64 times four codes apart.
#[inline(always)]
pub(super) fn take_quarters(bytes: [u8; 64]) -> [[i8; 32]; 8] {
    let mut codes = [[0; 32]; 8];
    for (n, bytes) in bytes.as_chunks::<32>().0.iter().enumerate() {
        for (l, byte) in bytes.iter().enumerate() {
            codes[4 * n][l] = (byte & 3) as i8;
            codes[4 * n + 1][l] = (byte >> 2 & 3) as i8;
            codes[4 * n + 2][l] = (byte >> 4 & 3) as i8;
            codes[4 * n + 3][l] = (byte >> 6) as i8;
        }
    }
    codes
}

/// Puts the low two bits of 256 codes together as 64 bytes from byte `at` on.
#[inline(always)]
pub(super) fn put_quarters(codes: &[[i8; 32]; 8], bytes: &mut [u8], at: usize) {
    for n in 0..2 {
        for l in 0..32 {
            let code = |j: usize| (codes[4 * n + j][l] as u8 & 3) << (2 * j);
            bytes[at + 32 * n + l] = code(0) | code(1) | code(2) | code(3);
        }
    }
}

impl Block<84, 8> for Q2K {
    const RUN: usize = 16;
    const BITS: u32 = 2;
    const SIGNED: bool = false;

    #[inline(always)]
    fn codes(bytes: &[u8; 84]) -> [[i8; 32]; 8] {
        take_quarters(bytes_at(bytes, 16))
    }

    #[inline(always)]
    fn units(bytes: &[u8; 84]) -> Units {
        let numbers = [0, 8].map(|at| u64::from_le_bytes(bytes_at(bytes, at)));
        let scales = numbers.map(|numbers| numbers & 0x0f0f_0f0f_0f0f_0f0f);
        let offsets = numbers.map(|numbers| numbers >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
        Units { units: [bits_at(bytes, 80), negative_at(bytes, 82)], scales, offsets }
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 84]) {
        let runs = values.as_flattened().as_chunks::<16>().0;
        let (mut scales, mut offsets) = ([0.0; 16], [0.0; 16]);
        for r in 0..16 {
            let (scale, offset) = search::scale_offset(simd, &runs[r], 3, 0.0);
            (scales[r], offsets[r]) = (scale, -offset);
        }
        let (unit, scales) = put_unsigned(&scales, 15, bytes, 80);
        let (offset_unit, offsets) = put_unsigned(&offsets, 15, bytes, 82);
        let mut codes = [[0; 32]; 8];
        for r in 0..16 {
            bytes[r] = (scales[r] | offsets[r] << 4) as u8;
            let (scale, offset) = (unit * scales[r] as f32, -offset_unit * offsets[r] as f32);
            let run = search::codes::<16, 0, 3>(&runs[r], scale, offset);
            codes[r / 2].as_chunks_mut::<16>().0[r % 2] = run;
        }
        put_quarters(&codes, bytes, 16);
    }
}
