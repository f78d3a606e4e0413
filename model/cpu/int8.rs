//! matmul for few rows and quantised weights, with activations rounded to 8 bits: the dot products
//! are of whole numbers.
//!
//! A run of 32 activations becomes codes: x ≈ unit · code, unit = max |x| / 127. Weights are
//! `scale · code + offset` in runs of 16 or 32, so that a run's part of an output is
//! unit · (scale · Σ code code + offset · Σ code), and each sum of codes is exact. What is lost is the
//! rounding of x, at most half a unit.
//!
//! AVX2 multiplies 16 pairs of 16-bit numbers and adds neighbours in one instruction: 32 weights
//! take five instructions where widening them to f32 takes sixteen. Bound by memory.

use super::matmul::FEW;
use super::matvec::AHEAD;
use super::prefetch::prefetch;
use crate::format::{Block, WithBlock, with_block};
use crate::weights::Dtype;
use pulp::Arch;
use std::array;

/// Rows of activations in 8 bits: one, or [`FEW`], some of them zeros.
pub(super) struct Rounded {
    runs: usize,
    /// Of all rows, `(rows, runs)`.
    all: Vec<Run>,
}

/// 32 activations.
#[derive(Clone, Copy)]
struct Run {
    /// In 16 bits, as they are multiplied.
    codes: [i16; 32],
    unit: f32,
    /// The sum of each half's codes, times the unit.
    sums: [f32; 2],
    /// Both sums together.
    sum: f32,
}

/// 1.5 · 2²³: the last bits of a sum with it are those of the nearest whole number.
const WHOLE: f32 = 12_582_912.0;

impl Run {
    const ZERO: Self = Self { codes: [0; 32], unit: 0.0, sums: [0.0; 2], sum: 0.0 };

    #[inline(always)]
    fn new(values: &[f32; 32]) -> Self {
        // The bits of numbers that are not negative have their order, with NaN last.
        let largest = values.iter().fold(0, |max, x| x.abs().to_bits().max(max));
        let unit = f32::from_bits(largest) / 127.0;
        // Of zeros, and of numbers too small for a unit, all codes are 0. A value that is not finite
        // makes the unit so, and with it the outputs, as in f32.
        let inverse = if unit >= f32::MIN_POSITIVE { 1.0 / unit } else { 0.0 };
        let (mut codes, mut sums) = ([0; 32], [0; 2]);
        for i in 0..32 {
            codes[i] = (values[i] * inverse + WHOLE).to_bits() as i16;
            sums[i / 16] += i32::from(codes[i]);
        }
        let sums = sums.map(|sum| unit * sum as f32);
        Self { codes, unit, sums, sum: sums[0] + sums[1] }
    }
}

impl Rounded {
    /// Rounds rows of `inner` values each, a multiple of 32; at most [`FEW`] rows.
    pub(super) fn new(inner: usize, rows: &[f32]) -> Self {
        let runs = inner / 32;
        let count = if rows.len() > inner { FEW } else { 1 };
        let mut all = vec![Run::ZERO; count * runs];
        Arch::new().dispatch(|| {
            for (run, values) in all.iter_mut().zip(rows.as_chunks().0) {
                *run = Run::new(values);
            }
        });
        Self { runs, all }
    }

    /// Returns `N` rows.
    fn rows<const N: usize>(&self) -> [&[Run]; N] {
        array::from_fn(|r| &self.all[r * self.runs..][..self.runs])
    }
}

/// Multiplies all rows by quantised weight rows into `out (rows, weights)`.
pub(super) fn multiply(x: &Rounded, weights: &[(Dtype, &[u8])], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(vectors) = pulp::x86::V3::try_new() {
        return vectors.vectorize(All { vectors, x, weights, out });
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
        let x = x.rows::<N>();
        for (c, &(dtype, bytes)) in weights.iter().enumerate() {
            let sums = with_block(dtype, Product { vectors, x, bytes }).unwrap_or([0.0; N]);
            for (out, sum) in out.chunks_exact_mut(weights.len()).zip(sums) {
                out[c] = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for All<'_, pulp::x86::V3> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.run();
    }
}

/// Some rows of activations and a row of weights.
struct Product<'a, V, const N: usize> {
    vectors: V,
    x: [&'a [Run]; N],
    bytes: &'a [u8],
}

impl<V: Vectors, const N: usize> WithBlock for Product<'_, V, N> {
    type Output = [f32; N];

    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) -> [f32; N] {
        let Self { vectors, x, bytes } = self;
        let (mut sums, mut offsets) = ([vectors.zero(); N], [0.0; N]);
        let blocks = bytes.as_chunks::<BYTES>().0;
        let x = x.map(|x| &x.as_chunks::<PARTS>().0[..blocks.len()]);
        for (b, block) in blocks.iter().enumerate() {
            prefetch(bytes, b * BYTES + AHEAD);
            let parts = B::take(block);
            for p in 0..PARTS {
                for r in 0..N {
                    let (x, codes) = (&x[r][b][p], &parts.codes[p]);
                    let scales = parts.scales[p].map(|scale| scale * x.unit);
                    sums[r] = match B::RUN {
                        16 => vectors.add_halves(sums[r], &x.codes, codes, scales),
                        _ => vectors.add(sums[r], &x.codes, codes, scales[0]),
                    };
                    let [first, second] = parts.offsets[p];
                    offsets[r] += match B::RUN {
                        _ if !B::OFFSETS => 0.0,
                        16 => first * x.sums[0] + second * x.sums[1],
                        _ => first * x.sum,
                    };
                }
            }
        }
        for r in 0..N {
            offsets[r] += vectors.total(sums[r]);
        }
        offsets
    }
}

