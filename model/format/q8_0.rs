//! Q8_0: `value = scale · code`, code in −127..=127.
//!
//! ```text
//! byte  0      2                                34
//!       scale  32 codes, i8
//!       f16
//! ```

use super::scale::put_half;
use super::{Block, NO_OFFSET, Units, bits_at, bytes_at, search};
use pulp::Simd;

pub(super) struct Q8_0;

impl Block<34, 1> for Q8_0 {
    const RUN: usize = 32;
    const BITS: u32 = 8;
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes(bytes: &[u8; 34]) -> [[i8; 32]; 1] {
        let stored = bytes_at::<32>(bytes, 2);
        let mut codes = [0; 32];
        for i in 0..32 {
            codes[i] = stored[i] as i8;
        }
        [codes]
    }

    #[inline(always)]
    fn units(bytes: &[u8; 34]) -> Units {
        Units::one([bits_at(bytes, 0), NO_OFFSET])
    }

    #[inline(always)]
    fn make<S: Simd>(_: S, [values]: &[[f32; 32]; 1], bytes: &mut [u8; 34]) {
        // Eight bits are so many that a search for a better scale gains nothing.
        let scale = put_half(search::largest(values).abs() / 127.0, bytes, 0);
        let codes = search::codes::<32, -127, 127>(values, scale, 0.0);
        bytes[2..34].copy_from_slice(&codes.map(|code| code as u8));
    }
}
