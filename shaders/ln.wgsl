// The natural logarithm of a positive number, to the last digits: a driver's own may be good to three.
// With x = 2ᵉ m, m in √½ … √2, and f = (m − 1) / (m + 1): ln x = e ln 2 + 2 (f + f³/3 + f⁵/5 + …).
fn ln(x: f32) -> f32 {
    let bits = bitcast<i32>(x) - 0x3f3504f3;
    let e = bits >> 23u;
    let m = bitcast<f32>((bits & 0x7fffff) + 0x3f3504f3);
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f;
    let series = s * (1.0 / 3.0 + s * (0.2 + s * (1.0 / 7.0 + s * (1.0 / 9.0))));
    return f32(e) * 0.693147181 + 2.0 * (f + f * series);
}
