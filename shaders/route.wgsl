// route: softmax over a row's router logits, the top_k largest (the lower index where equal), their
// weights divided by their sum. logits (rows, experts) come from `linear`. One invocation per row;
// a row's experts are stored in ascending order. Bound by latency: a few hundred bytes a row.
// Twin: model/cpu/route.rs. Params: `RouteParams` in route.rs; regions of the routing in expert_sort.wgsl.

struct RouteParams {
    rows: u32,
    experts: u32,
    top_k: u32,
    // Rows · top_k that the routing has room for.
    assigned: u32,
    // Row stride of the logits.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: RouteParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> routing: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= p.rows {
        return;
    }
    let at = row * p.stride;
    // The last of the top_k in the order of (logit, index); all before it are chosen, too.
    var last = 0u;
    for (var k = 0u; k < p.top_k; k += 1u) {
        var best = p.experts;
        for (var e = 0u; e < p.experts; e += 1u) {
            let after = k == 0u || logits[at + e] < logits[at + last]
                || (logits[at + e] == logits[at + last] && e > last);
            if after && (best == p.experts || logits[at + e] > logits[at + best]) {
                best = e;
            }
        }
        last = min(best, p.experts - 1u);
    }
    var largest = logits[at];
    for (var e = 1u; e < p.experts; e += 1u) {
        largest = max(largest, logits[at + e]);
    }
    var kept = 0.0;
    for (var e = 0u; e < p.experts; e += 1u) {
        if chosen(at, e, last) {
            kept += exp(logits[at + e] - largest);
        }
    }
    var to = row * p.top_k;
    for (var e = 0u; e < p.experts; e += 1u) {
        if chosen(at, e, last) && to < (row + 1u) * p.top_k {
            routing[to] = e;
            routing[p.assigned + to] = bitcast<u32>(exp(logits[at + e] - largest) / kept);
            to += 1u;
        }
    }
}

fn chosen(at: u32, e: u32, last: u32) -> bool {
    let logit = logits[at + e];
    return logit > logits[at + last] || (logit == logits[at + last] && e <= last);
}
