//! Stored weights as f32 in the packed order of `matmul`: each chunk of 2 · lanes values as evens,
//! then odds.

use crate::format::unpack::{self, Codes};
use crate::format::{Parts, decode_plain};
use crate::weights::Dtype;
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Values decoded at a time before they are reordered: they stay in the first-level cache.
const PIECE: usize = 256;

/// Returns the values of a vector.
pub(super) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Returns a block of a bf16 row as words of two weights, or `None` if it has another type or is
/// not aligned.
#[inline(always)]
pub(super) fn words<'a>((dtype, bytes): &(Dtype, &'a [u8]), k: &Range<usize>) -> Option<&'a [u32]> {
    match dtype {
        Dtype::Bf16 => bytemuck::try_cast_slice(&bytes[2 * k.start..2 * k.end]).ok(),
        _ => None,
    }
}

/// Returns a block of an f32 row, or `None` if it has another type or is not aligned.
#[inline(always)]
pub(super) fn values<'a>(
    (dtype, bytes): &(Dtype, &'a [u8]),
    k: &Range<usize>,
) -> Option<&'a [f32]> {
    match dtype {
        Dtype::F32 => bytemuck::try_cast_slice(&bytes[4 * k.start..4 * k.end]).ok(),
        _ => None,
    }
}

/// Writes `row` to `packed` chunk by chunk, evens first. `packed` is a whole number of chunks, and
/// values beyond the end of `row` become zero.
pub(super) fn deinterleave(row: &[f32], packed: &mut [f32]) {
    match lanes() {
        16 => evens_odds::<16>(row, packed),
        8 => evens_odds::<8>(row, packed),
        4 => evens_odds::<4>(row, packed),
        _ => evens_odds::<1>(row, packed),
    }
}

#[inline(always)]
fn evens_odds<const LANES: usize>(row: &[f32], packed: &mut [f32]) {
    for (c, packed) in packed.chunks_exact_mut(2 * LANES).enumerate() {
        let (evens, odds) = packed.split_at_mut(LANES);
        let rest = row.get(c * 2 * LANES..).unwrap_or_default();
        if rest.len() >= 2 * LANES {
            for l in 0..LANES {
                (evens[l], odds[l]) = (rest[2 * l], rest[2 * l + 1]);
            }
        } else {
            for l in 0..LANES {
                evens[l] = rest.get(2 * l).copied().unwrap_or(0.0);
                odds[l] = rest.get(2 * l + 1).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Converts the values `k` of a stored row to f32, zero-padded to the length of `row`: in the
/// packed order, or as they are if `plain`, for which the weights are plain elements. `k` is whole
/// blocks of the format.
#[inline(always)]
pub(super) fn convert<S: Simd>(
    simd: S,
    w: &(Dtype, &[u8]),
    k: &Range<usize>,
    plain: bool,
    codes: &mut Codes,
    row: &mut [f32],
) {
    let (dtype, bytes) = w;
    if let Some(words) = words(w, k).filter(|_| k.len() == row.len() && !plain) {
        return fill(simd, Bf16(S::as_simd_u32s(words).0), row);
    }
    if !plain && let Some(run) = dtype.run() {
        take(simd, w, k, codes);
        return match run {
            16 => fill(simd, Coded::<16>::of(codes), row),
            _ => fill(simd, Coded::<32>::of(codes), row),
        };
    }
    let bytes = &bytes[dtype.bytes(k.start)..dtype.bytes(k.end)];
    if plain {
        let (values, rest) = row.split_at_mut(k.len());
        decode_plain(*dtype, bytes, values);
        rest.fill(0.0);
    } else {
        let mut values = [0.0; PIECE];
        for (bytes, row) in bytes.chunks(dtype.bytes(PIECE)).zip(row.chunks_mut(PIECE)) {
            let values = &mut values[..bytes.len() / dtype.block_bytes()];
            decode_plain(*dtype, bytes, values);
            match S::F32_LANES {
                16 => evens_odds::<16>(values, row),
                8 => evens_odds::<8>(values, row),
                4 => evens_odds::<4>(values, row),
                _ => evens_odds::<1>(values, row),
            }
        }
    }
}

/// Writes a block of weights as f32 in the packed order.
#[inline(always)]
fn fill<S: Simd, W: Weight<S>>(simd: S, w: W, row: &mut [f32]) {
    let out = S::as_mut_simd_f32s(row).0.as_chunks_mut::<2>().0;
    let w = w.first(out.len());
    for (i, out) in out.iter_mut().enumerate() {
        *out = [w.even(simd, i), w.odd(simd, i)];
    }
}

/// Takes the values `k` of a quantised row apart, which are whole blocks; of plain elements,
/// nothing.
#[inline(always)]
pub(super) fn take<S: Simd>(
    simd: S,
    (dtype, bytes): &(Dtype, &[u8]),
    k: &Range<usize>,
    codes: &mut Codes,
) {
    unpack::take(simd, *dtype, &bytes[dtype.bytes(k.start)..dtype.bytes(k.end)], codes);
}

/// A block of a weight row, read a chunk at a time as its even and its odd values.
pub(super) trait Weight<S: Simd>: Copy {
    /// Keeps only the first `chunks` chunks.
    fn first(self, chunks: usize) -> Self;
    fn even(self, simd: S, i: usize) -> S::f32s;
    fn odd(self, simd: S, i: usize) -> S::f32s;
}

/// A block already in f32, in the packed order.
#[derive(Clone, Copy)]
pub(super) struct F32<'a, V>(pub(super) &'a [[V; 2]]);

impl<S: Simd> Weight<S> for F32<'_, S::f32s> {
    #[inline(always)]
    fn first(self, chunks: usize) -> Self {
        Self(&self.0[..chunks])
    }

    #[inline(always)]
    fn even(self, _: S, i: usize) -> S::f32s {
        self.0[i][0]
    }

    #[inline(always)]
    fn odd(self, _: S, i: usize) -> S::f32s {
        self.0[i][1]
    }
}

/// A block of bf16 as stored, two values per word.
#[derive(Clone, Copy)]
pub(super) struct Bf16<'a, V>(pub(super) &'a [V]);

impl<S: Simd> Weight<S> for Bf16<'_, S::u32s> {
    #[inline(always)]
    fn first(self, chunks: usize) -> Self {
        Self(&self.0[..chunks])
    }

    #[inline(always)]
    fn even(self, simd: S, i: usize) -> S::f32s {
        let shifted = simd.wrapping_dyn_shl_u32s(self.0[i], simd.splat_u32s(16));
        simd.transmute_f32s_u32s(shifted)
    }

    #[inline(always)]
    fn odd(self, simd: S, i: usize) -> S::f32s {
        simd.transmute_f32s_u32s(simd.and_u32s(self.0[i], simd.splat_u32s(0xffff_0000)))
    }
}

