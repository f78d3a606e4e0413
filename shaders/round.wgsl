// round: f32 to the nearest 16-bit number, ties to the even one, in integers: a driver's own
// conversion to f16 may round either way.

// Two in a word. `kind` is BF16 or F16.
fn rounded2(low: f32, high: f32, kind: u32) -> u32 {
    let u = vec2(bitcast<u32>(low), bitcast<u32>(high));
    let bits = select(half_bits(u), bf16_bits(u), kind == BF16);
    return bits.x | (bits.y << 16u);
}

fn bf16_bits(u: vec2<u32>) -> vec2<u32> {
    return (u + vec2(0x7fffu) + ((u >> vec2(16u)) & vec2(1u))) >> vec2(16u);
}

// What is too large becomes the largest, 65,504; below 2⁻¹⁴ all are multiples of 2⁻²⁴.
fn half_bits(u: vec2<u32>) -> vec2<u32> {
    let size = u & vec2(0x7fffffffu);
    let near = (size + vec2(0xfffu) + ((size >> vec2(13u)) & vec2(1u))) >> vec2(13u);
    let normal = min(max(near, vec2(112u << 10u)) - vec2(112u << 10u), vec2(0x7bffu));
    let small = vec2<u32>(round(min(bitcast<vec2<f32>>(size), vec2(1.0)) * 0x1p24));
    return ((u >> vec2(16u)) & vec2(0x8000u)) | select(normal, small, size < vec2(0x38800000u));
}
