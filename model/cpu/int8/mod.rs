//! matmul for few rows and quantised weights, with activations rounded to 8 bits: the dot products
//! are of whole numbers.
//!
//! A run of 32 activations becomes codes: x ≈ unit · code, unit = max |x| / 127. Weights are
//! `scale · code + offset` in runs of 16 or 32, so that a run's part of an output is
//! unit · (scale · Σ code code + offset · Σ code), and each sum of codes is exact. What is lost is the
//! rounding of x, at most half a unit.
//!
//! Four runs are multiplied at a time ([`Quad`]): their sums then lie side by side in one vector, and
//! are multiplied by their scales together. AVX-512's and AVX-VNNI's `dpbusd` adds 32 products of 8 bits
//! in one instruction, AVX2 in two, where f32 takes sixteen. Bound by memory.

mod rounded;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::matmul::FEW;
use super::prefetch::{AHEAD, is_needed, prefetch};
use crate::format::{Block, Units, WithBlock, scale, with_block};
use crate::weights::Dtype;
use rounded::Quad;
pub(super) use rounded::Rounded;
use std::array;

/// Multiplies all rows by quantised weight rows into `out (rows, weights)`.
pub(super) fn multiply(x: &Rounded, weights: &[(Dtype, &[u8])], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(vectors) = x86::X86::new() {
            return x86::by_vnni(All { vectors, x, weights, out });
        }
        if let Some(vectors) = x86::X86::new() {
            return x86::by_avx2(All { vectors, x, weights, out });
        }
    }
    All { vectors: Plain, x, weights, out }.run();
}

struct All<'a, V> {
    vectors: V,
    x: &'a Rounded,
    weights: &'a [(Dtype, &'a [u8])],
    out: &'a mut [f32],
}

impl<V: Vectors> All<'_, V> {
    #[inline(always)]
    fn run(self) {
        if self.out.len() == self.weights.len() { self.by::<1>() } else { self.by::<FEW>() }
    }

    #[inline(always)]
    fn by<const N: usize>(self) {
        let Self { vectors, x, weights, out } = self;
        let (x, cols, mut start) = (x.rows::<N>(), weights.len(), 0);
        for weights in weights.chunk_by(|a, b| a.0 == b.0) {
            let out = &mut out[start..];
            with_block(weights[0].0, Products { vectors, x, weights, out, cols });
            start += weights.len();
        }
    }
}

/// Some rows of activations and rows of weights of one format.
struct Products<'a, V, const N: usize> {
    vectors: V,
    x: [&'a [Quad]; N],
    weights: &'a [(Dtype, &'a [u8])],
    /// From the first row's and the first weight row's output on.
    out: &'a mut [f32],
    /// Outputs of a row.
    cols: usize,
}

impl<V: Vectors, const N: usize> WithBlock for Products<'_, V, N> {
    type Output = ();

    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) {
        let Self { vectors, x, weights, out, cols } = self;
        for (c, (_, bytes)) in weights.iter().enumerate() {
            let sums = row::<V, N, BYTES, PARTS, B>(vectors, x, bytes);
            for (out, sum) in out.chunks_mut(cols).zip(sums) {
                out[c] = sum;
            }
        }
    }
}

/// Multiplies rows of activations by a weight row. Here too there are loops instead of closures; see
/// `tile` in `matmul.rs`.
#[inline(always)]
fn row<
    V: Vectors,
    const N: usize,
    const BYTES: usize,
    const PARTS: usize,
    B: Block<BYTES, PARTS>,
