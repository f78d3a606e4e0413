//! Rotary position embedding (RoPE) of one head, `(head_dim)`: the pairs (d, d + head_dim / 2)
//! rotate by the angle position · frequency d, as in Hugging Face's Llama and Mistral.

/// Returns the rotated head for `frequencies`, `(head_dim / 2)`.
///
/// The angle is defined in f32, as in transformers: at position 30,000 an f64 angle would differ by
/// a thousandth of a radian.
pub fn rotary(head: &[f64], position: u32, frequencies: &[f32]) -> Vec<f64> {
    let (low, high) = head.split_at(head.len() / 2);
    let angles = frequencies.iter().map(|&frequency| f64::from(frequency * position as f32));
    let pairs = || angles.clone().zip(low.iter().zip(high));
    let rotated_low = pairs().map(|(angle, (a, b))| a * angle.cos() - b * angle.sin());
    let rotated_high = pairs().map(|(angle, (a, b))| b * angle.cos() + a * angle.sin());
    rotated_low.chain(rotated_high).collect()
}
