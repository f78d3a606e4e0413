//! Rows of activations, rounded to codes of 8 bits.

use super::super::matmul::FEW;
use pulp::Arch;
use std::array;

/// Rows of activations in 8 bits: one, or [`FEW`], some of them zeros.
pub(in super::super) struct Rounded {
    quads: usize,
    /// Of all rows, `(rows, quads)`.
    all: Vec<Quad>,
}

/// Four runs of 32 activations. Lane l of eight is about run l mod 4, its first half for l < 4.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Quad {
    pub(super) codes: [[i8; 32]; 4],
    pub(super) units: [f32; 8],
    /// Sums of the codes of each half.
    pub(super) sums: [i32; 8],
    /// These sums times the units.
    pub(super) weighted: [f32; 8],
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
    pub(in super::super) fn new(inner: usize, rows: &[f32]) -> Self {
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
    pub(super) fn rows<const N: usize>(&self) -> [&[Quad]; N] {
        array::from_fn(|r| &self.all[r * self.quads..][..self.quads])
    }
}
