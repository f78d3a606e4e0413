//! matmul in bf16: activations and weights are rounded to bf16, their products are added in f32.
//!
//! Weights in bf16 are multiplied where they are; other formats are rounded into a panel, once for all
//! rows. Activations are stored in groups of 16 rows, a pair of values of each row after the other
//! ([`Halves`]): a vector of 16 pairs is multiplied by one pair of a weight row, as AVX-512's `dpbf16ps`
//! and AMX's `tdpbf16ps` do, and no sums across lanes are left at the end.
//!
//! **Order.** The inner dimension is split into blocks of [`BLOCK`]; a block's terms are added along it,
//! then the blocks in order. As in f32, a row's result does not depend on the rows beside it. It depends
//! on the CPU: AMX adds even and odd terms of 32 values apart, the others pairs.
//!
//! **Mapping.** A task computes 64 columns, 32 at a time by all rows, 32 at a time. The 32 weight rows of
//! a block, 64 KiB, stay in the caches next to the core. Bound by memory with few rows; with many, AMX is
//! bound by what feeds it and by turning its sums.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use super::matmul::{FEW, Line, resize};
use super::turn::turned;
use crate::format::{decode_plain, unpack};
use crate::weights::Dtype;
use plain::Plain;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::array;
use std::ops::Range;

/// Values of the inner dimension that are processed together: rows are padded to so many.
const CHUNK: usize = 32;

/// Values of the inner dimension whose products are added before they are added to the output.
const BLOCK: usize = 1024;

/// Rows whose activations are stored together.
const GROUP: usize = 16;

/// Weight rows, and rows of activations, that are multiplied at a time.
pub(super) const SIDE: usize = 2 * GROUP;

/// Two adjacent weights.
type Pair = [u8; 4];

/// Pairs of adjacent values of a group of rows: `(pairs, 16)`.
type Rows<'a> = &'a [[u32; GROUP]];

/// The sums of products of 32 weight rows and 32 rows of activations, `(weights, groups, rows)`.
type Sums = [[[f32; GROUP]; 2]; SIDE];

/// What multiplies 32 rows by 32 rows.
trait Kernel {
    /// Writes the sums of products of a block. The weight rows are equally far apart.
    fn multiply(&self, w: &[&[Pair]; SIDE], x: [Rows<'_>; 2], sums: &mut Sums);
}

/// Returns whether the CPU multiplies few rows and many in bf16 faster than in f32.
pub(super) fn faster() -> (bool, bool) {
    #[cfg(target_arch = "x86_64")]
    let (amx, avx512) = (amx::available(), avx512::Dot::new().is_some());
    #[cfg(not(target_arch = "x86_64"))]
    let (amx, avx512) = (false, false);
    // For a single row AMX's tiles are nearly empty and still faster than memory.
    (amx, amx || avx512)
}

/// Rows of activations in bf16, padded with zeros to whole chunks and groups.
pub(super) struct Halves {
    inner: usize,
    /// Pairs of a row.
    pairs: usize,
    /// `(groups, pairs, 16)`.
    words: Vec<Line>,
}

impl Halves {
    /// Rounds the rows that `fill(row, values)` writes, each of `inner` values.
    pub(super) fn new(rows: usize, inner: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let pairs = inner.next_multiple_of(CHUNK) / 2;
        let mut words = Vec::new();
        resize(&mut words, rows.next_multiple_of(GROUP) * pairs);
        words.par_chunks_mut(pairs.max(1)).enumerate().for_each_init(
            || (vec![0.0; inner], vec![0; GROUP * pairs]),
            |(values, rounded), (g, words)| {
                let words: &mut [[u32; GROUP]] = bytemuck::cast_slice_mut(words);
                let here = (rows - g * GROUP).min(GROUP);
                for (r, rounded) in rounded.chunks_exact_mut(pairs).take(here).enumerate() {
                    fill(g * GROUP + r, values);
                    Arch::new().dispatch(Round { values, rounded });
                    if here <= FEW {
                        for (word, pair) in words.iter_mut().zip(rounded) {
                            word[r] = *pair;
                        }
                    }
                }
                if here > FEW {
                    rounded[here * pairs..].fill(0);
                    Arch::new().dispatch(Interleave { rounded, words });
                }
            },
        );
        Self { inner, pairs, words }
    }

    /// Returns pairs `k` of a group of rows.
    #[inline(always)]
    fn group(&self, g: usize, k: &Range<usize>) -> Rows<'_> {
        &bytemuck::cast_slice(&self.words[g * self.pairs..][..self.pairs])[k.clone()]
    }
}

/// Rounds values to bf16, in pairs; the rest of `rounded` becomes zeros.
struct Round<'a> {
    values: &'a [f32],
    rounded: &'a mut [u32],
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (halves, rest) = bytemuck::cast_slice_mut(self.rounded).split_at_mut(self.values.len());
        for (half, value) in halves.iter_mut().zip(self.values) {
            *half = round(*value);
        }
        rest.fill(0);
    }
}

