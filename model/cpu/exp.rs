//! e^x for all lanes of a vector, within two units in the last place of f32.
//!
//! x = n ln 2 + f with n whole and |f| ≤ ln 2 / 2; e^x = 2ⁿ e^f. The Taylor series of e^f to f⁷ is off by
//! less than 6e-9 there, below the rounding of f32. n comes from adding 1.5 · 2²³, after which the low
//! bits of the sum are n, and 2ⁿ is made in the exponent's bits. The function of the C library takes
//! one value at a time, some 20 cycles each.

use pulp::{Arch, Simd, WithSimd};

/// Below this x, e^x is 0 here: less than 1.7e-38.
const LOW: f32 = -87.0;
/// Above this x, it is e^88: 1.7e38.
const HIGH: f32 = 88.0;

/// 1.5 · 2²³: f32 has no fraction there, and stays so for sums with |n| < 2²².
const WHOLE: f32 = 12_582_912.0;

/// ln 2 in two parts. The first has 12 bits, so that n times it is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// 1 / k! from k = 7 down to 0.
const TAYLOR: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// Returns e^x of each lane; 0 below −87 and e^88 above 88. NaN stays NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // NaN is in neither comparison.
    let high = simd.splat_f32s(HIGH);
    let x = simd.select_f32s(simd.greater_than_f32s(x, high), high, x);
    let whole = simd.splat_f32s(WHOLE);
    let log = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), whole);
    let n = simd.sub_f32s(log, whole);
    let f = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[0]), x);
    let f = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[1]), f);
    let mut sum = simd.splat_f32s(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        sum = simd.mul_add_e_f32s(sum, f, simd.splat_f32s(*coefficient));
    }
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(log), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(1.0f32.to_bits())));
    let low = simd.less_than_f32s(x, simd.splat_f32s(LOW));
    simd.select_f32s(low, simd.splat_f32s(0.0), simd.mul_f32s(sum, power))
}

/// Returns Σ e^(x − `less`). Lanes add up 64 values in f32, the rest is in f64.
pub(super) fn sum_of_exp(values: &[f32], less: f32) -> f64 {
    Arch::new().dispatch(SumOfExp { values, less })
}

struct SumOfExp<'a> {
    values: &'a [f32],
    less: f32,
}

impl WithSimd for SumOfExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (whole, rest) = S::as_simd_f32s(self.values);
        let less = simd.splat_f32s(self.less);
        let mut sum = 0.0;
        for values in whole.chunks(64) {
            let mut lanes = simd.splat_f32s(0.0);
            for x in values {
                lanes = simd.add_f32s(lanes, exp(simd, simd.sub_f32s(*x, less)));
            }
            sum += f64::from(simd.reduce_sum_f32s(lanes));
        }
        for x in rest {
            sum += f64::from((x - self.less).exp());
        }
        sum
    }
}

/// Returns the largest value; −∞ of none.
pub(super) fn max(values: &[f32]) -> f32 {
    Arch::new().dispatch(|| {
        // A single maximum would wait four cycles for the one before.
        let mut lanes = [f32::NEG_INFINITY; 64];
        let (whole, rest) = values.as_chunks::<64>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = lane.max(*value);
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    })
}

/// Computes out = silu(gate) ⊙ up, silu(x) = x / (1 + e⁻ˣ). All have one length.
pub(super) fn silu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Silu { gate, up, out });
}

struct Silu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gate, gate_rest) = S::as_simd_f32s(self.gate);
        let (up, up_rest) = S::as_simd_f32s(self.up);
        let (out, out_rest) = S::as_mut_simd_f32s(self.out);
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            *out = gated(simd, *gate, *up);
        }
        let rest = gated(simd, simd.partial_load_f32s(gate_rest), simd.partial_load_f32s(up_rest));
        simd.partial_store_f32s(out_rest, rest);
    }
}

/// Returns silu(gate) · up.
#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let inverse = simd.add_f32s(one, exp(simd, simd.neg_f32s(gate)));
    simd.mul_f32s(simd.div_f32s(gate, inverse), up)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All<'a>(&'a mut [f32]);

    impl WithSimd for All<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (whole, rest) = S::as_mut_simd_f32s(self.0);
            assert!(rest.is_empty());
            for x in whole {
                *x = exp(simd, *x);
            }
        }
    }

    fn all(mut values: Vec<f32>) -> Vec<f32> {
        values.resize(values.len().next_multiple_of(16), 0.0);
        Arch::new().dispatch(All(&mut values));
        values
    }

    #[test]
    fn is_the_exponential_to_two_units_in_the_last_place() {
        let from: Vec<f32> = (-870_000..=880_000).map(|i| i as f32 * 1e-4).collect();
        for (x, found) in from.iter().zip(all(from.clone())) {
            let expected = f64::from(*x).exp();
            let unit = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
            let off = (f64::from(found) - expected).abs() / unit;
            assert!(off <= 2.0, "e^{x}: expected {expected:e}, found {found:e}");
        }
    }

    #[test]
    fn knows_its_limits() {
        let found = all(vec![0.0, -0.0, -87.1, f32::NEG_INFINITY, 1e9, f32::INFINITY, f32::NAN]);
        assert_eq!(found[..4], [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(found[4], found[5]);
        assert!(found[4].is_finite() && found[4] > 1.6e38);
        assert!(found[6].is_nan());
    }

    #[test]
    fn silu_has_the_same_bits_at_any_place() {
        let values: Vec<f32> = (0..37).map(|i| (i as f32 - 18.0) * 1.7).collect();
        let (mut whole, mut one) = (vec![0.0; 37], [0.0]);
        silu(&values, &values, &mut whole);
        for (x, found) in values.iter().zip(&whole) {
            let expected = x / (1.0 + (-x).exp()) * x;
            assert!((found - expected).abs() <= 4e-7 * expected.abs(), "{found}, not {expected}");
            silu(&[*x], &[*x], &mut one);
            assert_eq!(one[0].to_bits(), found.to_bits());
        }
    }
}
