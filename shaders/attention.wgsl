// attention: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, one pass, no score matrix.
//
// q, out (rows, heads, head_dim); keys, values of one layer in pages of the type DTYPE, widened as
// they are read (pages.wgsl).
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
    // Vectors of 4 columns in a cached head, and in one of its parts; columns of a part.
    vectors: u32,
    side: u32,
    width: u32,
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
@group(0) @binding(2) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;
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
// Whether the parts of a head of q begin with vectors, as those of a cached head do.
override WHOLE: bool = true;

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

// The page of the block that begins with key `start`. A block lies in one page.
fn page_of(tile: Tile, start: u32) -> u32 {
    return batch[p.tables + tile.table + start / PAGE];
}

// Where keys of the block that begins with key `real` are in its page. Beyond the last key there is
// only the last again, as beyond the last block.
fn slots_of(key: vec4<u32>, last: u32, real: u32) -> vec4<u32> {
    return min(key, vec4(last)) - vec4(real - real % PAGE);
}

// Where a vector begins in q: its number of vectors of 4, or else of elements.
fn q_at(tile: Tile, m: u32, head: u32) -> u32 {
    let i = min(m, tile.end - 1u);
    let query_head = head * p.group + i % p.group;
    let at = (tile.row + i / p.group) * p.q_stride + query_head * p.head_dim;
    return select(at, at / 4u, WHOLE);
}

// Vector v of the head that begins at `at`.
fn query(at: u32, v: u32) -> vec4<f32> {
    if WHOLE {
        return q[at + v];
    }
    // Its place is made once, as in put4.
    let second = v >= p.side;
    let c = 4u * (v - select(0u, p.side, second));
    let first = at + select(0u, p.width, second) + c;
    let end = select(0u, p.width, v < p.vectors);
    return vec4(element(first, c, end), element(first + 1u, c + 1u, end),
        element(first + 2u, c + 2u, end), element(first + 3u, c + 3u, end));
}

fn element(at: u32, c: u32, end: u32) -> f32 {
    if c >= end {
        return 0.0;
    }
    return q[at / 4u][at % 4u];
}

