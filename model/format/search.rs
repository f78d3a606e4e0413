//! The scale of a run of values, or its scale and offset, for the smallest squared error.
//!
//! The error is not a smooth function of the scale, because codes jump. Both searches try some
//! twenty scales near the one that maps the extremes to the ends of the codes; for the codes of
//! each they take the scale (and offset) of least squares, and keep the best. Sums run in sixteen
//! lanes and products are rounded before they are added, so that the result is the same on every
//! processor.

use super::scale::inverse;
use pulp::Simd;

/// The values that codes stand for, before scaling.
pub(super) trait Levels {
    /// Level of the value with the largest magnitude.
    const FIRST: f32;

    /// Returns the nearest levels.
    fn nearest<S: Simd>(simd: S, values: S::f32s) -> S::f32s;
}

/// Whole numbers from `LOW` to `HIGH`.
pub(super) struct Linear<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Linear<LOW, HIGH> {
    const FIRST: f32 = LOW as f32;

    #[inline(always)]
    fn nearest<S: Simd>(simd: S, values: S::f32s) -> S::f32s {
        nearest(simd, values, LOW as f32, HIGH as f32)
    }
}

/// Returns the whole numbers from `low` to `high` nearest to `values`.
#[inline(always)]
fn nearest<S: Simd>(simd: S, values: S::f32s, low: f32, high: f32) -> S::f32s {
    let cut = simd.min_f32s(simd.max_f32s(values, simd.splat_f32s(low)), simd.splat_f32s(high));
    // Numbers of this size have no bits after the point.
    let large = simd.splat_f32s(ROUND);
    simd.sub_f32s(simd.add_f32s(cut, large), large)
}

/// 1.5 · 2^23: added to a number below 2^22, it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Distance of two scales that are tried, in levels of the largest value.
const STEP: f32 = 0.1;

/// Returns the value with the largest magnitude.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let (mut low, mut high) = ([0.0f32; 16], [0.0f32; 16]);
    for values in values.as_chunks::<16>().0 {
        for l in 0..16 {
            low[l] = if values[l] < low[l] { values[l] } else { low[l] };
            high[l] = if values[l] > high[l] { values[l] } else { high[l] };
        }
    }
    let (low, high) = (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max));
    if -low > high { low } else { high }
}

/// Returns the scale with the smallest squared error of `scale · level`. `values.len()` is a
/// multiple of 16.
#[inline(always)]
pub(super) fn scale<S: Simd, L: Levels>(simd: S, values: &[f32]) -> f32 {
    let largest = largest(values);
    // Of all scales for the same codes, least squares lowers the error by (Σ x q)² / Σ q².
    let (mut gain, mut best) = (0.0, 0.0);
    for step in -9..=9 {
        let inverse = (L::FIRST + STEP * step as f32) / largest;
        if !inverse.is_finite() {
            break;
        }
        let (mut xq, mut qq) = (Sum::<S>::new(simd), Sum::<S>::new(simd));
        for (n, &x) in S::as_simd_f32s(values).0.iter().enumerate() {
            let q = L::nearest(simd, simd.mul_f32s(x, simd.splat_f32s(inverse)));
            xq.add(simd, n, simd.mul_f32s(x, q));
            qq.add(simd, n, simd.mul_f32s(q, q));
        }
        let (xq, qq) = (xq.total(), qq.total());
        if qq > 0.0 && xq * xq / qq > gain {
            (gain, best) = (xq * xq / qq, xq / qq);
        }
    }
    best
}