/// Sums of products of codes, in eight lanes of f32.
trait Vectors: Copy {
    type Sum: Copy;

    fn zero(self) -> Self::Sum;
    /// Adds the dot product of 32 codes, times a scale.
    fn add(self, sum: Self::Sum, x: &[i16; 32], w: &[i8; 32], scale: f32) -> Self::Sum;
    /// Adds the dot products of both halves, each with its scale.
    fn add_halves(self, sum: Self::Sum, x: &[i16; 32], w: &[i8; 32], scales: [f32; 2])
    -> Self::Sum;
    fn total(self, sum: Self::Sum) -> f32;
}

/// For CPUs without AVX2: what the compiler makes of loops.
#[derive(Clone, Copy)]
struct Plain;

impl Plain {
    #[inline(always)]
    fn half(x: &[i16; 32], w: &[i8; 32], half: usize) -> [i32; 8] {
        let product = |i: usize| i32::from(x[i]) * i32::from(w[i]);
        array::from_fn(|l| half * 16 + 2 * l).map(|i| product(i) + product(i + 1))
    }
}

impl Vectors for Plain {
    type Sum = [f32; 8];

    #[inline(always)]
    fn zero(self) -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    fn add(self, mut sum: [f32; 8], x: &[i16; 32], w: &[i8; 32], scale: f32) -> [f32; 8] {
        let halves = [0, 1].map(|half| Self::half(x, w, half));
        for l in 0..8 {
            sum[l] += (halves[0][l] + halves[1][l]) as f32 * scale;
        }
        sum
    }

    #[inline(always)]
    fn add_halves(
        self,
        mut sum: [f32; 8],
        x: &[i16; 32],
        w: &[i8; 32],
        scales: [f32; 2],
    ) -> [f32; 8] {
        for (half, scale) in scales.into_iter().enumerate() {
            let dots = Self::half(x, w, half);
            for l in 0..8 {
                sum[l] += dots[l] as f32 * scale;
            }
        }
        sum
    }

    #[inline(always)]
    fn total(self, sum: [f32; 8]) -> f32 {
        sum.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Vectors;
    use bytemuck::cast;
    use pulp::x86::V3;
    use std::arch::x86_64::{__m256, __m256i};

    /// Returns the sums of neighbouring products of 16 codes.
    #[inline(always)]
    fn half(simd: V3, x: &[i16; 32], w: &[i8; 32], half: usize) -> __m256i {
        let at = half * 16;
        let (mut x16, mut w16) = ([0i16; 16], [0i8; 16]);
        x16.copy_from_slice(&x[at..at + 16]);
        w16.copy_from_slice(&w[at..at + 16]);
        simd.avx2._mm256_madd_epi16(cast(x16), simd.avx2._mm256_cvtepi8_epi16(cast(w16)))
    }

    #[inline(always)]
    fn scaled(simd: V3, sum: __m256, dots: __m256i, scale: f32) -> __m256 {
        let dots = simd.avx._mm256_cvtepi32_ps(dots);
        simd.fma._mm256_fmadd_ps(dots, simd.avx._mm256_set1_ps(scale), sum)
    }

    impl Vectors for V3 {
        type Sum = __m256;

        #[inline(always)]
        fn zero(self) -> __m256 {
            self.avx._mm256_setzero_ps()
        }

        #[inline(always)]
        fn add(self, sum: __m256, x: &[i16; 32], w: &[i8; 32], scale: f32) -> __m256 {
            let dots = self.avx2._mm256_add_epi32(half(self, x, w, 0), half(self, x, w, 1));
            scaled(self, sum, dots, scale)
        }

        #[inline(always)]
        fn add_halves(self, sum: __m256, x: &[i16; 32], w: &[i8; 32], scales: [f32; 2]) -> __m256 {
            let sum = scaled(self, sum, half(self, x, w, 0), scales[0]);
            scaled(self, sum, half(self, x, w, 1), scales[1])
        }

        #[inline(always)]
        fn total(self, sum: __m256) -> f32 {
            let [a, b]: [[f32; 4]; 2] = cast(sum);
            let four = [0, 1, 2, 3].map(|l| a[l] + b[l]);
            (four[0] + four[2]) + (four[1] + four[3])
        }
    }
}
