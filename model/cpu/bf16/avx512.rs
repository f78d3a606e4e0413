//! Products in bf16 by AVX-512: `dpbf16ps` adds the products of 16 pairs to 16 sums.
//!
//! 8 weight rows by 2 groups of rows take 16 sums in registers; 10 loads serve 16 products.

use super::{GROUP, Kernel, Pair, Rows, SIDE, Sums};
use bytemuck::cast;
use std::arch::x86_64::{_mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_setzero_ps};

/// Weight rows at a time.
const TOGETHER: usize = 8;

/// Proof that the CPU has the instructions.
#[derive(Clone, Copy)]
pub(super) struct Dot(());

impl Dot {
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f"))
            .then_some(Self(()))
    }
}

impl Kernel for Dot {
    #[inline(always)]
    fn multiply(&self, w: &[&[Pair]; SIDE], x: [Rows<'_>; 2], sums: &mut Sums) {
        // SAFETY: `new` has found that the CPU has the instructions.
        unsafe { multiply(w, x, sums) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(w: &[&[Pair]; SIDE], x: [Rows<'_>; 2], sums: &mut Sums) {
    let pairs = x[0].len();
    let x = x.map(|x| &x[..pairs]);
    for (w, sums) in w.as_chunks::<TOGETHER>().0.iter().zip(sums.as_chunks_mut::<TOGETHER>().0) {
        let mut rows: [&[Pair]; TOGETHER] = [&[]; TOGETHER];
        for c in 0..TOGETHER {
            rows[c] = &w[c][..pairs];
        }
        let mut all = [[_mm512_setzero_ps(); 2]; TOGETHER];
        for p in 0..pairs {
            for c in 0..TOGETHER {
                let pair = _mm512_set1_epi32(i32::from_le_bytes(rows[c][p]));
                for g in 0..2 {
                    all[c][g] = _mm512_dpbf16_ps(all[c][g], cast(x[g][p]), cast(pair));
                }
            }
        }
        for c in 0..TOGETHER {
            for g in 0..2 {
                sums[c][g] = cast::<_, [f32; GROUP]>(all[c][g]);
            }
        }
    }
}
