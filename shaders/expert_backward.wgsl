// expert_backward: an assignment of row r to an expert with weight g has added g · W2ₑ a to x[r]. With
// t = dx[r] · W2ₑ (outer.wgsl), dg = a · t and da = g · t; its copy of dx[r] is multiplied by g, for
// the product dW2ₑ. a, da (rows · top_k, hidden), dy (rows · top_k, dim), all sorted by expert; da
// holds t before. One workgroup of LANES invocations per assignment. Bound by memory.
// Twin: model/cpu/expert_backward.rs. Params: `ExpertBackward` in expert_backward.rs; regions of the
// routing in expert_sort.wgsl.

struct ExpertBackward {
    // Rows · top_k of this pass, and of the routing's capacity.
    count: u32,
    assigned: u32,
    // Vectors of 4 columns of a and of dy, and row strides in them.
    vectors: u32,
    dy_vectors: u32,
    a_stride: u32,
    da_stride: u32,
    dy_stride: u32,
    // Columns and stride of the buffer of dg, whose elements are counted row by row.
    dg_cols: u32,
    dg_stride: u32,
}

@group(0) @binding(0) var<uniform> p: ExpertBackward;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> routing: array<u32>;
@group(0) @binding(3) var<storage, read_write> da: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dg: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    let n = flat(group, groups);
    // A grid in two dimensions may have a few workgroups too many.
    let i = min(n, p.count - 1u);
    let weight = bitcast<f32>(routing[p.assigned + i]);
    let place = routing[2u * p.assigned + i];
    var sum = vec4(0.0);
    if n < p.count {
        for (var c = lanes.index; c < p.vectors; c += LANES) {
            let t = da[place * p.da_stride + c];
            sum += a[place * p.a_stride + c] * t;
            da[place * p.da_stride + c] = weight * t;
        }
        for (var c = lanes.index; c < p.dy_vectors; c += LANES) {
            dy[place * p.dy_stride + c] *= weight;
        }
    }
    let total = dot(sum4(sum, lanes), vec4(1.0));
    if n < p.count && lanes.index == 0u {
        dg[place / p.dg_cols * p.dg_stride + place % p.dg_cols] = total;
    }
}
