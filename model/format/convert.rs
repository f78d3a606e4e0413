//! Rows of stored weights to f32 and back, for all formats.

use super::{Block, Dtype, WithBlock, scale, unpack, with_block};
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Decodes the elements stored in `bytes` into `out`, which has the same number of elements, a
/// multiple of [`Dtype::block`].
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    Arch::new().dispatch(Decode { dtype, bytes, out });
}

struct Decode<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl WithSimd for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dtype, bytes, out } = self;
        match dtype.is_quantized() {
            true => unpack::decode(simd, dtype, bytes, out),
            false => decode_plain(dtype, bytes, out),
        }
    }
}

/// [`decode`] for plain elements; quantised ones are left as they are.
#[inline(always)]
pub(crate) fn decode_plain(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Dtype::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = scale::half(*bytes);
            }
        }
        Dtype::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        _ => debug_assert!(false, "{dtype} is quantised"),
    }
}

/// Values that a thread encodes at a time, a multiple of every block.
const PIECE: usize = 1 << 14;

/// Encodes `values`, a multiple of [`Dtype::block`], into as many bytes as [`Dtype::bytes`] says.
///
/// Plain elements are rounded to the nearest. Quantised blocks have the scale, among the tried
/// ones, with the smallest squared error. NaN counts as 0, and values beyond the largest scale
/// become the largest value. All threads take part; the bytes do not depend on their number.
pub fn encode(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    debug_assert_eq!(dtype.bytes(values.len()), out.len());
    let pieces = out.par_chunks_mut(dtype.bytes(PIECE)).zip(values.par_chunks(PIECE));
    pieces.for_each(|(bytes, values)| Arch::new().dispatch(Encode { dtype, values, bytes }));
}

struct Encode<'a> {
    dtype: Dtype,
    values: &'a [f32],
    bytes: &'a mut [u8],
}

impl WithSimd for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.dtype {
            Dtype::Bf16 => {
                for (to, &value) in self.bytes.as_chunks_mut::<2>().0.iter_mut().zip(self.values) {
                    *to = bf16::from_f32(value).to_le_bytes();
                }
            }
            Dtype::F16 => {
                for (to, &value) in self.bytes.as_chunks_mut::<2>().0.iter_mut().zip(self.values) {
                    *to = f16::from_f32(value).to_le_bytes();
                }
            }
            Dtype::F32 => {
                for (to, &value) in self.bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.values) {
                    *to = value.to_le_bytes();
                }
            }
            dtype => {
                let Self { values, bytes, .. } = self;
                with_block(dtype, EncodeBlocks { simd, values, bytes });
            }
        }
    }
}

struct EncodeBlocks<'a, S> {
    simd: S,
    values: &'a [f32],
    bytes: &'a mut [u8],
}

impl<S: Simd> WithBlock for EncodeBlocks<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) {
        let parts = self.values.as_chunks::<32>().0.as_chunks::<PARTS>().0;
        for (values, bytes) in parts.iter().zip(self.bytes.as_chunks_mut::<BYTES>().0) {
            let mut values = *values;
            for value in values.as_flattened_mut() {
                let cut = if *value > LARGEST { LARGEST } else { *value };
                // False for NaN.
                *value = if cut > -LARGEST {
                    cut
                } else if cut.is_nan() {
                    0.0
                } else {
                    -LARGEST
                };
            }
            B::make(self.simd, &values, bytes);
        }
    }
}

/// Magnitude to which values are cut: its square is finite, and no format reaches it.
const LARGEST: f32 = (1u64 << 40) as f32;
