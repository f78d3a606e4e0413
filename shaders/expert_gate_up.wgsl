// expert_gate_up: out[s, j] = silu(Σ h[r, k] · W1ₑ[j, k]) · Σ h[r, k] · W3ₑ[j, k], where s is the
// place of row r and its expert e in the order of experts. h (rows, dim),
// W (experts · 2 · hidden, dim) = per expert [W1; W3], out (rows · top_k, hidden).
// Each expert's weights are read once per tile of its rows, those of unused experts never.
// Twin: model/cpu/expert.rs.

@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const PAIR = true;

fn a_row(i: u32) -> u32 {
    return routing[3u * p.assigned + i];
}

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return (2u * expert + member) * p.hidden + j;
}

fn finish(i: u32, j: u32, gate: f32, up: f32) {
    out[i * p.out_stride + j] = gate / (1.0 + exp(-gate)) * up;
}
