// route_backward: the gradients of a row's router logits. The kept weights g are a softmax over the
// row's experts, so their logits get g ⊙ (dg − Σ g dg). The auxiliary loss adds π ⊙ (b − Σ π b), where
// π is the softmax over all experts and b the gradient with respect to it, the same for all rows.
// logits, dz (rows, experts); dg in the order of the experts' rows. One invocation per row. Bound by
// latency. The products with dz are in outer.wgsl. Twin: model/cpu/route_backward.rs.
// Params: `RouteBackward` in route_backward.rs; regions of the routing in expert_sort.wgsl.

struct RouteBackward {
    rows: u32,
    experts: u32,
    top_k: u32,
    // Rows · top_k that the routing has room for.
    assigned: u32,
    // Row strides in elements.
    stride: u32,
    dz_stride: u32,
    // Columns and stride of the buffer of dg, whose elements are counted row by row.
    dg_cols: u32,
    dg_stride: u32,
}

@group(0) @binding(0) var<uniform> p: RouteBackward;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> routing: array<u32>;
@group(0) @binding(3) var<storage, read> dg: array<f32>;
@group(0) @binding(4) var<storage, read> balance: array<f32>;
@group(0) @binding(5) var<storage, read_write> dz: array<f32>;

fn weight_of(i: u32) -> f32 {
    return bitcast<f32>(routing[p.assigned + i]);
}

fn dg_of(i: u32) -> f32 {
    let place = routing[2u * p.assigned + i];
    return dg[place / p.dg_cols * p.dg_stride + place % p.dg_cols];
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= p.rows {
        return;
    }
    let at = row * p.stride;
    var largest = logits[at];
    for (var e = 1u; e < p.experts; e += 1u) {
        largest = max(largest, logits[at + e]);
    }
    var sum = 0.0;
    var mean = 0.0;
    for (var e = 0u; e < p.experts; e += 1u) {
        let weight = exp(logits[at + e] - largest);
        sum += weight;
        mean += weight * balance[e];
    }
    mean /= sum;
    let to = row * p.dz_stride;
    for (var e = 0u; e < p.experts; e += 1u) {
        dz[to + e] = exp(logits[at + e] - largest) / sum * (balance[e] - mean);
    }
    let first = row * p.top_k;
    var along = 0.0;
    for (var i = first; i < first + p.top_k; i += 1u) {
        along += weight_of(i) * dg_of(i);
    }
    for (var i = first; i < first + p.top_k; i += 1u) {
        dz[to + routing[i]] += weight_of(i) * (dg_of(i) - along);
    }
}
