// merge: out[o, :] = W[o, :] + scale · B[o, :] · A · diag(mask), for rows that are in one buffer of W
// and in one of out. W (rows, cols) plain, B (rows, rank), A (rank, cols), mask (cols), out f32. The
// product is summed apart and added to W once. One invocation has a group of 8 columns of one row.
// Bound by memory: a rank is some dozen multiplications for each weight read and written.
// Twin: model/cpu/merge.rs. Params: `MergeParams` in merge.rs.

struct MergeParams {
    rows: u32,
    // Groups of 8 columns.
    groups: u32,
    rank: u32,
    // First rows in the buffers of W and out, and in B.
    w_row: u32,
    out_row: u32,
    b_row: u32,
    // Row strides: in vectors of 4, and of B in elements. That of A is that of out.
    w_stride: u32,
    out_stride: u32,
    b_stride: u32,
    // Whether there is a mask.
    masked: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: MergeParams;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> mask: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let row = n / p.groups;
    let k = n % p.groups;
    if row >= p.rows {
        return;
    }
    let at = (p.w_row + row) * p.w_stride + k * words();
    var first: vec4<f32>;
    var second: vec4<f32>;
    if DTYPE == F32 {
        first = bitcast<vec4<f32>>(w[at]);
        second = bitcast<vec4<f32>>(w[at + 1u]);
    } else {
        let v = unpack(w[at]);
        first = vec4(v.even.x, v.odd.x, v.even.y, v.odd.y);
        second = vec4(v.even.z, v.odd.z, v.even.w, v.odd.w);
    }
    var sum0 = vec4(0.0);
    var sum1 = vec4(0.0);
    for (var i = 0u; i < p.rank; i += 1u) {
        let factor = p.scale * b[(p.b_row + row) * p.b_stride + i];
        sum0 += factor * a[i * p.out_stride + 2u * k];
        sum1 += factor * a[i * p.out_stride + 2u * k + 1u];
    }
    if p.masked != 0u {
        sum0 *= mask[2u * k];
        sum1 *= mask[2u * k + 1u];
    }
    let to = (p.out_row + row) * p.out_stride + 2u * k;
    out[to] = first + sum0;
    out[to + 1u] = second + sum1;
}
