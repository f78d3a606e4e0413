// attention: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, one pass, no score matrix.
//
// q, out (rows, heads, head_dim); keys, values (pages, kv_heads, PAGE, padded head_dim) of one layer.
// The query heads of one key/value head are packed with the query tokens into one list of vectors,
// m = token · group + head, so that they share every key and value that is loaded.
// A workgroup of XT × YT invocations has one tile of the batch's list and one key/value head. It
// walks the tile's keys, a block of 8 · XT at a time: each invocation makes the scores of ROWS
// vectors × 8 keys, the XT with the same vectors find the largest, and each adds the weighted values
// to ROWS vectors × 16 columns in registers, rescaled when the largest grows (online softmax).
// What the XT tell each other goes through workgroup memory (attention_workgroup.wgsl) or, where a
// subgroup holds them, from register to register (attention_subgroup.wgsl).
// Without SPLIT the YT groups have ROWS vectors each and the same keys; with SPLIT (few vectors,
// many keys: decoding) all have the same vectors and every YT-th block of keys, tiles cover
// stretches of keys, and `attention_reduce` adds up the parts.
// MASK is compiled in; blocks of keys that no vector of the tile sees are not in its range.
// Bound by arithmetic with many vectors, by memory when decoding. Twin: model/cpu/attention.rs.
// Params: `AttentionParams` in attention.rs.

