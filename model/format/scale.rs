//! Scales of blocks: f16 numbers, and small integers that are multiplied by one.

use half::f16;

/// Returns the f16 number of two bytes as f32, exactly. The `half` crate's conversion asks the
/// processor for its abilities each time and is a call; this is four instructions of any vector
/// unit.
#[inline(always)]
pub(crate) fn half(bytes: [u8; 2]) -> f32 {
    let bits = u32::from_ne_bytes(i32::from(i16::from_le_bytes(bytes)).to_ne_bytes());
    // Infinity and NaN have an exponent of all ones, and keep it: these are the three bits that
    // f32's exponent has more. Without a branch or a comparison, which would be the slowest step of
    // a block of 32.
    let special = (((bits & 0x7fff) + 0x400) & 0x8000) * 0xe000;
    // Moved to the place of f32's sign, exponent and mantissa, the number is too small by 2^112,
    // the difference of the two exponents' biases. That holds for denormals too.
    f32::from_bits((bits << 13) & 0x8fff_e000 | special) * f32::from_bits((127 + 112) << 23)
}

/// Stores the nearest finite f16 number at byte `at` of a block and returns it as f32.
#[inline(always)]
pub(super) fn put_half(value: f32, bytes: &mut [u8], at: usize) -> f32 {
    let largest = f16::MAX.to_f32();
    let stored = f16::from_f32(value.clamp(-largest, largest));
    bytes[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    half(stored.to_le_bytes())
}

/// Returns 1 / `value`, or 0 if it is 0 or too small to have a finite inverse.
#[inline(always)]
pub(super) fn inverse(value: f32) -> f32 {
    let inverse = 1.0 / value;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Returns the integer in `low..=high` that is nearest to `value`.
#[inline(always)]
pub(super) fn nearest(value: f32, low: i32, high: i32) -> i32 {
    value.round_ties_even().clamp(low as f32, high as f32) as i32
}

/// Stores the f16 number at byte `at` that a block's signed scales, in `low..=high`, are
/// multiplied by, and returns it with the integers nearest to the scales. The largest scale gets
/// the integer `low`.
#[inline(always)]
pub(super) fn put_signed<const N: usize>(
    scales: &[f32; N],
    low: i32,
    high: i32,
    bytes: &mut [u8],
    at: usize,
) -> (f32, [i32; N]) {
    let largest =
        scales.iter().fold(0.0f32, |most, &s| if s.abs() > most.abs() { s } else { most });
    let unit = put_half(largest / low as f32, bytes, at);
    let inverse = inverse(unit);
    (unit, scales.map(|scale| nearest(scale * inverse, low, high)))
}

/// As [`put_signed`] for scales that are not negative, in `0..=high`; the largest gets `high`.
#[inline(always)]
pub(super) fn put_unsigned<const N: usize>(
    scales: &[f32; N],
    high: i32,
    bytes: &mut [u8],
    at: usize,
) -> (f32, [i32; N]) {
    let largest = scales.iter().fold(0.0f32, |most, &s| most.max(s));
    let unit = put_half(largest / high as f32, bytes, at);
    let inverse = inverse(unit);
    (unit, scales.map(|scale| nearest(scale * inverse, 0, high)))
}
