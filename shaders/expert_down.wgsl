// expert_down: out[s, j] = Σ_k a[s, k] · W2ₑ[j, k], with rows sorted by expert; the first half of
// `expert_down_add`, and the products of `expert_gate_up_kept`. a (rows · top_k, hidden),
// W (experts · dim, hidden), out (rows · top_k, dim). Twin: model/cpu/expert.rs.

@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const PAIR = false;

fn a_row(i: u32) -> u32 {
    return i;
}

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return expert * p.hidden + j;
}

fn finish(i: u32, j: u32, sum: f32, none: f32) {
    out[i * p.out_stride + j] = sum;
}
