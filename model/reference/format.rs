//! The formats of quantised weights, value by value: what a block of bytes means.
//!
//! Blocks have 32 values (names with `_0`, `_1`) or 256. Their fields follow each other without
//! gaps: `d` and `m` are f16 numbers, `q` the code of each value, `s` and `t` integers of 16 or 32
//! adjacent values. A field of bits below a byte is spread over bytes as `value` says.
//!
//! | format | fields, with their bits if not f16 | value |
//! |---|---|---|
//! | Q8_0 | `d`, `q` 8 signed | `d q` |
//! | Q4_0 | `d`, `q` 4 | `d (q − 8)` |
//! | Q4_1 | `d`, `m`, `q` 4 | `d q + m` |
//! | Q5_0 | `d`, fifth bits of `q`, lower 4 | `d (q − 16)` |
//! | Q5_1 | `d`, `m`, fifth bits of `q`, lower 4 | `d q + m` |
//! | Q2_K | `s` and `t` 4 each for 16 values, `q` 2, `d`, `m` | `d s q − m t` |
//! | Q3_K | third bits of `q`, lower 2, `s` 6 for 16 values, `d` | `d (s − 32) (q − 4)` |
//! | Q4_K | `d`, `m`, `s` and `t` 6 each for 32 values, `q` 4 | `d s q − m t` |
//! | Q5_K | `d`, `m`, `s` and `t` 6 each for 32 values, fifth bits, lower 4 | `d s q − m t` |
//! | Q6_K | lower 4 of `q`, upper 2, `s` 8 signed for 16 values, `d` | `d s (q − 32)` |
//! | IQ4_XS | `d`, upper 2 of `s`, lower 4, for 32 values, `q` 4 | `d (s − 32) levels[q]` |

use crate::weights::Dtype;

/// Levels of IQ4_XS.
const LEVELS: [i32; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Returns all values of a row of plain elements or whole blocks, exactly.
///
/// ```
/// use gritlm_model::{reference::values, weights::Dtype};
/// let mut block = vec![0; 34];
/// block[..2].copy_from_slice(&[0, 0x38]); // 0.5 in f16
/// block[3] = 0xfd; // the second code, −3
/// assert_eq!(values(Dtype::Q8_0, &block)[..3], [0.0, -1.5, 0.0]);
/// ```
pub fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let blocks = bytes.chunks(dtype.block_bytes());
    blocks.flat_map(|block| (0..dtype.block()).map(move |i| value(dtype, block, i))).collect()
}

/// Returns value `i` of a block.
fn value(dtype: Dtype, block: &[u8], i: usize) -> f64 {
    // Bits `shift` to `shift + width` of byte `at`.
    let bits = |at: usize, shift: usize, width: u32| (i32::from(block[at]) >> shift) % (1 << width);
    let signed = |at: usize| f64::from(block[at] as i8);
    let half = |at: usize| f64::from(half::f16::from_le_bytes([block[at], block[at + 1]]));
    // Value i of 32 four-bit numbers in 16 bytes, and bit i of four bytes.
    let four = |at: usize| bits(at + i % 16, i / 16 * 4, 4);
    let one = |at: usize| bits(at + i / 8, i % 8, 1);
    // In blocks of 256: value i of four-bit numbers, each 64 in 32 bytes; value i of two-bit
    // numbers, each 128 in 32 bytes; bit i, one of every 32 in 32 bytes.
    let four_of_64 = |at: usize| bits(at + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 4);
    let two_of_128 = |at: usize| bits(at + i / 128 * 32 + i % 32, i / 32 % 4 * 2, 2);
    let one_of_256 = |at: usize| bits(at + i % 32, i / 32, 1);
    // Scale and minimum of the 32 values of value i in Q4_K and Q5_K, of 12 bytes.
    let pair = |at: usize| match i / 32 {
        n @ 0..4 => (bits(at + n, 0, 6), bits(at + n + 4, 0, 6)),
        n => (
            bits(at + n + 4, 0, 4) + 16 * bits(at + n - 4, 6, 2),
            bits(at + n + 4, 4, 4) + 16 * bits(at + n, 6, 2),
        ),
    };
    let with_minimum = |(s, t): (i32, i32), q: i32, d: f64, m: f64| {
        d * f64::from(s) * f64::from(q) - m * f64::from(t)
    };
    match dtype {
        Dtype::Bf16 => {
            f64::from(f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16))
        }
        Dtype::F16 => half(0),
        Dtype::F32 => f64::from(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
        Dtype::Q8_0 => half(0) * signed(2 + i),
        Dtype::Q4_0 => half(0) * f64::from(four(2) - 8),
        Dtype::Q4_1 => half(0) * f64::from(four(4)) + half(2),
        Dtype::Q5_0 => half(0) * f64::from(four(6) + 16 * one(2) - 16),
        Dtype::Q5_1 => half(0) * f64::from(four(8) + 16 * one(4)) + half(2),
        Dtype::Q2K => {
            let pair = (bits(i / 16, 0, 4), bits(i / 16, 4, 4));
            with_minimum(pair, two_of_128(16), half(80), half(82))
        }
        Dtype::Q3K => {
            let n = i / 16;
            let s = bits(96 + n % 8, n / 8 * 4, 4) + 16 * bits(104 + n % 4, n / 4 * 2, 2);
            let q = two_of_128(32) + 4 * one_of_256(0);
            half(108) * f64::from(s - 32) * f64::from(q - 4)
        }
        Dtype::Q4K => with_minimum(pair(4), four_of_64(16), half(0), half(2)),
        Dtype::Q5K => {
            let q = four_of_64(48) + 16 * one_of_256(16);
            with_minimum(pair(4), q, half(0), half(2))
        }
        Dtype::Q6K => {
            // The low halves: each 128 values in 64 bytes.
            let q = bits(i / 128 * 64 + i % 64, i / 64 % 2 * 4, 4) + 16 * two_of_128(128);
            half(208) * signed(192 + i / 16) * f64::from(q - 32)
        }
        Dtype::Iq4Xs => {
            let n = i / 32;
            let s = bits(4 + n / 2, n % 2 * 4, 4) + 16 * bits(2 + n / 4, n % 4 * 2, 2);
            let q = bits(8 + n * 16 + i % 16, i / 16 % 2 * 4, 4);
            half(0) * f64::from(s - 32) * f64::from(LEVELS[q as usize])
        }
    }
}