/// Returns the nearest bf16, the even one of two; what is not a number remains so.
#[inline(always)]
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    (if value.is_nan() { bits >> 16 | 0x40 } else { nearest }) as u16
}

/// Turns `(16, pairs)` into `(pairs, 16)`.
struct Interleave<'a> {
    rounded: &'a [u32],
    words: &'a mut [[u32; GROUP]],
}

impl WithSimd for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rounded, words } = self;
        let pairs = words.len();
        let rows: [&[[u32; GROUP]]; GROUP] =
            array::from_fn(|r| rounded[r * pairs..][..pairs].as_chunks().0);
        for (i, words) in words.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            *words = turned(simd, array::from_fn(|r| rows[r][i]));
        }
    }
}

/// Multiplies all rows by weight rows into `out (rows, weights)`.
pub(super) fn multiply(
    x: &Halves,
    weights: &[(Dtype, &[u8])],
    panel: &mut Vec<Line>,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(kernel) = amx::Tiles::new() {
            return Arch::new().dispatch(Task { kernel, x, weights, panel, out });
        }
        if let Some(kernel) = avx512::Dot::new() {
            return Arch::new().dispatch(Task { kernel, x, weights, panel, out });
        }
    }
    Arch::new().dispatch(Task { kernel: Plain, x, weights, panel, out });
}

struct Task<'a, K> {
    kernel: K,
    x: &'a Halves,
    weights: &'a [(Dtype, &'a [u8])],
    panel: &'a mut Vec<Line>,
    out: &'a mut [f32],
}

impl<K: Kernel> WithSimd for Task<'_, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kernel, x, weights, panel, out } = self;
        let cols = weights.len();
        let mut sums = [[[0.0; GROUP]; 2]; SIDE];
        for (unit, weights) in weights.chunks(SIDE).enumerate() {
            for start in (0..x.inner).step_by(BLOCK) {
                let k = start..(start + BLOCK).min(x.inner);
                let pairs = start / 2..start / 2 + k.len().next_multiple_of(CHUNK) / 2;
                let w = match stored(weights, &k) {
                    Some(stored) => stored,
                    None => rounded(simd, weights, &k, panel),
                };
                for (two, out) in out.chunks_mut(SIDE * cols).enumerate() {
                    // A last group alone is multiplied twice.
                    let last = (out.len() > GROUP * cols) as usize;
                    let x = [2 * two, 2 * two + last].map(|group| x.group(group, &pairs));
                    kernel.multiply(&w, x, &mut sums);
                    for (g, out) in out.chunks_mut(GROUP * cols).enumerate() {
                        for half in 0..weights.len().div_ceil(GROUP) {
                            let columns = unit * SIDE + half * GROUP..cols;
                            put(simd, &sums[half * GROUP..], g, start == 0, columns, out);
                        }
                    }
                }
            }
        }
    }
}

/// Returns values `k` of 32 weight rows where they are; `None` if they are not in bf16, whole chunks and
/// equally far apart.
#[inline(always)]
fn stored<'a>(weights: &[(Dtype, &'a [u8])], k: &Range<usize>) -> Option<[&'a [Pair]; SIDE]> {
    let weights: &[(Dtype, &[u8]); SIDE] = weights.try_into().ok()?;
    let address = |row: usize| weights[row].1.as_ptr().addr();
    let stride = address(1).wrapping_sub(address(0));
    let fits = |row: usize| {
        weights[row].0 == Dtype::Bf16
            && address(row) == address(0).wrapping_add(row.wrapping_mul(stride))
    };
    let all = k.len().is_multiple_of(CHUNK) && (0..SIDE).all(fits);
    all.then(|| weights.map(|(_, bytes)| bytes[2 * k.start..2 * k.end].as_chunks().0))
}

/// Rounds values `k` of at most 32 weight rows; those that are missing become zeros.
#[inline(always)]
fn rounded<'a, S: Simd>(
    simd: S,
    weights: &[(Dtype, &[u8])],
    k: &Range<usize>,
    panel: &'a mut Vec<Line>,
) -> [&'a [Pair]; SIDE] {
    let pairs = k.len().next_multiple_of(CHUNK) / 2;
    let panel: &mut [u32] = bytemuck::cast_slice_mut(resize(panel, SIDE * pairs));
    let mut values = [0.0; BLOCK];
    let values = &mut values[..k.len()];
    for ((dtype, bytes), row) in weights.iter().zip(panel.chunks_exact_mut(pairs)) {
        let bytes = &bytes[dtype.bytes(k.start)..dtype.bytes(k.end)];
        match dtype.is_quantized() {
            true => unpack::decode(simd, *dtype, bytes, values),
            false => decode_plain(*dtype, bytes, values),
        }
        Round { values, rounded: row }.with_simd(simd);
    }
    panel[weights.len() * pairs..].fill(0);
    let panel: &[Pair] = bytemuck::cast_slice(panel);
    array::from_fn(|row| &panel[row * pairs..][..pairs])
}

