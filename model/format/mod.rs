//! Number formats of stored weights: plain elements, and the quantised blocks of GGUF files.
//!
//! A matrix keeps its format from the file to the tile of the kernel that multiplies it. A
//! quantised row is a sequence of blocks, each with its own scale, so its columns are divisible
//! by [`Dtype::block`].
//!
//! **One formula.** Every quantised format stores signed codes of at most 8 bits, and runs of 16
//! or 32 codes share a scale and an offset: `value = scale · code + offset`. A format's file says
//! where its block keeps them and chooses them for given values; `unpack.rs`, `convert.rs` and, for
//! backends with a layout of their own, `apart.rs` do the rest for all.
//!
//! **Exact.** An f16 number has 11 significant bits, and the integers that multiply it, a run's
//! scale and a code, have at most 12 together. Their product is exact in f32, so a value is rounded
//! at most once. With or without fused multiplication and addition the bits are the same.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over arrays of one length with one index are those that become vectors"
)]

mod apart;
mod convert;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q5_k;
mod q6_k;
mod q8_0;
pub(crate) mod scale;
mod search;
pub(crate) mod unpack;

pub use apart::{Apart, Coding};
pub(crate) use convert::decode_plain;
pub use convert::{decode, encode};
use pulp::Simd;
use std::fmt;

/// Format of a stored weight. Names are those of GGUF files and llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// bfloat16, as GritLM is published.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Blocks of 32: one f16 scale, 8 bits a weight.
    Q8_0,
    /// Blocks of 32: one f16 scale, 4 bits a weight.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4 bits a weight.
    Q4_1,
    /// Blocks of 32: one f16 scale, 5 bits a weight.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5 bits a weight.
    Q5_1,
    /// Blocks of 256 with 16 scales and minima of 4 bits, 2 bits a weight.
    Q2K,
    /// Blocks of 256 with 16 scales of 6 bits, 3 bits a weight.
    Q3K,
    /// Blocks of 256 with 8 scales and minima of 6 bits, 4 bits a weight.
    Q4K,
    /// Blocks of 256 with 8 scales and minima of 6 bits, 5 bits a weight.
    Q5K,
    /// Blocks of 256 with 16 scales of 8 bits, 6 bits a weight.
    Q6K,
    /// Blocks of 256 with 8 scales of 6 bits, 4 bits a weight that select one of 16 levels.
    Iq4Xs,
}

impl Dtype {
    /// All formats.
    pub const ALL: [Self; 14] = [
        Self::Bf16,
        Self::F16,
        Self::F32,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Xs,
    ];

    /// Returns the elements of one block; 1 for plain elements.
    pub fn block(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 | Self::F32 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Returns the bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Returns the bytes of `elements` elements, a multiple of [`Dtype::block`].
    pub fn bytes(self, elements: usize) -> usize {
        elements / self.block() * self.block_bytes()
    }

    /// Returns the number of adjacent values of a quantised format that share a scale, 16 or 32.
    pub(crate) fn run(self) -> Option<usize> {
        struct Run;
        impl WithBlock for Run {
            type Output = usize;
            fn call<const BYTES: usize, const N: usize, B: Block<BYTES, N>>(self) -> usize {
                B::RUN
            }
        }
        with_block(self, Run)
    }

    /// Returns whether elements come in blocks with a scale.
    pub fn is_quantized(self) -> bool {
        self.block() > 1
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Xs => "IQ4_XS",
        })
    }
}

/// A quantised format: `PARTS` times 32 values in blocks of `BYTES` bytes.
pub(crate) trait Block<const BYTES: usize, const PARTS: usize> {
    /// Number of adjacent values that share a scale and an offset: 16 or 32.
    const RUN: usize;

    /// Bits of a code as stored.
    const BITS: u32;

    /// Whether codes are signed: they begin at `-1 << (BITS - 1)`, not at 0.
    const SIGNED: bool;

    /// The values that codes stand for, where those are not the codes themselves.
    const LEVELS: Option<[i8; 16]> = None;

    /// Whether values have offsets: codes from 0 that are multiplied as they are.
    const OFFSETS: bool = !Self::SIGNED && Self::LEVELS.is_none();

    /// Returns the codes of a block in the order of the values.
    fn codes(bytes: &[u8; BYTES]) -> [[i8; 32]; PARTS];

    /// Returns what the scales and offsets of a block are products of.
    fn units(bytes: &[u8; BYTES]) -> Units;

    /// Takes a block apart.
    #[inline(always)]
    fn take(bytes: &[u8; BYTES]) -> Parts<PARTS> {
        Parts::new(Self::codes(bytes), Self::RUN, &Self::units(bytes))
    }

