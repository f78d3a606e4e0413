//! Squares of 16 × 16 numbers of four bytes turned: rows become columns.

use bytemuck::Pod;
#[cfg(target_arch = "x86_64")]
use bytemuck::cast;
use pulp::Simd;

/// Turns a square.
#[inline(always)]
pub(super) fn turned<S: Simd, T: Pod>(_: S, rows: [[T; 16]; 16]) -> [[T; 16]; 16] {
    #[cfg(target_arch = "x86_64")]
    if size_of::<T>() == 4 {
        use pulp::x86::{V3, V4};
        match S::F32_LANES {
            16 if let Some(simd) = V4::try_new() => return cast(x86::by_16(simd, cast(rows))),
            8 if let Some(simd) = V3::try_new() => return cast(x86::by_8(simd, cast(rows))),
            _ => (),
        }
    }
    let mut columns = rows;
    for r in 0..16 {
        for c in 0..16 {
            columns[c][r] = rows[r][c];
        }
    }
    columns
}

/// Four steps turn a square, each of which zips rows i and 8 + i: shuffles of vectors, where single
/// numbers take 256 loads and stores. The compiler finds no shuffles in loops over numbers.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use bytemuck::cast;
    use pulp::x86::{V3, V4};
    use std::arch::x86_64::{__m256i, __m512i};

    #[inline(always)]
    pub(super) fn by_16(simd: V4, rows: [[u32; 16]; 16]) -> [[u32; 16]; 16] {
        let (mut lower, mut upper) = ([0u32; 16], [0u32; 16]);
        for i in 0..16u32 {
            lower[i as usize] = i / 2 + i % 2 * 16;
            upper[i as usize] = 8 + i / 2 + i % 2 * 16;
        }
        let mut rows: [__m512i; 16] = cast(rows);
        for _ in 0..4 {
            let before = rows;
            for i in 0..8 {
                let (a, b) = (before[i], before[8 + i]);
                rows[2 * i] = simd.avx512f._mm512_permutex2var_epi32(a, cast(lower), b);
                rows[2 * i + 1] = simd.avx512f._mm512_permutex2var_epi32(a, cast(upper), b);
            }
        }
        cast(rows)
    }

    #[inline(always)]
    pub(super) fn by_8(simd: V3, rows: [[u32; 16]; 16]) -> [[u32; 16]; 16] {
        let simd = simd.avx2;
        let mut rows: [[__m256i; 2]; 16] = cast(rows);
        for _ in 0..4 {
            let before = rows;
            for i in 0..8 {
                for half in 0..2 {
                    let (a, b) = (before[i][half], before[8 + i][half]);
                    // The lower and the upper numbers of each 128 bits.
                    let lower = simd._mm256_unpacklo_epi32(a, b);
                    let upper = simd._mm256_unpackhi_epi32(a, b);
                    rows[2 * i + half] = [
                        simd._mm256_permute2x128_si256::<0x20>(lower, upper),
                        simd._mm256_permute2x128_si256::<0x31>(lower, upper),
                    ];
                }
            }
        }
        cast(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    struct Turn([[u32; 16]; 16]);

    impl WithSimd for Turn {
        type Output = [[u32; 16]; 16];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            turned(simd, self.0)
        }
    }

    #[test]
    fn rows_become_columns() {
        let square = std::array::from_fn(|r| std::array::from_fn(|c| (16 * r + c) as u32));
        let mut all =
            vec![Arch::new().dispatch(Turn(square)), Turn(square).with_simd(pulp::Scalar::new())];
        #[cfg(target_arch = "x86_64")]
        all.extend(pulp::x86::V3::try_new().map(|simd| x86::by_8(simd, square)));
        for turned in all {
            for r in 0..16 {
                for c in 0..16 {
                    assert_eq!(turned[r][c], square[c][r]);
                }
            }
        }
    }
}
