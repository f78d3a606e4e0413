//! Products in bf16 on CPUs without instructions for them: bf16 becomes f32 by a shift.

use super::{GROUP, Kernel, Pair, Rows, SIDE, Sums};

pub(super) struct Plain;

/// Weight rows at a time: their sums fill 8 vectors of AVX-512, 16 of AVX2.
const TOGETHER: usize = 4;

/// Returns a pair's values in f32.
#[inline(always)]
fn widen(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

impl Kernel for Plain {
    #[inline(always)]
    fn multiply(&self, w: &[&[Pair]; SIDE], x: [Rows<'_>; 2], sums: &mut Sums) {
        let pairs = x[0].len();
        for (w, sums) in w.as_chunks::<TOGETHER>().0.iter().zip(sums.as_chunks_mut().0) {
            let w = w.map(|w| &w[..pairs]);
            let mut all = [[[0.0f32; GROUP]; 2]; TOGETHER];
            for p in 0..pairs {
                for g in 0..2 {
                    let x = x[g][p].map(widen);
                    for c in 0..TOGETHER {
                        let [even, odd] = widen(u32::from_le_bytes(w[c][p]));
                        for r in 0..GROUP {
                            all[c][g][r] += x[r][0] * even;
                            all[c][g][r] += x[r][1] * odd;
                        }
                    }
                }
            }
            *sums = all;
        }
    }
}