/// Adds the sums of 16 weight rows and group `g` to the columns from `columns.start` on of `out`, whose
/// rows end with `columns`; the first block overwrites what an earlier task left.
#[inline(always)]
fn put<S: Simd>(
    simd: S,
    sums: &[[[f32; GROUP]; 2]],
    g: usize,
    first: bool,
    columns: Range<usize>,
    out: &mut [f32],
) {
    let rows = turned(simd, array::from_fn(|c| sums[c][g]));
    for (out, sums) in out.chunks_exact_mut(columns.end).zip(&rows) {
        for (out, sum) in out[columns.start..].iter_mut().zip(sums) {
            *out = if first { *sum } else { *out + sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{decode, encode};
    use crate::reference::relative_error;
    use half::bf16;

    /// Values from −1 to 1.
    fn values(len: usize, seed: u32) -> Vec<f32> {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        std::iter::repeat_n((), len).scan(seed, |state, ()| next(state)).collect()
    }

    /// Multiplies by each kernel that the CPU has.
    fn by_all(
        x: &Halves,
        weights: &[(Dtype, &[u8])],
        rows: usize,
    ) -> Vec<(&'static str, Vec<f32>)> {
        fn by<K: Kernel>(
            kernel: K,
            x: &Halves,
            weights: &[(Dtype, &[u8])],
            rows: usize,
        ) -> Vec<f32> {
            let (panel, mut out) = (&mut Vec::new(), vec![f32::NAN; rows * weights.len()]);
            Arch::new().dispatch(Task { kernel, x, weights, panel, out: &mut out });
            out
        }
        let mut all = vec![("plain", by(Plain, x, weights, rows))];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx512::Dot::new().map(|kernel| ("AVX-512", by(kernel, x, weights, rows))));
            all.extend(amx::Tiles::new().map(|kernel| ("AMX", by(kernel, x, weights, rows))));
        }
        all
    }

    fn halves(rows: Range<usize>, inner: usize, a: &[f32]) -> Halves {
        Halves::new(rows.len(), inner, |r, row| {
            row.copy_from_slice(&a[(rows.start + r) * inner..][..inner]);
        })
    }

    fn rounded(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| bf16::from_f32(value).to_f64()).collect()
    }

    #[test]
    fn all_kernels_multiply_what_is_rounded() {
        for (rows, cols, inner) in
            [(1, 1, 2), (5, 64, 32), (16, 31, 40), (17, 33, 96), (33, 64, 1056), (70, 48, 2560)]
        {
            let (a, w) = (values(rows * inner, 1), values(cols * inner, 2));
            let x = halves(0..rows, inner, &a);
            for dtype in Dtype::ALL.into_iter().filter(|dtype| inner % dtype.block() == 0) {
                let (mut bytes, mut read) = (vec![0; dtype.bytes(w.len())], vec![0.0; w.len()]);
                encode(dtype, &w, &mut bytes);
                decode(dtype, &bytes, &mut read);
                let weights: Vec<_> =
                    bytes.chunks(dtype.bytes(inner)).map(|row| (dtype, row)).collect();
                let (a, w) = (rounded(&a), rounded(&read));
                let dot = |a: &[f64], w: &[f64]| a.iter().zip(w).map(|(a, w)| a * w).sum::<f64>();
                let expected: Vec<f64> =
                    a.chunks(inner).flat_map(|a| w.chunks(inner).map(|w| dot(a, w))).collect();
                for (kernel, found) in by_all(&x, &weights, rows) {
                    let error = relative_error(&found, &expected);
                    assert!(error < 1e-6, "{kernel}, {dtype}, {rows}, {cols}, {inner}: {error}");
                }
            }
        }
    }

    /// Weight rows from two places, as of gate and up, are not equally far apart.
    #[test]
    fn rows_have_the_same_bits_at_any_place() {
        let (rows, cols, inner) = (40, 64, 1088);
        let (a, w) = (values(rows * inner, 3), values(2 * cols * inner, 4));
        let w: Vec<u8> = w.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        let row = |r: usize| (Dtype::Bf16, &w[r * 2 * inner..][..2 * inner]);
        let apart: Vec<_> = (0..16).chain(70..118).map(row).collect();
        let all = by_all(&halves(0..rows, inner, &a), &apart, rows);
        let some = by_all(&halves(21..30, inner, &a), &apart[20..], 9);
        for ((kernel, all), (_, some)) in all.iter().zip(&some) {
            for r in 0..9 {
                let (all, some) = (&all[(21 + r) * cols + 20..][..44], &some[r * 44..][..44]);
                assert_eq!(all, some, "{kernel}");
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (found, expected) = (bf16::from_bits(round(value)), bf16::from_f32(value));
                assert_eq!(found.is_nan(), expected.is_nan(), "{value}");
                assert!(found.is_nan() || found.to_bits() == expected.to_bits(), "{value}");
            }
        }
    }
}