>(
    vectors: V,
    x: [&[Quad]; N],
    bytes: &[u8],
) -> [f32; N] {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let (ahead, mut sums) = (is_needed(), [[0.0; 8]; N]);
    if PARTS == 1 {
        let (fours, rest) = blocks.as_chunks::<4>();
        for (q, four) in fours.iter().enumerate() {
            if ahead {
                prefetch(bytes, 4 * q * BYTES + AHEAD);
                prefetch(bytes, 4 * q * BYTES + AHEAD + 64);
            }
            let four = [&four[0], &four[1], &four[2], &four[3]];
            Weights::of_four::<V, BYTES, PARTS, B>(vectors, four).add(vectors, x, q, &mut sums);
        }
        if !rest.is_empty() {
            // The last four, some of which the last quad of activations leaves out.
            let four = match blocks.last_chunk() {
                Some(four) => four,
                None => {
                    let mut four = [[0; BYTES]; 4];
                    four[..blocks.len()].copy_from_slice(blocks);
                    &{ four }
                }
            };
            let four = [&four[0], &four[1], &four[2], &four[3]];
            let weights = Weights::of_four::<V, BYTES, PARTS, B>(vectors, four);
            weights.add(vectors, x, fours.len(), &mut sums);
        }
    } else {
        for (b, block) in blocks.iter().enumerate() {
            if ahead {
                for line in 0..BYTES.div_ceil(64) {
                    prefetch(bytes, b * BYTES + AHEAD + 64 * line);
                }
            }
            let mut codes = B::codes(block);
            if let Some(levels) = &B::LEVELS {
                for run in &mut codes {
                    *run = vectors.levels(levels, *run);
                }
            }
            let units = B::units(block);
            for q in 0..PARTS / 4 {
                let codes = &codes.as_chunks().0[q];
                let weights = Weights::of_runs::<V, BYTES, PARTS, B>(vectors, codes, &units, q);
                weights.add(vectors, x, b * PARTS / 4 + q, &mut sums);
            }
        }
    }
    let mut totals = [0.0; N];
    for r in 0..N {
        totals[r] = vectors.total(sums[r]);
    }
    totals
}

/// Four runs of weights; lanes as in [`Quad`].
struct Weights {
    codes: [[i8; 32]; 4],
    /// Whether codes can be negative.
    signed: bool,
    scales: [f32; 8],
    offsets: Option<[f32; 8]>,
}

impl Weights {
    /// Takes four blocks of one run each.
    #[inline(always)]
    fn of_four<V: Vectors, const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(
        vectors: V,
        blocks: [&[u8; BYTES]; 4],
    ) -> Self {
        let (mut codes, mut units, mut offset_units) = ([[0; 32]; 4], [0; 4], [0; 4]);
        for b in 0..4 {
            codes[b] = B::codes(blocks[b])[0];
            [units[b], offset_units[b]] = B::units(blocks[b]).units;
        }
        let scales = twice(vectors.halves(units));
        let offsets = if B::OFFSETS { Some(twice(vectors.halves(offset_units))) } else { None };
        Self { codes, signed: B::SIGNED || B::LEVELS.is_some(), scales, offsets }
    }

    /// Takes the `q`-th four runs of a block.
    #[inline(always)]
    fn of_runs<V: Vectors, const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(
        vectors: V,
        codes: &[[i8; 32]; 4],
        units: &Units,
        q: usize,
    ) -> Self {
        let [unit, offset_unit, ..] = vectors.halves([units.units[0], units.units[1], 0, 0]);
        let scales = vectors.times(unit, units.scales[q], B::RUN);
        let offsets = match B::OFFSETS {
            true => Some(vectors.times(offset_unit, units.offsets[q], B::RUN)),
            false => None,
        };
        Self { codes: *codes, signed: B::SIGNED || B::LEVELS.is_some(), scales, offsets }
    }

    /// Adds the products with quad `q` of rows of activations to sums, whose totals are the outputs.
    #[inline(always)]
    fn add<V: Vectors, const N: usize>(
        &self,
        vectors: V,
        x: [&[Quad]; N],
        q: usize,
        sums: &mut [[f32; 8]; N],
    ) {
        for r in 0..N {
            let x = &x[r][q];
            let dots = vectors.dots(&self.codes, self.signed, x);
            let mut scales = self.scales;
            for (scale, unit) in scales.iter_mut().zip(&x.units) {
                *scale *= unit;
            }
            sums[r] = vectors.mul_add(scales, dots, sums[r]);
            if let Some(offsets) = self.offsets {
                sums[r] = vectors.mul_add(offsets, x.weighted, sums[r]);
            }
        }
    }
}

/// Returns four lanes twice.
#[inline(always)]
fn twice([a, b, c, d]: [f32; 4]) -> [f32; 8] {
    [a, b, c, d, a, b, c, d]
}