    /// Makes the block whose values are near `values`.
    fn make<S: Simd>(simd: S, values: &[[f32; 32]; PARTS], bytes: &mut [u8; BYTES]);
}

/// What scales and offsets are products of: a unit of the block, and small numbers.
///
/// The numbers are the bytes of words, one for each four times 32 values: in runs of 16 the number of
/// each, in runs of 32 one in each of the low four. Of an array of bytes the compiler takes one after
/// the other: in 8 bits Q4_K then read 9 GB/s where it reads 25 (Zen 5).
pub(crate) struct Units {
    /// Bits of the f16 units of scales and of offsets.
    pub(crate) units: [u16; 2],
    pub(crate) scales: [u64; 2],
    pub(crate) offsets: [u64; 2],
}

/// f16's −0, the unit of offsets in formats that have none.
const NO_OFFSET: u16 = 0x8000;

impl Units {
    /// Returns the units of a block that is one run: its scale and offset themselves.
    #[inline(always)]
    fn one(units: [u16; 2]) -> Self {
        Self { units, scales: [1, 0], offsets: [1, 0] }
    }

    /// Returns the number of a half of 32 values, in runs of 16 or 32.
    #[inline(always)]
    fn number(words: [u64; 2], run: usize, part: usize, half: usize) -> i8 {
        let byte = if run == 16 { part % 4 * 2 + half } else { part % 4 };
        (words[part / 4] >> (8 * byte)) as i8
    }
}

/// What a block says: `scale · code + offset` for each value.
pub(crate) struct Parts<const PARTS: usize> {
    /// Codes in the order of the values.
    pub(crate) codes: [[i8; 32]; PARTS],
    /// Scale of each 16 values.
    pub(crate) scales: [[f32; 2]; PARTS],
    /// Offset of each 16 values. Formats without offsets have −0, which changes no value, not even
    /// the sign of a zero.
    pub(crate) offsets: [[f32; 2]; PARTS],
}

impl<const PARTS: usize> Parts<PARTS> {
    #[inline(always)]
    fn new(codes: [[i8; 32]; PARTS], run: usize, of: &Units) -> Self {
        let [unit, offset_unit] = of.units.map(|unit| scale::half(unit.to_le_bytes()));
        let (mut scales, mut offsets) = ([[0.0; 2]; PARTS], [[0.0; 2]; PARTS]);
        for p in 0..PARTS {
            for half in 0..2 {
                scales[p][half] = unit * f32::from(Units::number(of.scales, run, p, half));
                offsets[p][half] = offset_unit * f32::from(Units::number(of.offsets, run, p, half));
            }
        }
        Self { codes, scales, offsets }
    }
}

/// A function over the blocks of some quantised format, for [`with_block`].
pub(crate) trait WithBlock {
    type Output;
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) -> Self::Output;
}

/// Calls `f` with the block of a quantised format; returns `None` for plain elements.
#[inline(always)]
pub(crate) fn with_block<F: WithBlock>(dtype: Dtype, f: F) -> Option<F::Output> {
    Some(match dtype {
        Dtype::Bf16 | Dtype::F16 | Dtype::F32 => return None,
        Dtype::Q8_0 => f.call::<34, 1, q8_0::Q8_0>(),
        Dtype::Q4_0 => f.call::<18, 1, q4::Q4_0>(),
        Dtype::Q4_1 => f.call::<20, 1, q4::Q4_1>(),
        Dtype::Q5_0 => f.call::<22, 1, q5::Q5_0>(),
        Dtype::Q5_1 => f.call::<24, 1, q5::Q5_1>(),
        Dtype::Q2K => f.call::<84, 8, q2_k::Q2K>(),
        Dtype::Q3K => f.call::<110, 8, q3_k::Q3K>(),
        Dtype::Q4K => f.call::<144, 8, q4_k::Q4K>(),
        Dtype::Q5K => f.call::<176, 8, q5_k::Q5K>(),
        Dtype::Q6K => f.call::<210, 8, q6_k::Q6K>(),
        Dtype::Iq4Xs => f.call::<136, 8, iq4_xs::Iq4Xs>(),
    })
}

/// Returns the bits of the f16 number at byte `at` of a block.
#[inline(always)]
fn bits_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

/// Returns the bits of minus the f16 number at byte `at` of a block.
#[inline(always)]
fn negative_at(bytes: &[u8], at: usize) -> u16 {
    bits_at(bytes, at) ^ 0x8000
}

/// Returns the `N` bytes from byte `at` on.
#[inline(always)]
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
