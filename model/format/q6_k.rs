//! Q6_K: `value = scale · code`, code in −32..=31, in 16 runs of 16.
//!
//! ```text
//! byte  0                        128               192          208    210
//!       128 pairs of low four    64 times four     16 scales    unit
//!       bits                     high pairs        i8           f16
//!                                of bits
//! ```
//! A run's scale is its 8 bits, signed, times the unit; a code is its six bits minus 32. For value
//! 128 n + 32 j + l the low bits are in byte 64 n + 32 (j % 2) + l, in the low half for j < 2;
//! the high bits are those of Q2_K's codes.

use super::q2_k::{put_quarters, take_quarters};
use super::scale::put_signed;
use super::search::{self, Linear};
use super::{Block, NO_OFFSET, Units, bits_at, bytes_at};
use pulp::Simd;

pub(super) struct Q6K;

impl Block<210, 8> for Q6K {
    const RUN: usize = 16;
    const BITS: u32 = 6;
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes(bytes: &[u8; 210]) -> [[i8; 32]; 8] {
        let mut codes = take_quarters(bytes_at(bytes, 128));
        for n in 0..2 {
            let pairs = bytes_at::<64>(bytes, 64 * n);
            for j in 0..2 {
                for l in 0..32 {
                    let pair = pairs[32 * j + l];
                    let low = codes[4 * n + j][l] << 4 | (pair & 15) as i8;
                    let high = codes[4 * n + j + 2][l] << 4 | (pair >> 4) as i8;
                    codes[4 * n + j][l] = low - 32;
                    codes[4 * n + j + 2][l] = high - 32;
                }
            }
        }
        codes
    }

    #[inline(always)]
    fn units(bytes: &[u8; 210]) -> Units {
        let scales = [192, 200].map(|at| u64::from_le_bytes(bytes_at(bytes, at)));
        Units { units: [bits_at(bytes, 208), NO_OFFSET], scales, offsets: [0; 2] }
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 210]) {
        let runs = values.as_flattened().as_chunks::<16>().0;
        let mut scales = [0.0; 16];
        for r in 0..16 {
            scales[r] = search::scale::<S, Linear<-32, 31>>(simd, &runs[r]);
        }
        let (unit, scales) = put_signed(&scales, -128, 127, bytes, 208);
        let mut codes = [[0; 32]; 8];
        for r in 0..16 {
            bytes[192 + r] = scales[r] as i8 as u8;
            let run = search::codes::<16, -32, 31>(&runs[r], unit * scales[r] as f32, 0.0);
            codes[r / 2].as_chunks_mut::<16>().0[r % 2] = run.map(|code| code + 32);
        }
        for i in 0..128 {
            let (p, l) = (i / 64 * 4 + i % 64 / 32, i % 32);
            bytes[i] = codes[p][l] as u8 & 15 | (codes[p + 2][l] as u8) << 4;
        }
        put_quarters(&codes.map(|part| part.map(|code| code >> 4)), bytes, 128);
    }
}
