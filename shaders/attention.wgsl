// attention: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, one pass, no score matrix.
//
// q, out (rows, heads, head_dim); keys, values (pages, kv_heads, PAGE, padded head_dim) of one layer.
// The query heads of one key/value head are packed with the query tokens into one list of vectors,
// m = token · group + head, so that they share every key and value that is loaded.
// A workgroup of XT × YT invocations has one tile of the batch's list and one key/value head. It
// walks the tile's keys, BN = 4 · XT at a time: each invocation makes the scores of 4 vectors × 4
// keys, the workgroup finds their largest, and each adds the weighted values to 4 vectors × 16
// columns in registers, rescaled when the largest grows (online softmax).
// Without SPLIT the YT groups have 4 vectors each and the same keys; with SPLIT (few vectors, many
// keys: decoding) all have the same 4 vectors and every YT-th block of keys, tiles cover stretches
// of keys, and `attention_reduce` adds up the parts.
// MASK is compiled in; blocks of keys that no vector of the tile sees are not in its range.
// Bound by arithmetic with many vectors, by memory when decoding. Twin: model/cpu/attention.rs.
// Params: `Attend` in attention.rs.

struct Attend {
    // Query heads per key/value head.
    group: u32,
    kv_heads: u32,
    head_dim: u32,
    // Vectors of 4 in a cached head.
    vectors: u32,
    // Row strides in elements.
    q_stride: u32,
    out_stride: u32,
    part_stride: u32,
    // Where page tables and this mask's tiles begin in the batch.
    tables: u32,
    tiles: u32,
    // 1 / √head_dim.
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Attend;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> batch: array<u32>;
// With SPLIT the parts: per tile, head, group of invocations and vector its columns, unscaled, then
// (largest score, sum of weights, 0, 0). As vectors of 4 either way.
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

override XT: u32 = 8u;
override YT: u32 = 8u;
override SPLIT: bool = false;
// Bit 0: causal; bit 1: with a window.
override MASK: u32 = 0u;
// Whether head_dim is a multiple of 4, so that a head of q begins with a vector.
override WHOLE: bool = true;

const PAGE = 128u;
// Below every score; finite, so that the difference of two is a number.
const NONE = -3e38;

override WEIGHTS: u32 = 4u * YT * XT;
override STATS: u32 = YT * XT;
var<workgroup> weights: array<vec4<f32>, WEIGHTS>;
var<workgroup> largest: array<vec4<f32>, STATS>;
var<workgroup> sums: array<vec4<f32>, STATS>;

struct Tile {
    // First row and position of the sequence's part of the batch.
    row: u32,
    past: u32,
    // Its vectors of this tile.
    first: u32,
    end: u32,
    table: u32,
    // Keys of the sequence, and the window.
    total: u32,
    window: u32,
    // Keys of this tile; the first is a multiple of BN.
    first_key: u32,
    end_key: u32,
}

fn tile_at(at: u32) -> Tile {
    return Tile(batch[at], batch[at + 1u], batch[at + 2u], batch[at + 3u], batch[at + 4u],
        batch[at + 5u], batch[at + 6u], batch[at + 7u], batch[at + 8u]);
}

fn sees(position: u32, key: vec4<u32>, tile: Tile) -> vec4<bool> {
    let at = vec4(position);
    let window = vec4(tile.window);
    var seen = key < vec4(tile.end_key);
    if (MASK & 1u) != 0u {
        seen = seen & (key <= at);
    }
    if (MASK & 2u) != 0u {
        seen = seen & (at < key + window);
        if (MASK & 1u) == 0u {
            seen = seen & (key < at + window);
        }
    }
    return seen;
}

// Where the cached vector of a key begins, in keys and in values.
fn cached(tile: Tile, key: u32, head: u32) -> u32 {
    let k = min(key, tile.total - 1u);
    let page = batch[p.tables + tile.table + k / PAGE];
    return ((page * p.kv_heads + head) * PAGE + k % PAGE) * p.vectors;
}

// The element of q with which a vector begins.
fn q_at(tile: Tile, m: u32, head: u32) -> u32 {
    let i = min(m, tile.end - 1u);
    let query_head = head * p.group + i % p.group;
    return (tile.row + i / p.group) * p.q_stride + query_head * p.head_dim;
}

// Columns 4 c and on of the vector that begins at element `at`.
fn query(at: u32, c: u32) -> vec4<f32> {
    if WHOLE {
        return q[at / 4u + c];
    }
    return vec4(column(at, 4u * c), column(at, 4u * c + 1u), column(at, 4u * c + 2u),
        column(at, 4u * c + 3u));
}

fn column(at: u32, c: u32) -> f32 {
    if c >= p.head_dim {
        return 0.0;
    }
    return q[(at + c) / 4u][(at + c) % 4u];
}

fn max4(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

// Four vectors of 4 columns of one key: every XT-th, so that neighbours read neighbours.
fn value(at: u32, x: u32) -> mat4x4<f32> {
    let end = p.vectors - 1u;
    return mat4x4(
        values[at + min(x, end)],
        values[at + min(x + XT, end)],
        values[at + min(x + 2u * XT, end)],
        values[at + min(x + 3u * XT, end)],
    );
}

fn put(tile: Tile, m: u32, head: u32, x: u32, o: mat4x4<f32>) {
    if m >= tile.end {
        return;
    }
    let query_head = head * p.group + m % p.group;
    let at = (tile.row + m / p.group) * p.out_stride + query_head * p.head_dim;
    put4(at, x, o[0], p.head_dim);
    put4(at, x + XT, o[1], p.head_dim);
    put4(at, x + 2u * XT, o[2], p.head_dim);
    put4(at, x + 3u * XT, o[3], p.head_dim);
}

// Columns 4 c and on, of `end` columns.
fn put4(at: u32, c: u32, v: vec4<f32>, end: u32) {
    put1(at, 4u * c, v.x, end);
    put1(at, 4u * c + 1u, v.y, end);
    put1(at, 4u * c + 2u, v.z, end);
    put1(at, 4u * c + 3u, v.w, end);
}

fn put1(at: u32, c: u32, v: f32, end: u32) {
    if c < end {
        out[at + c] = v;
    }
}

// One vector's part.
fn put_part(part: u32, x: u32, o: mat4x4<f32>, m: f32, l: f32) {
    let at = part * p.part_stride;
    let end = 4u * p.vectors;
    put4(at, x, o[0], end);
    put4(at, x + XT, o[1], end);
    put4(at, x + 2u * XT, o[2], end);
    put4(at, x + 3u * XT, o[3], end);
    if x == 0u {
        out[at + 4u * p.vectors] = m;
        out[at + 4u * p.vectors + 1u] = l;
    }
}

@compute @workgroup_size(XT, YT)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let tile = tile_at(p.tiles + 9u * group.x);
    let head = group.y;
    let x = local.x;
    let block = 4u * XT;
    let stats = local.y * XT;
    let m0 = tile.first + select(4u * local.y, 0u, SPLIT);
    let q0 = q_at(tile, m0, head);
    let q1 = q_at(tile, m0 + 1u, head);
    let q2 = q_at(tile, m0 + 2u, head);
    let q3 = q_at(tile, m0 + 3u, head);
    let at0 = tile.past + min(m0, tile.end - 1u) / p.group;
    let at1 = tile.past + min(m0 + 1u, tile.end - 1u) / p.group;
    let at2 = tile.past + min(m0 + 2u, tile.end - 1u) / p.group;
    let at3 = tile.past + min(m0 + 3u, tile.end - 1u) / p.group;

    var m = vec4(NONE);
    var l = vec4(0.0);
    var o0 = mat4x4<f32>();
    var o1 = mat4x4<f32>();
    var o2 = mat4x4<f32>();
    var o3 = mat4x4<f32>();
    let step = block * select(1u, YT, SPLIT);
    for (var base = tile.first_key; base < tile.end_key; base += step) {
        let start = base + select(0u, local.y * block, SPLIT);
        let key = vec4(start + 4u * x) + vec4(0u, 1u, 2u, 3u);
        let k0 = cached(tile, key.x, head);
        let k1 = cached(tile, key.y, head);
        let k2 = cached(tile, key.z, head);
        let k3 = cached(tile, key.w, head);
        var s0 = vec4(0.0);
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        var s3 = vec4(0.0);
        for (var c = 0u; c < p.vectors; c += 1u) {
            let k = mat4x4(keys[k0 + c], keys[k1 + c], keys[k2 + c], keys[k3 + c]);
            s0 += query(q0, c) * k;
            s1 += query(q1, c) * k;
            s2 += query(q2, c) * k;
            s3 += query(q3, c) * k;
        }
        let see0 = sees(at0, key, tile);
        let see1 = sees(at1, key, tile);
        let see2 = sees(at2, key, tile);
        let see3 = sees(at3, key, tile);
        s0 = select(vec4(NONE), s0 * p.scale, see0);
        s1 = select(vec4(NONE), s1 * p.scale, see1);
        s2 = select(vec4(NONE), s2 * p.scale, see2);
        s3 = select(vec4(NONE), s3 * p.scale, see3);

        largest[stats + x] = vec4(max4(s0), max4(s1), max4(s2), max4(s3));
        workgroupBarrier();
        var grown = m;
        for (var i = 0u; i < XT; i += 1u) {
            grown = max(grown, largest[stats + i]);
        }
        let shrink = exp(m - grown);
        m = grown;
        s0 = select(vec4(0.0), exp(s0 - m.x), see0);
        s1 = select(vec4(0.0), exp(s1 - m.y), see1);
        s2 = select(vec4(0.0), exp(s2 - m.z), see2);
        s3 = select(vec4(0.0), exp(s3 - m.w), see3);
        let own = 4u * stats + x;
        weights[own] = s0;
        weights[own + XT] = s1;
        weights[own + 2u * XT] = s2;
        weights[own + 3u * XT] = s3;
        let one = vec4(1.0);
        sums[stats + x] = vec4(dot(s0, one), dot(s1, one), dot(s2, one), dot(s3, one));
        workgroupBarrier();
        l *= shrink;
        o0 *= shrink.x;
        o1 *= shrink.y;
        o2 *= shrink.z;
        o3 *= shrink.w;
        for (var i = 0u; i < XT; i += 1u) {
            l += sums[stats + i];
            let four = start + 4u * i;
            let w = 4u * stats + i;
            let w0 = weights[w];
            let w1 = weights[w + XT];
            let w2 = weights[w + 2u * XT];
            let w3 = weights[w + 3u * XT];
            let v0 = value(cached(tile, four, head), x);
            o0 += v0 * w0.x;
            o1 += v0 * w1.x;
            o2 += v0 * w2.x;
            o3 += v0 * w3.x;
            let v1 = value(cached(tile, four + 1u, head), x);
            o0 += v1 * w0.y;
            o1 += v1 * w1.y;
            o2 += v1 * w2.y;
            o3 += v1 * w3.y;
            let v2 = value(cached(tile, four + 2u, head), x);
            o0 += v2 * w0.z;
            o1 += v2 * w1.z;
            o2 += v2 * w2.z;
            o3 += v2 * w3.z;
            let v3 = value(cached(tile, four + 3u, head), x);
            o0 += v3 * w0.w;
            o1 += v3 * w1.w;
            o2 += v3 * w2.w;
            o3 += v3 * w3.w;
        }
    }
    if SPLIT {
        let part = ((group.x * p.kv_heads + head) * YT + local.y) * 4u;
        put_part(part, x, o0, m.x, l.x);
        put_part(part + 1u, x, o1, m.y, l.y);
        put_part(part + 2u, x, o2, m.z, l.z);
        put_part(part + 3u, x, o3, m.w, l.w);
        return;
    }
    put(tile, m0, head, x, o0 * (1.0 / l.x));
    put(tile, m0 + 1u, head, x, o1 * (1.0 / l.y));
    put(tile, m0 + 2u, head, x, o2 * (1.0 / l.z));
    put(tile, m0 + 3u, head, x, o3 * (1.0 / l.w));
}