fn max4(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

// What is not seen stays nothing, also where nothing has been seen so far.
fn weight(score: vec4<f32>, largest: f32) -> vec4<f32> {
    return select(exp(score - largest), vec4(0.0), score == vec4(NONE));
}

// Chunk c of the keys of four tokens, with its scales.
struct Four { x: vec4<u32>, y: vec4<u32>, z: vec4<u32>, w: vec4<u32>, scale: vec4<f32> }

fn keys_of(at: Places, c: u32) -> Four {
    let i = at.chunk + c;
    var four = Four(keys[i.x], keys[i.y], keys[i.z], keys[i.w], vec4(1.0));
    if DTYPE == CODES {
        let s = at.scale + c / 4u;
        four.scale = vec4(
            scale_in(keys[s.x / 4u][s.x % 4u], c),
            scale_in(keys[s.y / 4u][s.y % 4u], c),
            scale_in(keys[s.z / 4u][s.z % 4u], c),
            scale_in(keys[s.w / 4u][s.w % 4u], c),
        );
    }
    return four;
}

// Their vectors i.
fn vectors(four: Four, i: u32) -> mat4x4<f32> {
    let x = widened(four.x, i);
    let y = widened(four.y, i);
    let z = widened(four.z, i);
    let w = widened(four.w, i);
    if DTYPE == CODES {
        return mat4x4(x * four.scale.x, y * four.scale.y, z * four.scale.z, w * four.scale.w);
    }
    return mat4x4(x, y, z, w);
}

// The scores of the vectors of an invocation with four keys and four more.
struct Scores {
    a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>,
    a4: vec4<f32>, a5: vec4<f32>, a6: vec4<f32>, a7: vec4<f32>,
    b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>,
    b4: vec4<f32>, b5: vec4<f32>, b6: vec4<f32>, b7: vec4<f32>,
}

// Adds the products of vector v of queries and keys.
fn add(
    s: ptr<function, Scores>, start: ptr<function, array<u32, 8>>, v: u32,
    a: mat4x4<f32>, b: mat4x4<f32>, x: u32, place: Place,
) {
    let own = own_queries(start, v, x);
    let q0 = query_of(own, (*start)[0], v, 0u, place);
    (*s).a0 += q0 * a;
    (*s).b0 += q0 * b;
    let q1 = query_of(own, (*start)[1], v, 1u, place);
    (*s).a1 += q1 * a;
    (*s).b1 += q1 * b;
    let q2 = query_of(own, (*start)[2], v, 2u, place);
    (*s).a2 += q2 * a;
    (*s).b2 += q2 * b;
    let q3 = query_of(own, (*start)[3], v, 3u, place);
    (*s).a3 += q3 * a;
    (*s).b3 += q3 * b;
    if ROWS > 4u {
        let q4 = query_of(own, (*start)[4], v, 4u, place);
        (*s).a4 += q4 * a;
        (*s).b4 += q4 * b;
        let q5 = query_of(own, (*start)[5], v, 5u, place);
        (*s).a5 += q5 * a;
        (*s).b5 += q5 * b;
        let q6 = query_of(own, (*start)[6], v, 6u, place);
        (*s).a6 += q6 * a;
        (*s).b6 += q6 * b;
        let q7 = query_of(own, (*start)[7], v, 7u, place);
        (*s).a7 += q7 * a;
        (*s).b7 += q7 * b;
    }
}

// Vectors of 4 columns of one key, those of every XT-th chunk, so that neighbours read neighbours.
fn value(chunk: u32, scale: u32, x: u32) -> mat4x4<f32> {
    let end = chunks() - 1u;
    let c = min(x, end);
    let first = values[chunk + c];
    if DTYPE == CODES {
        let s = scale + c / 4u;
        let all = mat4x4(widened(first, 0u), widened(first, 1u), widened(first, 2u), widened(first, 3u));
        return scale_in(values[s / 4u][s % 4u], c) * all;
    }
    let second = values[chunk + min(x + XT, end)];
    if packed() {
        return mat4x4(
            widened(first, 0u), widened(first, 1u), widened(second, 0u), widened(second, 1u));
    }
    let third = values[chunk + min(x + 2u * XT, end)];
    let fourth = values[chunk + min(x + 3u * XT, end)];
    return mat4x4(
        widened(first, 0u), widened(second, 0u), widened(third, 0u), widened(fourth, 0u));
}

// The number of the i-th of these vectors; beyond the last, p.vectors.
fn value_vector(x: u32, i: u32) -> u32 {
    let c = x + i / per_chunk() * XT;
    return select(p.vectors, vector_of(c, i % per_chunk()), c < chunks());
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
    put4(at, value_vector(x, 0u), o[0]);
    put4(at, value_vector(x, 1u), o[1]);
    put4(at, value_vector(x, 2u), o[2]);
    put4(at, value_vector(x, 3u), o[3]);
}

// Vector v of a head of `out`. Its place is made once: SwiftShader takes minutes to compile this shader
// where each column is by `column_of`.
fn put4(at: u32, v: u32, o: vec4<f32>) {
    let second = v >= p.side;
    let c = 4u * (v - select(0u, p.side, second));
    let first = at + select(0u, p.width, second) + c;
    let end = select(0u, p.width, v < p.vectors);
    put1(first, c, end, o.x);
    put1(first + 1u, c + 1u, end, o.y);
    put1(first + 2u, c + 2u, end, o.z);
    put1(first + 3u, c + 3u, end, o.w);
}

fn put1(at: u32, c: u32, end: u32, o: f32) {
    if c < end {
        out[at] = o;
    }
}

// One vector's part.
fn put_part(part: u32, x: u32, o: mat4x4<f32>, m: f32, l: f32) {
    let at = part * p.part_stride;
    put_vector(at, value_vector(x, 0u), o[0]);
    put_vector(at, value_vector(x, 1u), o[1]);
    put_vector(at, value_vector(x, 2u), o[2]);
    put_vector(at, value_vector(x, 3u), o[3]);
    if x == 0u {
        out[at + 4u * p.vectors] = m;
        out[at + 4u * p.vectors + 1u] = l;
    }
}

fn put_vector(at: u32, v: u32, o: vec4<f32>) {
    if v < p.vectors {
        out[at + 4u * v] = o.x;
        out[at + 4u * v + 1u] = o.y;
        out[at + 4u * v + 2u] = o.z;
        out[at + 4u * v + 3u] = o.w;
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
        let cached = head_at(page_of(tile, real), head);
        let key = vec4(start + 8u * x) + vec4(0u, 1u, 2u, 3u);
        let a = places_of(cached, slots_of(key, last, real));
        let b = places_of(cached, slots_of(key + 4u, last, real));
        var s = Scores();
        for (var c = 0u; c < chunks(); c += 1u) {
            let ka = keys_of(a, c);
            let kb = keys_of(b, c);
            add(&s, &q_start, vector_of(c, 0u), vectors(ka, 0u), vectors(kb, 0u), x, place);
            if DTYPE != F32 {
                add(&s, &q_start, vector_of(c, 1u), vectors(ka, 1u), vectors(kb, 1u), x, place);
            }
            if DTYPE == CODES {
                add(&s, &q_start, vector_of(c, 2u), vectors(ka, 2u), vectors(kb, 2u), x, place);
                add(&s, &q_start, vector_of(c, 3u), vectors(ka, 3u), vectors(kb, 3u), x, place);
            }
        }
        var sa = array<vec4<f32>, 8>(s.a0, s.a1, s.a2, s.a3, s.a4, s.a5, s.a6, s.a7);
        var sb = array<vec4<f32>, 8>(s.b0, s.b1, s.b2, s.b3, s.b4, s.b5, s.b6, s.b7);
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
            let va = places_of(cached, slots_of(four, last, real));
            let vb = places_of(cached, slots_of(four + 4u, last, real));
            let v0 = value(va.chunk.x, va.scale.x, x);
            let v1 = value(va.chunk.y, va.scale.y, x);
            let v2 = value(va.chunk.z, va.scale.z, x);
            let v3 = value(va.chunk.w, va.scale.w, x);
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
            let v4 = value(vb.chunk.x, vb.scale.x, x);
            let v5 = value(vb.chunk.y, vb.scale.y, x);
            let v6 = value(vb.chunk.z, vb.scale.z, x);
            let v7 = value(vb.chunk.w, vb.scale.w, x);
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
