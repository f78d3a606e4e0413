//! The instructions of a whole warp on matrices.

use crate::value::float;
use crate::warp::{LANES, Lanes};

/// Returns the f32 of the lower or the upper bf16 of a register.
pub(crate) fn half(word: u64, upper: bool) -> f32 {
    float(if upper { word & 0xffff_0000 } else { word << 16 })
}

/// mma.m16n8k16: `c (16 × 8, f32) + a (16 × 16, bf16) · b (16 × 8, bf16)`. Lane l, with g = l / 4
/// and t = l % 4, has of `a` rows g and g + 8 in columns 2 t, 2 t + 1 (registers 0 and 1) and 8
/// columns on (2 and 3); of `b` column g, rows 2 t, 2 t + 1 (0) and 8 rows on (1); of `c` rows g
/// (0, 1) and g + 8 (2, 3) in columns 2 t, 2 t + 1. (PTX ISA, "Matrix Fragments for mma.m16n8k16".)
pub(crate) fn multiply(a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    // Of `b`, rows of eight columns, which are summed side by side.
    let (mut rows, mut deep) = ([[0.0f32; 16]; 16], [[0.0f32; 8]; 16]);
    for l in 0..LANES {
        let (g, t) = (l / 4, l % 4);
        for upper in [false, true] {
            let i = 2 * t + usize::from(upper);
            rows[g][i] = half(a[0][l], upper);
            rows[g + 8][i] = half(a[1][l], upper);
            rows[g][i + 8] = half(a[2][l], upper);
            rows[g + 8][i + 8] = half(a[3][l], upper);
            deep[i][g] = half(b[0][l], upper);
            deep[i + 8][g] = half(b[1][l], upper);
        }
    }
    let mut sums = [[0.0f32; 8]; 16];
    for (row, sums) in rows.iter().zip(&mut sums) {
        // The order of the hardware's sum is not documented.
        for (a, columns) in row.iter().zip(&deep) {
            for (sum, b) in sums.iter_mut().zip(columns) {
                *sum += a * b;
            }
        }
    }
    let mut d = c.map(|c| *c);
    for l in 0..LANES {
        let (g, t) = (l / 4, l % 4);
        for (i, d) in d.iter_mut().enumerate() {
            let sum = float(d[l]) + sums[g + i / 2 * 8][2 * t + i % 2];
            d[l] = u64::from(sum.to_bits());
        }
    }
    d
}

/// ldmatrix: a matrix has eight rows of 8 numbers of 16 bits. Lane l gets numbers 2 (l % 4) and + 1
/// of row l / 4; of a transposed matrix, number l / 4 of rows 2 (l % 4) and + 1.
pub(crate) fn fragment(rows: &[[u8; 16]], transposed: bool) -> Lanes {
    let number =
        |row: &[u8; 16], i: usize| u64::from(u16::from_le_bytes([row[2 * i], row[2 * i + 1]]));
    let mut lanes = [0; LANES];
    for (l, lane) in lanes.iter_mut().enumerate() {
        let (g, t) = (l / 4, l % 4 * 2);
        let (low, high) = match transposed {
            true => (number(&rows[t], g), number(&rows[t + 1], g)),
            false => (number(&rows[g], t), number(&rows[g], t + 1)),
        };
        *lane = low | high << 16;
    }
    lanes
}
