// gate_up: out[i, j] = silu(Σ h[i, k] · W1[j, k]) · Σ h[i, k] · W3[j, k], silu(x) = x / (1 + e⁻ˣ).
// h (rows, dim), W (2 · hidden, dim) = [W1; W3], out (rows, hidden). One invocation makes both sums
// of an output, so neither is stored. Twin: model/cpu/gate_up.rs.

@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const PAIR = true;

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return member * p.hidden + j;
}

fn finish(i: u32, j: u32, gate: f32, up: f32) {
    out[i * p.out_stride + j] = gate / (1.0 + exp(-gate)) * up;
}
