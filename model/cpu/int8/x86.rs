//! Products of codes on x86: AVX2 and F16C, and VNNI where the CPU has it.

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
        let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
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
    fn levels(self, levels: &[i8; 16], numbers: [i8; 32]) -> [i8; 32] {
        cast(self.0.avx2._mm256_shuffle_epi8(cast([*levels; 2]), cast(numbers)))
    }

    #[inline(always)]
    fn times(self, unit: f32, numbers: u64, run: usize) -> [f32; 8] {
        let (simd, avx) = (self.0.avx2, self.0.avx);
        // The numbers of the first halves of runs, then those of the second.
        let order = if run == 16 { [0, 2, 4, 6, 1, 3, 5, 7] } else { [0, 1, 2, 3, 0, 1, 2, 3] };
        let numbers = simd._mm256_cvtepi8_epi32(cast([numbers, 0]));
        let numbers = simd._mm256_permutevar8x32_epi32(numbers, cast::<[i32; 8], _>(order));
        cast(avx._mm256_mul_ps(cast([unit; 8]), avx._mm256_cvtepi32_ps(numbers)))
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
