// rmsnorm_weight: dw += Σ_r s_r · x[r, :] ⊙ dh[r, :] in two launches: first each block of 32 rows makes
// a part, then (with `sum`) the parts are added in order. x, dh (rows, dim), scales (rows) of
// `rmsnorm_backward`, parts (blocks, dim), dw (dim). One invocation per vector of 4 columns of a part,
// or of dw. Bound by memory. Twin: model/cpu/rmsnorm_backward.rs.
// Params: `RmsNormWeight` in rmsnorm_backward.rs.

struct RmsNormWeight {
    rows: u32,
    blocks: u32,
    // Vectors of 4 columns, and row strides in them.
    vectors: u32,
    x_stride: u32,
    dh_stride: u32,
    parts_stride: u32,
    sum: u32,
}

@group(0) @binding(0) var<uniform> p: RmsNormWeight;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dh: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dw: array<vec4<f32>>;

const ROWS = 32u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let block = n / p.vectors;
    let c = n % p.vectors;
    if p.sum != 0u {
        if block > 0u {
            return;
        }
        var sum = vec4(0.0);
        for (var b = 0u; b < p.blocks; b += 1u) {
            sum += parts[b * p.parts_stride + c];
        }
        dw[c] += sum;
        return;
    }
    if block >= p.blocks {
        return;
    }
    var sum = vec4(0.0);
    let end = min((block + 1u) * ROWS, p.rows);
    for (var r = block * ROWS; r < end; r += 1u) {
        sum += scales[r] * x[r * p.x_stride + c] * dh[r * p.dh_stride + c];
    }
    parts[block * p.parts_stride + c] = sum;
}
