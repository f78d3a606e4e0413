//! Quantised rows as codes and the factors of their scales, for backends that store them in a
//! layout of their own.

use super::{Block, Dtype, Units, WithBlock, with_block};
use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;

/// What the codes of a quantised format are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    /// Bits of a code: 2 to 6, or 8.
    pub bits: u32,
    /// Whether codes are signed: they begin at `-1 << (bits - 1)`, not at 0.
    pub signed: bool,
    /// Adjacent values that share a scale and an offset: 16 or 32.
    pub run: usize,
    /// The values that codes stand for, where those are not the codes themselves.
    pub levels: Option<[i8; 16]>,
}

impl Dtype {
    /// Returns what the codes of a quantised format are; `None` for plain elements.
    pub fn coding(self) -> Option<Coding> {
        struct Of;
        impl WithBlock for Of {
            type Output = Coding;
            fn call<const BYTES: usize, const N: usize, B: Block<BYTES, N>>(self) -> Coding {
                Coding { bits: B::BITS, signed: B::SIGNED, run: B::RUN, levels: B::LEVELS }
            }
        }
        with_block(self, Of)
    }
}

/// A row of a quantised format, taken apart:
/// `value = unit · number · code + offset unit · offset number`, where the first product is a run's
/// scale and the last its offset.
#[derive(Debug)]
pub struct Apart {
    dtype: Dtype,
    /// Code of each value.
    pub codes: Vec<i8>,
    /// Bits of the f16 units of scales and of offsets of each [`Dtype::block`] values. Formats
    /// without offsets have −0 as the unit of offsets.
    pub units: Vec<[u16; 2]>,
    /// Numbers of the scale and of the offset of each 16 values; all 1 where blocks have 32.
    pub numbers: Vec<[i8; 2]>,
}

impl Apart {
    /// Returns memory for a row of `cols` values, a multiple of [`Dtype::block`].
    pub fn new(dtype: Dtype, cols: usize) -> Self {
        Self {
            dtype,
            codes: vec![0; cols],
            units: vec![[0; 2]; cols / dtype.block()],
            numbers: vec![[0; 2]; cols / 16],
        }
    }

    /// Takes a stored row apart.
    pub fn take(&mut self, bytes: &[u8]) {
        Arch::new().dispatch(Take { apart: self, bytes });
    }
}

struct Take<'a> {
    apart: &'a mut Apart,
    bytes: &'a [u8],
}

impl WithSimd for Take<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        with_block(self.apart.dtype, self);
    }
}

impl WithBlock for Take<'_> {
    type Output = ();

    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) {
        let Apart { codes, units, numbers, .. } = self.apart;
        let codes = codes.as_chunks_mut::<32>().0.as_chunks_mut::<PARTS>().0;
        let numbers = numbers.as_chunks_mut::<2>().0.as_chunks_mut::<PARTS>().0;
        let blocks = self.bytes.as_chunks::<BYTES>().0.iter();
        for (((bytes, codes), units), numbers) in blocks.zip(codes).zip(units).zip(numbers) {
            // As in `unpack.rs`: one block at a time.
            let bytes = black_box(bytes);
            *codes = B::codes(bytes);
            let of = B::units(bytes);
            *units = of.units;
            for p in 0..PARTS {
                for half in 0..2 {
                    numbers[p][half] =
                        [of.scales, of.offsets].map(|words| Units::number(words, B::RUN, p, half));
                }
            }
        }
    }
}