/// Vectors of eight lanes.
trait Vectors: Copy {
    /// Returns four f16 numbers, given as their bits.
    fn halves(self, halves: [u16; 4]) -> [f32; 4];
    /// Returns the levels that numbers from 0 to 15 stand for.
    fn levels(self, levels: &[i8; 16], numbers: [i8; 32]) -> [i8; 32];
    /// Returns a word of [`Units`]' numbers times a unit.
    fn times(self, unit: f32, numbers: u64, run: usize) -> [f32; 8];
    /// Returns the dot products of halves of runs, which are whole numbers below 2²⁴. `signed` says
    /// whether codes can be negative.
    fn dots(self, w: &[[i8; 32]; 4], signed: bool, x: &Quad) -> [f32; 8];
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8];
    fn total(self, sums: [f32; 8]) -> f32;
}

/// For CPUs without AVX2: what the compiler makes of loops.
#[derive(Clone, Copy)]
struct Plain;

impl Vectors for Plain {
    #[inline(always)]
    fn halves(self, halves: [u16; 4]) -> [f32; 4] {
        halves.map(|half| scale::half(half.to_le_bytes()))
    }

    #[inline(always)]
    fn levels(self, levels: &[i8; 16], numbers: [i8; 32]) -> [i8; 32] {
        numbers.map(|number| levels[(number & 15) as usize])
    }

    #[inline(always)]
    fn times(self, unit: f32, numbers: u64, run: usize) -> [f32; 8] {
        array::from_fn(|lane| {
            let byte = if run == 16 { lane % 4 * 2 + lane / 4 } else { lane % 4 };
            unit * f32::from((numbers >> (8 * byte)) as i8)
        })
    }

    #[inline(always)]
    fn dots(self, w: &[[i8; 32]; 4], _: bool, x: &Quad) -> [f32; 8] {
        let mut dots = [0; 8];
        for (lane, dot) in dots.iter_mut().enumerate() {
            let (run, half) = (lane % 4, lane / 4 * 16..lane / 4 * 16 + 16);
            for (w, x) in w[run][half.clone()].iter().zip(&x.codes[run][half]) {
                *dot += i32::from(*w) * i32::from(*x);
            }
        }
        dots.map(|dot| dot as f32)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        let mut sums = c;
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
        sums
    }

    #[inline(always)]
    fn total(self, sums: [f32; 8]) -> f32 {
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::encode;
    use crate::reference::relative_error;

    /// Each kind of instructions that the CPU has gives the products of the plain loops. What those
    /// are, `tests/int8.rs` says.
    #[test]
    fn all_vectors_multiply_alike() {
        let values = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|i| (i as f32 * step).sin()).collect()
        };
        // The last four runs of a row are whole, overlap with those before, or are too few.
        for inner in [512, 288, 32] {
            let (a, w) = (values(3 * inner, 0.7), values(19 * inner, 1.3));
            let quantized = Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized());
            for dtype in quantized.filter(|dtype| inner % dtype.block() == 0) {
                let mut bytes = vec![0; dtype.bytes(w.len())];
                encode(dtype, &w, &mut bytes);
                let weights: Vec<_> =
                    bytes.chunks(dtype.bytes(inner)).map(|row| (dtype, row)).collect();
                for rows in [1, 3] {
                    let x = Rounded::new(inner, &a[..rows * inner]);
                    let mut plain = vec![0.0; rows * weights.len()];
                    All { vectors: Plain, x: &x, weights: &weights, out: &mut plain }.run();
                    #[cfg(target_arch = "x86_64")]
                    for vnni in [false, true] {
                        let (weights, out) = (&weights, &mut vec![0.0; plain.len()]);
                        match (vnni, x86::X86::new(), x86::X86::new()) {
                            (true, Some(vectors), _) => {
                                x86::by_vnni(All { vectors, x: &x, weights, out });
                            }
                            (false, _, Some(vectors)) => {
                                x86::by_avx2(All { vectors, x: &x, weights, out });
                            }
                            _ => continue,
                        }
                        let error = relative_error(out, &plain);
                        assert!(error < 4e-6, "{dtype}, {inner}, VNNI {vnni}: {error}");
                    }
                }
            }
        }
    }
}
