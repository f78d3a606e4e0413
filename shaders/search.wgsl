// search: of a query's best documents so far and the scores of a stretch of the corpus, the top_k
// best, larger score first and lower index first where equal. The scores come from `linear`.
//
// The last place that is kept is found bit by bit, as in sample.wgsl; what is within is written in
// any order and sorted by the host, a few pairs. One workgroup of LANES invocations per query.
// Bound by latency: some 64 passes over scores that the caches hold, beside reading the corpus.
// Twin: model/cpu/search.rs. Params: `Select` in search.rs.

struct Select {
    queries: u32,
    // Documents of the stretch, the first one's index, and the row stride of the scores.
    count: u32,
    first: u32,
    stride: u32,
    // Kept before this stretch, and results at most, per query.
    kept: u32,
    top_k: u32,
}

@group(0) @binding(0) var<uniform> p: Select;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
// (index, score) per query: (queries, top_k).
@group(0) @binding(2) var<storage, read> before: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> after: array<vec2<u32>>;

var<workgroup> written: atomic<u32>;

// The n-th candidate: first what was kept, then the stretch.
fn candidate(query: u32, n: u32) -> Prefix {
    if n < p.kept {
        let old = before[query * p.top_k + n];
        return Prefix(order_of(bitcast<f32>(old.y)), old.x);
    }
    let i = n - p.kept;
    return Prefix(order_of(scores[query * p.stride + i]), p.first + i);
}

fn count_within(query: u32, place: Prefix, lanes: Lanes) -> u32 {
    var sum = vec4(0.0);
    for (var n = lanes.index; n < p.kept + p.count; n += LANES) {
        let own = candidate(query, n);
        if within(own.order, own.id, place) {
            sum.x += 1.0;
        }
    }
    return u32(sum4(sum, lanes).x);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lanes: Lanes) {
    let query = group.x;
    var place = Prefix(0u, 0xffffffffu);
    if p.kept + p.count > p.top_k {
        // The largest order that top_k candidates reach, then among equals the smallest id.
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            let order = place.order | bit;
            if count_within(query, Prefix(order, 0xffffffffu), lanes) >= p.top_k {
                place.order = order;
            }
        }
        var id = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            if count_within(query, Prefix(place.order, (id | bit) - 1u), lanes) < p.top_k {
                id |= bit;
            }
        }
        place.id = id;
    }
    if lanes.index == 0u {
        atomicStore(&written, 0u);
    }
    workgroupBarrier();
    for (var n = lanes.index; n < p.kept + p.count; n += LANES) {
        let own = candidate(query, n);
        if within(own.order, own.id, place) {
            let at = atomicAdd(&written, 1u);
            after[query * p.top_k + at] = vec2(own.id, bitcast<u32>(value_of(own.order)));
        }
    }
}
