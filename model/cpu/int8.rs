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

use super::matmul::FEW;
use super::matvec::AHEAD;
use super::prefetch::prefetch;
use crate::format::{Block, Units, WithBlock, scale, with_block};
use crate::weights::Dtype;
use pulp::Arch;
use std::array;

/// Rows of activations in 8 bits: one, or [`FEW`], some of them zeros.
pub(super) struct Rounded {
    quads: usize,
    /// Of all rows, `(rows, quads)`.
    all: Vec<Quad>,
}

/// Four runs of 32 activations. Lane l of eight is about run l mod 4, its first half for l < 4.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Quad {
    codes: [[i8; 32]; 4],
    units: [f32; 8],
    /// Sums of the codes of each half.
    sums: [i32; 8],
    /// These sums times the units.
    weighted: [f32; 8],
}

/// 1.5 · 2²³: the last bits of a sum with it are those of the nearest whole number.
const WHOLE: f32 = 12_582_912.0;

impl Quad {
    const ZERO: Self =
        Self { codes: [[0; 32]; 4], units: [0.0; 8], sums: [0; 8], weighted: [0.0; 8] };

    /// Rounds four runs.
    #[inline(always)]
    fn new(values: &[f32; 128]) -> Self {
        let mut quad = Self::ZERO;
        for (r, values) in values.as_chunks::<32>().0.iter().enumerate() {
            // The bits of numbers that are not negative have their order, with NaN last.
            let largest = values.iter().fold(0, |max, x| x.abs().to_bits().max(max));
            let unit = f32::from_bits(largest) / 127.0;
            // Of zeros, and of numbers too small for a unit, all codes are 0. A value that is not
            // finite makes the unit so, and with it the outputs, as in f32.
            let inverse = if unit >= f32::MIN_POSITIVE { 1.0 / unit } else { 0.0 };
            let mut sums = [0; 2];
            for i in 0..32 {
                quad.codes[r][i] = (values[i] * inverse + WHOLE).to_bits() as i8;
                sums[i / 16] += i32::from(quad.codes[r][i]);
            }
            for (half, sum) in sums.into_iter().enumerate() {
                let lane = 4 * half + r;
                (quad.units[lane], quad.sums[lane]) = (unit, sum);
                quad.weighted[lane] = unit * sum as f32;
            }
        }
        quad
    }
}

impl Rounded {
    /// Rounds rows of `inner` values each, a multiple of 32; at most [`FEW`] rows.
    pub(super) fn new(inner: usize, rows: &[f32]) -> Self {
        let quads = inner.div_ceil(128);
        let count = if rows.len() > inner { FEW } else { 1 };
        let mut all = vec![Quad::ZERO; count * quads];
        Arch::new().dispatch(|| {
            for (row, quads) in rows.chunks(inner).zip(all.chunks_mut(quads)) {
                let (whole, rest) = row.as_chunks::<128>();
                for (quad, values) in quads.iter_mut().zip(whole) {
                    *quad = Quad::new(values);
                }
                // The last runs are the last of their quad, after zeros in place of those before.
                if !rest.is_empty() {
                    let (mut values, start) = ([0.0; 128], 128 - rest.len());
                    let start = if whole.is_empty() { 0 } else { start };
                    values[start..start + rest.len()].copy_from_slice(rest);
                    quads[whole.len()] = Quad::new(&values);
                }
            }
        });
        Self { quads, all }
    }

