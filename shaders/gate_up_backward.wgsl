// gate_up_backward: the gated half of a feed-forward, on products that are kept: with g = h · W1ᵀ and
// u = h · W3ᵀ, out = silu(g) ⊙ u forwards; backwards, with σ = 1 / (1 + e⁻ᵍ),
// dg = dout ⊙ u ⊙ σ (1 + g (1 − σ)) and du = dout ⊙ g ⊙ σ, in the places of g and u.
// kept (rows, 2 · hidden) = [g; u], d (rows, hidden): out, or its gradient. One invocation per element
// of d. Bound by memory. Twin: model/cpu/gate_up_backward.rs. Params: `Gated` in gate_up_backward.rs.

struct Gated {
    rows: u32,
    hidden: u32,
    // Row strides in elements.
    kept_stride: u32,
    d_stride: u32,
    forward: u32,
}

@group(0) @binding(0) var<uniform> p: Gated;
@group(0) @binding(1) var<storage, read_write> kept: array<f32>;
@group(0) @binding(2) var<storage, read_write> d: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let row = n / p.hidden;
    let c = n % p.hidden;
    if row >= p.rows {
        return;
    }
    let at = row * p.kept_stride + c;
    let g = kept[at];
    let u = kept[at + p.hidden];
    let to = row * p.d_stride + c;
    if p.forward != 0u {
        d[to] = g / (1.0 + exp(-g)) * u;
        return;
    }
    let sigmoid = 1.0 / (1.0 + exp(-g));
    kept[at] = d[to] * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
    kept[at + p.hidden] = d[to] * g * sigmoid;
}