/// Returns the scale and offset with the smallest squared error of `scale · code + offset`, code
/// in `0..=high`. The scale is not negative and the offset at most `most`. `values.len()` is a
/// multiple of 16.
#[inline(always)]
pub(super) fn scale_offset<S: Simd>(simd: S, values: &[f32], high: i32, most: f32) -> (f32, f32) {
    let low = values.iter().fold(most, |low, &v| low.min(v));
    let range = values.iter().fold(low, |top, &v| top.max(v)) - low;
    let (n, high) = (values.len() as f32, high as f32);
    let (low_vector, x) = (simd.splat_f32s(low), S::as_simd_f32s(values).0);
    let mut x1 = Sum::<S>::new(simd);
    for (n, &x) in x.iter().enumerate() {
        x1.add(simd, n, simd.sub_f32s(x, low_vector));
    }
    let x1 = x1.total();
    let (mut least, mut best) = (f32::INFINITY, (0.0, low));
    for step in 0..=20 {
        // The first tried is the range itself.
        let levels = high + STEP * if step > 10 { 10 - step } else { step } as f32;
        let inverse = levels / range;
        if !inverse.is_finite() {
            break;
        }
        let inverse = simd.splat_f32s(inverse);
        let (mut q1, mut q2, mut xq) = (Sum::new(simd), Sum::new(simd), Sum::new(simd));
        for (n, &x) in x.iter().enumerate() {
            let above = simd.sub_f32s(x, low_vector);
            let q = nearest(simd, simd.mul_f32s(above, inverse), 0.0, high);
            q1.add(simd, n, q);
            q2.add(simd, n, simd.mul_f32s(q, q));
            xq.add(simd, n, simd.mul_f32s(above, q));
        }
        let (q1, q2, xq): (f32, f32, f32) = (q1.total(), q2.total(), xq.total());
        let determinant = n * q2 - q1 * q1;
        let (scale, offset) = if determinant > 0.0 {
            let scale = (n * xq - q1 * x1) / determinant;
            let offset = (q2 * x1 - q1 * xq) / determinant + low;
            match offset > most {
                true => ((xq + (low - most) * q1) / q2, most),
                false => (scale, offset),
            }
        } else if q2 > 0.0 {
            // All codes are one, where all values are and `most` is below them.
            (xq / q2, low)
        } else {
            continue;
        };
        let (scale_vector, offset_vector) = (simd.splat_f32s(scale), simd.splat_f32s(offset));
        let mut errors = Sum::new(simd);
        for (n, &x) in x.iter().enumerate() {
            let above = simd.sub_f32s(x, low_vector);
            let q = nearest(simd, simd.mul_f32s(above, inverse), 0.0, high);
            let value = simd.add_f32s(simd.mul_f32s(scale_vector, q), offset_vector);
            let error = simd.sub_f32s(value, x);
            errors.add(simd, n, simd.mul_f32s(error, error));
        }
        let error = errors.total();
        if scale >= 0.0 && error < least {
            (least, best) = (error, (scale, offset));
        }
    }
    best
}

/// Returns the codes in `LOW..=HIGH` nearest to `values`, given their scale and offset.
#[inline(always)]
pub(super) fn codes<const N: usize, const LOW: i32, const HIGH: i32>(
    values: &[f32; N],
    scale: f32,
    offset: f32,
) -> [i8; N] {
    let inverse = inverse(scale);
    let mut codes = [0; N];
    for i in 0..N {
        let code = (values[i] - offset) * inverse;
        let code = if code < LOW as f32 { LOW as f32 } else { code };
        let code = if code > HIGH as f32 { HIGH as f32 } else { code };
        codes[i] = (code + ROUND).to_bits() as i8;
    }
    codes
}

/// A sum in sixteen lanes, which are as many vectors as they take.
struct Sum<S: Simd>([S::f32s; 16]);

impl<S: Simd> Sum<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self([simd.splat_f32s(0.0); 16])
    }

    /// Adds the `n`th vector.
    #[inline(always)]
    fn add(&mut self, simd: S, n: usize, values: S::f32s) {
        let lanes = &mut self.0[n % (16 / S::F32_LANES)];
        *lanes = simd.add_f32s(*lanes, values);
    }

    #[inline(always)]
    fn total(self) -> f32 {
        let mut lanes = [0.0; 16];
        lanes.copy_from_slice(&bytemuck::cast_slice(&self.0)[..16]);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }
}
