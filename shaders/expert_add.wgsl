// expert_add: x[r, :] += Σ_e weight(r, e) · y[place(r, e), :], experts in ascending order; the second
// half of `expert_down_add`, and without the weights of `expert_gate_up_backward`. x (rows, dim),
// y (rows · top_k, dim) sorted by expert. One invocation per vector of 4 columns, so no two add to the
// same element and the order is fixed. Bound by memory. Twin: model/cpu/expert.rs. Params: `Add` in
// expert.rs.

struct Add {
    rows: u32,
    top_k: u32,
    // Rows · top_k that the routing has room for.
    assigned: u32,
    // Vectors of 4 columns, and row strides in them.
    vectors: u32,
    x_stride: u32,
    y_stride: u32,
    // Whether the rows are multiplied by their experts' weights.
    weighted: u32,
}

@group(0) @binding(0) var<uniform> p: Add;
@group(0) @binding(1) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> routing: array<u32>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let row = n / p.vectors;
    let c = n % p.vectors;
    if row >= p.rows {
        return;
    }
    var sum = x[row * p.x_stride + c];
    for (var k = 0u; k < p.top_k; k += 1u) {
        let i = row * p.top_k + k;
        let weight = select(1.0, bitcast<f32>(routing[p.assigned + i]), p.weighted != 0u);
        sum += weight * y[routing[2u * p.assigned + i] * p.y_stride + c];
    }
    x[row * p.x_stride + c] = sum;
}