struct AttentionParams {
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

@group(0) @binding(0) var<uniform> p: AttentionParams;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> batch: array<u32>;
// With SPLIT the parts: per tile, head, group of invocations and vector its columns, unscaled, then
// (largest score, sum of weights, 0, 0). As vectors of 4 either way.
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

override XT: u32 = 8u;
override YT: u32 = 8u;
// Vectors of an invocation, 4 or 8.
override ROWS: u32 = 4u;
override SPLIT: bool = false;
// Bit 0: causal; bit 1: with a window.
override MASK: u32 = 0u;
// Whether head_dim is a multiple of 4, so that a head of q begins with a vector.
override WHOLE: bool = true;

const PAGE = 128u;
// Below every score; finite, so that the difference of two is a number.
const NONE = -3e38;


// The workgroup is one-dimensional, so the lanes of a subgroup are consecutive invocations.
override WIDTH: u32 = XT * YT;

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
    // Keys of this tile; the first begins a block.
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

// Where the cached vectors of a block's first key begin, in keys and in values. A block lies in one
// page. Beyond the last block there is only the last block again.
fn block_at(tile: Tile, start: u32, head: u32) -> u32 {
    let page = batch[p.tables + tile.table + start / PAGE];
    return ((page * p.kv_heads + head) * PAGE + start % PAGE) * p.vectors;
}

// Where a vector begins in q: its number of vectors of 4, or else of elements.
fn q_at(tile: Tile, m: u32, head: u32) -> u32 {
    let i = min(m, tile.end - 1u);
    let query_head = head * p.group + i % p.group;
    let at = (tile.row + i / p.group) * p.q_stride + query_head * p.head_dim;
    return select(at, at / 4u, WHOLE);
}

// Columns 4 c and on of the vector that begins at `at`.
fn query(at: u32, c: u32) -> vec4<f32> {
    if WHOLE {
        return q[at + c];
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

// What is not seen stays nothing, also where nothing has been seen so far.
fn weight(score: vec4<f32>, largest: f32) -> vec4<f32> {
    return select(exp(score - largest), vec4(0.0), score == vec4(NONE));
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

// o + a · w.x + b · w.y + c · w.z + d · w.w.
fn mix4(
    o: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>, c: mat4x4<f32>, d: mat4x4<f32>, w: vec4<f32>,
) -> mat4x4<f32> {
    return o + a * w.x + b * w.y + c * w.z + d * w.w;
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

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, place: Place) {
    let tile = tile_at(p.tiles + 9u * group.x);
    let head = group.y;
    let x = place.index % XT;
    let y = place.index / XT;
    let block = 8u * XT;
    let first = tile.first + select(ROWS * y, 0u, SPLIT);
    var q_start: array<u32, 8>;
    var position: array<u32, 8>;
    var m: array<f32, 8>;
    // Of the invocation's own keys only; added up at the end.
    var l: array<f32, 8>;
    // One by one, as the scores below: drivers do not unroll loops of this size, and an array that
    // is not unrolled is not in registers.
    var o0 = mat4x4<f32>();
    var o1 = mat4x4<f32>();
    var o2 = mat4x4<f32>();
    var o3 = mat4x4<f32>();
    var o4 = mat4x4<f32>();
    var o5 = mat4x4<f32>();
    var o6 = mat4x4<f32>();
    var o7 = mat4x4<f32>();
    for (var r = 0u; r < ROWS; r += 1u) {
        q_start[r] = q_at(tile, first + r, head);
        position[r] = tile.past + min(first + r, tile.end - 1u) / p.group;
        m[r] = NONE;
    }

    let last = tile.total - 1u;
    let step = block * select(1u, YT, SPLIT);
    for (var base = tile.first_key; base < tile.end_key; base += step) {
        let start = base + select(0u, y * block, SPLIT);
        let real = min(start, last / block * block);
        let at = block_at(tile, real, head);
        let key = vec4(start + 8u * x) + vec4(0u, 1u, 2u, 3u);
        let a = vec4(at) + (min(key, vec4(last)) - real) * p.vectors;
        let b = vec4(at) + (min(key + 4u, vec4(last)) - real) * p.vectors;
        var sa0 = vec4(0.0); var sb0 = vec4(0.0);
        var sa1 = vec4(0.0); var sb1 = vec4(0.0);
        var sa2 = vec4(0.0); var sb2 = vec4(0.0);
        var sa3 = vec4(0.0); var sb3 = vec4(0.0);
        var sa4 = vec4(0.0); var sb4 = vec4(0.0);
        var sa5 = vec4(0.0); var sb5 = vec4(0.0);
        var sa6 = vec4(0.0); var sb6 = vec4(0.0);
        var sa7 = vec4(0.0); var sb7 = vec4(0.0);
        for (var c = 0u; c < p.vectors; c += 1u) {
            let ka = mat4x4(keys[a.x + c], keys[a.y + c], keys[a.z + c], keys[a.w + c]);
            let kb = mat4x4(keys[b.x + c], keys[b.y + c], keys[b.z + c], keys[b.w + c]);
            let own = own_queries(&q_start, c, x);
            let q0 = query_of(own, q_start[0], c, 0u, place);
            sa0 += q0 * ka;
            sb0 += q0 * kb;
            let q1 = query_of(own, q_start[1], c, 1u, place);
            sa1 += q1 * ka;
            sb1 += q1 * kb;
            let q2 = query_of(own, q_start[2], c, 2u, place);
            sa2 += q2 * ka;
            sb2 += q2 * kb;
            let q3 = query_of(own, q_start[3], c, 3u, place);
            sa3 += q3 * ka;
            sb3 += q3 * kb;
            if ROWS > 4u {
                let q4 = query_of(own, q_start[4], c, 4u, place);
                sa4 += q4 * ka;
                sb4 += q4 * kb;
                let q5 = query_of(own, q_start[5], c, 5u, place);
                sa5 += q5 * ka;
                sb5 += q5 * kb;
                let q6 = query_of(own, q_start[6], c, 6u, place);
                sa6 += q6 * ka;
                sb6 += q6 * kb;
                let q7 = query_of(own, q_start[7], c, 7u, place);
                sa7 += q7 * ka;
                sb7 += q7 * kb;
            }
        }
        var sa = array<vec4<f32>, 8>(sa0, sa1, sa2, sa3, sa4, sa5, sa6, sa7);
        var sb = array<vec4<f32>, 8>(sb0, sb1, sb2, sb3, sb4, sb5, sb6, sb7);
        var grown: array<f32, 8>;
        var shrink: array<f32, 8>;
        for (var r = 0u; r < ROWS; r += 1u) {
            sa[r] = select(vec4(NONE), sa[r] * p.scale, sees(position[r], key, tile));
            sb[r] = select(vec4(NONE), sb[r] * p.scale, sees(position[r], key + 4u, tile));
            grown[r] = max4(max(sa[r], sb[r]));
        }
        grown = largest_of(grown, x, y);
        for (var r = 0u; r < ROWS; r += 1u) {
            grown[r] = max(m[r], grown[r]);
            shrink[r] = exp(m[r] - grown[r]);
            m[r] = grown[r];
            sa[r] = weight(sa[r], m[r]);
            sb[r] = weight(sb[r], m[r]);
            l[r] = l[r] * shrink[r] + dot(sa[r] + sb[r], vec4(1.0));
        }
        o0 *= shrink[0];
        o1 *= shrink[1];
        o2 *= shrink[2];
        o3 *= shrink[3];
        o4 *= shrink[4];
        o5 *= shrink[5];
        o6 *= shrink[6];
        o7 *= shrink[7];
        publish(&sa, &sb, x, y);
        for (var i = 0u; i < XT; i += 1u) {
            let four = vec4(start + 8u * i) + vec4(0u, 1u, 2u, 3u);
            let va = vec4(at) + (min(four, vec4(last)) - real) * p.vectors;
            let vb = vec4(at) + (min(four + 4u, vec4(last)) - real) * p.vectors;
            let v0 = value(va.x, x);
            let v1 = value(va.y, x);
            let v2 = value(va.z, x);
            let v3 = value(va.w, x);
            o0 = mix4(o0, v0, v1, v2, v3, weight_of(sa[0], 0u, i, 0u, y, place));
            o1 = mix4(o1, v0, v1, v2, v3, weight_of(sa[1], 1u, i, 0u, y, place));
            o2 = mix4(o2, v0, v1, v2, v3, weight_of(sa[2], 2u, i, 0u, y, place));
            o3 = mix4(o3, v0, v1, v2, v3, weight_of(sa[3], 3u, i, 0u, y, place));
            if ROWS > 4u {
                o4 = mix4(o4, v0, v1, v2, v3, weight_of(sa[4], 4u, i, 0u, y, place));
                o5 = mix4(o5, v0, v1, v2, v3, weight_of(sa[5], 5u, i, 0u, y, place));
                o6 = mix4(o6, v0, v1, v2, v3, weight_of(sa[6], 6u, i, 0u, y, place));
                o7 = mix4(o7, v0, v1, v2, v3, weight_of(sa[7], 7u, i, 0u, y, place));
            }
            let v4 = value(vb.x, x);
            let v5 = value(vb.y, x);
            let v6 = value(vb.z, x);
            let v7 = value(vb.w, x);
            o0 = mix4(o0, v4, v5, v6, v7, weight_of(sb[0], 0u, i, 1u, y, place));
            o1 = mix4(o1, v4, v5, v6, v7, weight_of(sb[1], 1u, i, 1u, y, place));
            o2 = mix4(o2, v4, v5, v6, v7, weight_of(sb[2], 2u, i, 1u, y, place));
            o3 = mix4(o3, v4, v5, v6, v7, weight_of(sb[3], 3u, i, 1u, y, place));
            if ROWS > 4u {
                o4 = mix4(o4, v4, v5, v6, v7, weight_of(sb[4], 4u, i, 1u, y, place));
                o5 = mix4(o5, v4, v5, v6, v7, weight_of(sb[5], 5u, i, 1u, y, place));
                o6 = mix4(o6, v4, v5, v6, v7, weight_of(sb[6], 6u, i, 1u, y, place));
                o7 = mix4(o7, v4, v5, v6, v7, weight_of(sb[7], 7u, i, 1u, y, place));
            }
        }
    }
    var o = array<mat4x4<f32>, 8>(o0, o1, o2, o3, o4, o5, o6, o7);
    l = sum_of(l, x, y);
    for (var r = 0u; r < ROWS; r += 1u) {
        if SPLIT {
            let part = ((group.x * p.kv_heads + head) * YT + y) * ROWS + r;
            put_part(part, x, o[r], m[r], l[r]);
        } else {
            put(tile, first + r, head, x, o[r] * (1.0 / l[r]));
        }
    }
}
