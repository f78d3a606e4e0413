// attention_delta: what the backward pass needs of each query: stats[row, head] = (lse, δ), δ = dout · out.
// out, dout (rows, heads, head_dim), lse (rows, heads), stats (rows, heads, 2). One invocation per row
// and head. Bound by memory. Twin: model/cpu/attention_backward.rs. See attention_pair.wgsl.

@group(0) @binding(1) var<storage, read> out: array<f32>;
@group(0) @binding(2) var<storage, read> dout: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let heads = p.group * p.kv_heads;
    let row = n / heads;
    let head = n % heads;
    if row >= p.rows {
        return;
    }
    let a = row * p.to_stride + head * p.head_dim;
    let b = row * p.out_stride + head * p.head_dim;
    var sum = 0.0;
    for (var c = 0u; c < p.head_dim; c += 1u) {
        sum += out[a + c] * dout[b + c];
    }
    let to = 2u * (row * heads + head);
    stats[to] = lse[row * p.lse_stride + head];
    stats[to + 1u] = sum;
}
