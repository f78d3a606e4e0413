//! Q5_K: `value = scale · code + offset`, code in 0..=31, in 8 runs of 32.
//!
//! ```text
//! byte  0      2       4                    16               48                       176
//!       scale  offset  8 scales, 8 offsets  32 times eight   128 pairs of low halves
//!       unit   unit    in 6 bits each       high bits        of codes
//!       f16    f16
//! ```
//! Units, scales, offsets and pairs are those of Q4_K. Bit r of byte l of the high bits is bit 4
//! of the code of value 32 r + l.

use super::{Block, Units, bytes_at, q4_k};
use pulp::Simd;

pub(super) struct Q5K;

impl Block<176, 8> for Q5K {
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const SIGNED: bool = false;

    #[inline(always)]
    fn codes(bytes: &[u8; 176]) -> [[i8; 32]; 8] {
        let mut codes = q4_k::codes(bytes, 48);
        let high = bytes_at::<32>(bytes, 16);
        for r in 0..8 {
            for l in 0..32 {
                codes[r][l] |= if high[l] & 1 << r != 0 { 16 } else { 0 };
            }
        }
        codes
    }

    #[inline(always)]
    fn units(bytes: &[u8; 176]) -> Units {
        q4_k::units(bytes)
    }

    #[inline(always)]
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; 8], bytes: &mut [u8; 176]) {
        let codes = q4_k::put::<S, 31>(simd, values, bytes, 48);
        for l in 0..32 {
            bytes[16 + l] = (0..8).fold(0, |high, r| high | (codes[r][l] as u8 >> 4) << r);
        }
    }
}
