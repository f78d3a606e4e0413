//! Takes rows of quantised blocks apart, to codes, scales and offsets that lie in arrays of the
//! same form for all formats. From there they become f32 without a word about the format.

use super::{Block, Dtype, Parts, WithBlock, with_block};
use pulp::{Simd, WithSimd};
use std::hint::black_box;

/// Values that are taken apart at a time; a multiple of every block. Their codes, scales and
/// offsets take 1.5 KiB of the first-level cache.
pub(crate) const VALUES: usize = 1024;

const PARTS: usize = VALUES / 32;

/// Codes, scales and offsets of up to [`VALUES`] values of a row.
pub(crate) struct Codes {
    /// In the order of the values.
    pub(crate) codes: [[i8; 32]; PARTS],
    /// Scale of each 16 values.
    pub(crate) scales: [[f32; 2]; PARTS],
    /// Offset of each 16 values.
    pub(crate) offsets: [[f32; 2]; PARTS],
}

impl Codes {
    /// Returns all zeros.
    pub(crate) const fn new() -> Self {
        let (scales, offsets) = ([[0.0; 2]; PARTS], [[0.0; 2]; PARTS]);
        Self { codes: [[0; 32]; PARTS], scales, offsets }
    }

    /// Takes whole blocks of at most [`VALUES`] values apart.
    #[inline(always)]
    pub(crate) fn take<const BYTES: usize, const N: usize, B: Block<BYTES, N>>(
        &mut self,
        bytes: &[u8],
    ) {
        let codes = self.codes.as_chunks_mut::<N>().0.iter_mut();
        let scales = self.scales.as_chunks_mut::<N>().0.iter_mut();
        let offsets = self.offsets.as_chunks_mut::<N>().0.iter_mut();
        let blocks = bytes.as_chunks::<BYTES>().0.iter();
        for (((bytes, codes), scales), offsets) in blocks.zip(codes).zip(scales).zip(offsets) {
            // The compiler must not take several blocks at once: it would gather single bytes,
            // because the blocks' bytes are not adjacent.
            let parts = B::take(black_box(bytes));
            Parts { codes: *codes, scales: *scales, offsets: *offsets } = parts;
        }
    }
}

/// Takes whole blocks of at most [`VALUES`] values apart; of plain elements, nothing.
///
/// This is a call: inlined, the code of all formats stood in several places for each kind of
/// vector, and the crate took five times as long to compile.
#[inline(always)]
pub(crate) fn take<S: Simd>(simd: S, dtype: Dtype, bytes: &[u8], codes: &mut Codes) {
    simd.vectorize(Take { dtype, bytes, codes });
}

struct Take<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    codes: &'a mut Codes,
}

impl WithSimd for Take<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        with_block(self.dtype, self);
    }
}

impl WithBlock for Take<'_> {
    type Output = ();

    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) {
        self.codes.take::<BYTES, PARTS, B>(self.bytes);
    }
}

/// Decodes whole blocks of a quantised format into as many values.
#[inline(always)]
pub(crate) fn decode<S: Simd>(simd: S, dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let mut taken = Codes::new();
    let size = dtype.bytes(VALUES);
    for (bytes, out) in bytes.chunks(size).zip(out.chunks_mut(VALUES)) {
        take(simd, dtype, bytes, &mut taken);
        let parts = taken.codes.iter().zip(&taken.scales).zip(&taken.offsets);
        for (out, ((codes, scales), offsets)) in out.as_chunks_mut::<32>().0.iter_mut().zip(parts) {
            let mut values = [0.0; 32];
            for i in 0..32 {
                values[i] = f32::from(codes[i]);
            }
            let (values, out) = (S::as_simd_f32s(&values).0, S::as_mut_simd_f32s(out).0);
            for v in 0..32 / S::F32_LANES {
                let run = v * S::F32_LANES / 16;
                let scale = simd.splat_f32s(scales[run]);
                out[v] = simd.mul_add_e_f32s(scale, values[v], simd.splat_f32s(offsets[run]));
            }
        }
    }
}
