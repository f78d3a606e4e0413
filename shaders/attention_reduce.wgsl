// attention_reduce: adds up the parts that `attention` with SPLIT made of one query vector:
// out = Σ e^(mᵢ − m) oᵢ / Σ e^(mᵢ − m) lᵢ, in the order of the parts. One workgroup per vector and
// key/value head, one invocation per vector of 4 columns. Bound by latency.
// Params: `Reduce` in attention.rs.

struct Reduce {
    group: u32,
    kv_heads: u32,
    head_dim: u32,
    // Vectors of 4 columns in a cached head, and in one of its parts; columns of a part.
    vectors: u32,
    side: u32,
    width: u32,
    // Row strides: out in elements, parts in vectors of 4.
    out_stride: u32,
    part_stride: u32,
    // Where the records begin in the batch: row, first vector, end, first tile, tiles.
    records: u32,
    // Groups of invocations in a workgroup of `attention`.
    yt: u32,
}

@group(0) @binding(0) var<uniform> p: Reduce;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn part_at(tile: u32, head: u32, y: u32, r: u32) -> u32 {
    return (((tile * p.kv_heads + head) * p.yt + y) * 4u + r) * p.part_stride;
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let record = p.records + 5u * (group.x / 4u);
    let r = group.x % 4u;
    let m = batch[record + 1u] + r;
    if m >= batch[record + 2u] {
        return;
    }
    let first = batch[record + 3u];
    let end = first + batch[record + 4u];
    let head = group.y;
    var largest = -3e38;
    for (var tile = first; tile < end; tile += 1u) {
        for (var y = 0u; y < p.yt; y += 1u) {
            largest = max(largest, parts[part_at(tile, head, y, r) + p.vectors].x);
        }
    }
    let row = batch[record] + m / p.group;
    let at = row * p.out_stride + (head * p.group + m % p.group) * p.head_dim;
    for (var c = index; c < p.vectors; c += 32u) {
        var sum = vec4(0.0);
        var total = 0.0;
        for (var tile = first; tile < end; tile += 1u) {
            for (var y = 0u; y < p.yt; y += 1u) {
                let part = part_at(tile, head, y, r);
                let stats = parts[part + p.vectors];
                let weight = exp(stats.x - largest);
                total += weight * stats.y;
                sum += weight * parts[part + c];
            }
        }
        let v = sum / total;
        for (var i = 0u; i < 4u; i += 1u) {
            let column = column_of(c, i);
            if column < p.head_dim {
                out[at + column] = v[i];
            }
        }
    }
}