    /// Returns `N` rows.
    fn rows<const N: usize>(&self) -> [&[Quad]; N] {
        array::from_fn(|r| &self.all[r * self.quads..][..self.quads])
    }
}

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
    let mut sums = [[0.0; 8]; N];
    if PARTS == 1 {
        let (fours, rest) = blocks.as_chunks::<4>();
        for (q, four) in fours.iter().enumerate() {
            prefetch(bytes, 4 * q * BYTES + AHEAD);
            prefetch(bytes, 4 * q * BYTES + AHEAD + 64);
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
            for line in 0..BYTES.div_ceil(64) {
                prefetch(bytes, b * BYTES + AHEAD + 64 * line);
            }
            // Numbers of levels become the levels only where a block is taken apart.
            let codes = if B::LEVELS.is_some() { B::take(block).codes } else { B::codes(block) };
            let units = B::units(block);
            for q in 0..PARTS / 4 {
                let codes = &codes.as_chunks().0[q];
                let weights = Weights::of_runs::<BYTES, PARTS, B>(codes, &units, 4 * q);
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

    /// Takes four runs of a block from run `first` on.
    #[inline(always)]
    fn of_runs<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(
        codes: &[[i8; 32]; 4],
        units: &Units<PARTS>,
        first: usize,
    ) -> Self {
        let unit = scale::half(units.units[0].to_le_bytes());
        let offset_unit = scale::half(units.units[1].to_le_bytes());
        let (mut scales, mut offsets) = ([0.0; 8], [0.0; 8]);
        for half in 0..2 {
            for r in 0..4 {
                // One number of a run of 32 is read once.
                let number = if B::RUN == 16 { half } else { 0 };
                scales[4 * half + r] = unit * f32::from(units.scales[first + r][number]);
                offsets[4 * half + r] = offset_unit * f32::from(units.offsets[first + r][number]);
            }
        }
        let offsets = if B::OFFSETS { Some(offsets) } else { None };
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{All, Quad, Vectors};
    use bytemuck::cast;
    use pulp::x86::V3;
    use std::arch::x86_64::{__m256i, _mm_cvtph_ps, _mm_set_epi16, _mm256_dpbusd_epi32};

    /// AVX2 and F16C; with `VNNI` also AVX-512's `dpbusd` on vectors of 256 bits.
    #[derive(Clone, Copy)]
    pub(super) struct X86<const VNNI: bool>(V3);

    impl<const VNNI: bool> X86<VNNI> {
        /// Returns the vectors if the CPU has them.
        pub(super) fn new() -> Option<Self> {
            let vnni =
                is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
            let has = is_x86_feature_detected!("f16c") && (vnni || !VNNI);
            V3::try_new().filter(|_| has).map(Self)
        }
    }

    /// Multiplies with AVX2.
    pub(super) fn by_avx2(all: All<'_, X86<false>>) {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
        fn run(all: All<'_, X86<false>>) {
            all.run();
        }
        // SAFETY: there is an `X86` only where the CPU has these.
        unsafe { run(all) }
    }

    /// Multiplies with AVX2 and VNNI.
    pub(super) fn by_vnni(all: All<'_, X86<true>>) {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,avx512f,avx512vl,avx512vnni")]
        fn run(all: All<'_, X86<true>>) {
            all.run();
        }
        // SAFETY: as above.
        unsafe { run(all) }
    }

    impl<const VNNI: bool> Vectors for X86<VNNI> {
        #[inline(always)]
        fn halves(self, halves: [u16; 4]) -> [f32; 4] {
            let [a, b, c, d] = halves.map(|half| half as i16);
            // SAFETY: `new` has found F16C.
            unsafe { cast(_mm_cvtph_ps(_mm_set_epi16(0, 0, 0, 0, d, c, b, a))) }
        }

        #[inline(always)]
        fn dots(self, w: &[[i8; 32]; 4], signed: bool, x: &Quad) -> [f32; 8] {
            let simd = self.0.avx2;
            let mut runs: [__m256i; 4] = [cast([0i32; 8]); 4];
            for r in 0..4 {
                let (mut w, mut x) = (cast(w[r]), cast(x.codes[r]));
                if VNNI {
                    // The first factor has no sign: 128 more make the codes positive.
                    if signed {
                        w = simd._mm256_xor_si256(w, cast([i8::MIN; 32]));
                    }
                    // SAFETY: `new` has found VNNI.
                    runs[r] = unsafe { _mm256_dpbusd_epi32(runs[r], w, x) };
                } else {
                    // Nor has it here, where 128 more would be too many: its sign moves.
                    if signed {
                        (w, x) = (simd._mm256_abs_epi8(w), simd._mm256_sign_epi8(x, w));
                    }
                    // Two products are at most 2 · 128 · 127, which 16 bits hold.
                    let pairs = simd._mm256_maddubs_epi16(w, x);
                    runs[r] = simd._mm256_madd_epi16(pairs, cast([1i16; 16]));
                }
            }
            // Each run has the sums of its first half in its first four lanes.
            let ab = simd._mm256_hadd_epi32(runs[0], runs[1]);
            let cd = simd._mm256_hadd_epi32(runs[2], runs[3]);
            let mut dots = simd._mm256_hadd_epi32(ab, cd);
            if VNNI && signed {
                let more = simd._mm256_slli_epi32::<7>(cast(x.sums));
                dots = simd._mm256_sub_epi32(dots, more);
            }
            cast(self.0.avx._mm256_cvtepi32_ps(dots))
        }

        #[inline(always)]
        fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
            cast(self.0.fma._mm256_fmadd_ps(cast(a), cast(b), cast(c)))
        }

        #[inline(always)]
        fn total(self, sums: [f32; 8]) -> f32 {
            let mut four = [0.0; 4];
            for l in 0..4 {
                four[l] = sums[l] + sums[4 + l];
            }
            (four[0] + four[2]) + (four[1] + four[3])
        }
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
