// merge_backward: dB[r, i] += scale · Σ_c dW[r, c] A[i, c] mask[c] and
// dA[i, c] += scale · mask[c] · Σ_r B[r, i] dW[r, c], in a launch each. dW (rows, cols), B (rows, rank),
// A (rank, cols), mask (cols), all f32. One invocation has an element of dB, or a vector of 4 columns
// of a row of dA, and sums its terms in order. Bound by memory, as merge.
// Twin: model/cpu/merge_backward.rs. Params: `MergeBackward` in merge_backward.rs.

struct MergeBackward {
    rows: u32,
    // Vectors of 4 columns of W.
    vectors: u32,
    rank: u32,
    // First row of dW.
    first: u32,
    // Row strides: of dW and A in vectors of 4, of B and of what is written, in elements for B and in
    // vectors for A.
    dw_stride: u32,
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    // Whether dA is computed, and whether there is a mask.
    of_a: u32,
    masked: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: MergeBackward;
@group(0) @binding(1) var<storage, read> dw: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> mask: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    if p.of_a != 0u {
        let i = n / p.vectors;
        let c = n % p.vectors;
        if i >= p.rank {
            return;
        }
        var sum = vec4(0.0);
        for (var r = 0u; r < p.rows; r += 1u) {
            sum += b[r * p.b_stride + i] * dw[(p.first + r) * p.dw_stride + c];
        }
        if p.masked != 0u {
            sum *= mask[c];
        }
        sum *= p.scale;
        let to = 4u * (i * p.out_stride + c);
        out[to] += sum.x;
        out[to + 1u] += sum.y;
        out[to + 2u] += sum.z;
        out[to + 3u] += sum.w;
        return;
    }
    let r = n / p.rank;
    let i = n % p.rank;
    if r >= p.rows {
        return;
    }
    var sum = vec4(0.0);
    for (var c = 0u; c < p.vectors; c += 1u) {
        var term = dw[(p.first + r) * p.dw_stride + c] * a[i * p.a_stride + c];
        if p.masked != 0u {
            term *= mask[c];
        }
        sum += term;
    }
    out[r * p.out_stride + i] += p.scale * (sum.x + sum.y + sum.z + sum.w);
}
