//! Q3_K: `value = scale · code`, code in −4..=3, in 16 runs of 16.
//!
//! ```text
//! byte  0                32                    96                  108    110
//!       32 times eight   64 times four low     16 scales in 6      unit
//!       high bits        pairs of bits         bits each           f16
//! ```
//! A run's scale is its 6 bits minus 32, times the unit. Low bits are the codes of Q2_K. Value
//! 128 n + 32 j + l has bit 4 n + j of byte l as its high bit; a code is the three bits minus 4.
//! Of the scales' bytes, byte r (r < 8) has the low four bits of scales r and 8 + r, and byte
//! 8 + r % 4 has the high two bits of scale r at bit 2 · (r / 4).

use super::q2_k::{put_quarters, take_quarters};
use super::scale::put_signed;
use super::search::{self, Linear};
use super::{Block, NO_OFFSET, Units, bits_at, bytes_at};
use pulp::Simd;

pub(super) struct Q3K;

impl Block<110, 8> for Q3K {
    const RUN: usize = 16;
    const BITS: u32 = 3;
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes(bytes: &[u8; 110]) -> [[i8; 32]; 8] {
        let mut codes = take_quarters(bytes_at(bytes, 32));
        let high = bytes_at::<32>(bytes, 0);
        for p in 0..8 {
            for l in 0..32 {
                codes[p][l] -= if high[l] & 1 << p != 0 { 0 } else { 4 };
            }
        }
        codes
    }

    #[inline(always)]
    fn units(bytes: &[u8; 110]) -> Units {
        let word = |at: usize| u32::from_le_bytes(bytes_at(bytes, at));
        let (low, high) = ([word(96), word(100)], word(104));
        let mut scales = [0; 2];
        for four in 0..4 {
            let low = low[four % 2] >> (4 * (four / 2)) & 0x0f0f_0f0f;
            let numbers = low | (high >> (2 * four) & 0x0303_0303) << 4;
            // Minus 32 in each byte, without a borrow from the next.
            let numbers = ((numbers | 0x8080_8080) - 0x2020_2020) ^ 0x8080_8080;
            scales[four / 2] |= u64::from(numbers) << (four % 2 * 32);
        }
        Units { units: [bits_at(bytes, 108), NO_OFFSET], scales, offsets: [0; 2] }
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 110]) {
        let runs = values.as_flattened().as_chunks::<16>().0;
        let mut scales = [0.0; 16];
        for r in 0..16 {
            scales[r] = search::scale::<S, Linear<-4, 3>>(simd, &runs[r]);
        }
        bytes.fill(0);
        let (unit, scales) = put_signed(&scales, -32, 31, bytes, 108);
        let mut codes = [[0; 32]; 8];
        for r in 0..16 {
            let scale = (scales[r] + 32) as u8;
            bytes[96 + r % 8] |= (scale & 15) << (4 * (r / 8));
            bytes[104 + r % 4] |= (scale >> 4) << (2 * (r / 4));
            let run = search::codes::<16, -4, 3>(&runs[r], unit * scales[r] as f32, 0.0);
            codes[r / 2].as_chunks_mut::<16>().0[r % 2] = run.map(|code| code + 4);
        }
        for p in 0..8 {
            for l in 0..32 {
                bytes[l] |= (codes[p][l] as u8 >> 2) << p;
            }
        }
        put_quarters(&codes, bytes, 32);
    }
}