/// A block of quantised values, taken apart; `RUN` of them, 16 or 32, share a scale.
#[derive(Clone, Copy)]
pub(super) struct Coded<'a, const RUN: usize> {
    /// Pairs of an even and an odd code.
    pairs: &'a [[[i8; 2]; 16]],
    scales: &'a [[f32; 2]],
    offsets: &'a [[f32; 2]],
}

impl<'a, const RUN: usize> Coded<'a, RUN> {
    /// Returns a block of up to 1024 values.
    #[inline(always)]
    pub(super) fn of(codes: &'a Codes) -> Self {
        let pairs = codes.codes.as_flattened().as_chunks::<2>().0.as_chunks::<16>().0;
        Self { pairs, scales: &codes.scales, offsets: &codes.offsets }
    }

    /// Returns the values of one block of a format.
    #[inline(always)]
    pub(super) fn new<const PARTS: usize>(parts: &'a Parts<PARTS>) -> Self {
        let pairs = parts.codes.as_flattened().as_chunks::<2>().0.as_chunks::<16>().0;
        Self { pairs, scales: &parts.scales, offsets: &parts.offsets }
    }

    /// Returns one of the two codes of each pair of chunk `i`, multiplied by the scale and moved by
    /// the offset. As a number of 16 bits, a pair has the odd code in its high half.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the same index walks two arrays")]
    fn values<S: Simd>(self, simd: S, i: usize, odd: bool) -> S::f32s {
        let lanes = S::F32_LANES;
        // The part of 32 values, and the first of the chunk's pairs in it.
        let (part, first) = (i * lanes / 16, i * lanes % 16);
        let mut codes = [0.0; 16];
        for l in 0..lanes {
            let pair = self.pairs[part][first + l].map(|code| code as u8);
            let pair = i32::from(i16::from_le_bytes(pair));
            codes[l] = (if odd { pair >> 8 } else { pair << 24 >> 24 }) as f32;
        }
        let spread = |numbers: &[f32; 2]| {
            if RUN == 32 || lanes < 16 {
                return simd.splat_f32s(numbers[if RUN == 32 { 0 } else { first / 8 }]);
            }
            let mut lanes = [numbers[0]; 16];
            lanes[8..].fill(numbers[1]);
            S::as_simd_f32s(&lanes).0[0]
        };
        let codes = S::as_simd_f32s(&codes).0[0];
        simd.mul_add_e_f32s(spread(&self.scales[part]), codes, spread(&self.offsets[part]))
    }
}

impl<S: Simd, const RUN: usize> Weight<S> for Coded<'_, RUN> {
    #[inline(always)]
    fn first(self, chunks: usize) -> Self {
        let parts = (chunks * S::F32_LANES).div_ceil(16);
        let (scales, offsets) = (&self.scales[..parts], &self.offsets[..parts]);
        Self { pairs: &self.pairs[..parts], scales, offsets }
    }

    #[inline(always)]
    fn even(self, simd: S, i: usize) -> S::f32s {
        self.values(simd, i, false)
    }

    #[inline(always)]
    fn odd(self, simd: S, i: usize) -> S::f32s {
        self.values(simd, i, true)
    }
}
