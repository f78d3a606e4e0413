// attention: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, one pass, no score matrix.
//
// q, out (rows, heads, head_dim); keys, values (pages, kv_heads, PAGE, padded head_dim) of one layer.
// The query heads of one key/value head are packed with the query tokens into one list of vectors,
// m = token · group + head, so that they share every key and value that is loaded.
// A workgroup of XT × YT invocations has one tile of the batch's list and one key/value head. It
// walks the tile's keys, a block of 8 · XT at a time: each invocation makes the scores of ROWS
// vectors × 8 keys, the workgroup finds their largest, and each adds the weighted values to ROWS
// vectors × 16 columns in registers, rescaled when the largest grows (online softmax).
// Without SPLIT the YT groups have ROWS vectors each and the same keys; with SPLIT (few vectors,
// many keys: decoding) all have the same vectors and every YT-th block of keys, tiles cover
// stretches of keys, and `attention_reduce` adds up the parts.
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

override STATS: u32 = YT * ROWS * XT;
// Weights of ROWS vectors × 8 keys, and the largest scores, by group, vector, invocation.
var<workgroup> weights: array<mat2x4<f32>, STATS>;
var<workgroup> stats: array<f32, STATS>;

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
    let block = 8u * XT;
    let own = local.y * ROWS * XT + x;
    let row = local.y * ROWS * XT;
    let first = tile.first + select(ROWS * local.y, 0u, SPLIT);
    var q_start: array<u32, 8>;
    var position: array<u32, 8>;
    var m: array<f32, 8>;
    // Of the invocation's own keys only; added up at the end.
    var l: array<f32, 8>;
    var o: array<mat4x4<f32>, 8>;
    for (var r = 0u; r < ROWS; r += 1u) {
        q_start[r] = q_at(tile, first + r, head);
        position[r] = tile.past + min(first + r, tile.end - 1u) / p.group;
        m[r] = NONE;
    }

    let last = tile.total - 1u;
    let step = block * select(1u, YT, SPLIT);
    for (var base = tile.first_key; base < tile.end_key; base += step) {
        let start = base + select(0u, local.y * block, SPLIT);
        let real = min(start, last / block * block);
        let at = block_at(tile, real, head);
        let key = vec4(start + 8u * x) + vec4(0u, 1u, 2u, 3u);
        let a = vec4(at) + (min(key, vec4(last)) - real) * p.vectors;
        let b = vec4(at) + (min(key + 4u, vec4(last)) - real) * p.vectors;
        var s: array<mat2x4<f32>, 8>;
        for (var c = 0u; c < p.vectors; c += 1u) {
            let ka = mat4x4(keys[a.x + c], keys[a.y + c], keys[a.z + c], keys[a.w + c]);
            let kb = mat4x4(keys[b.x + c], keys[b.y + c], keys[b.z + c], keys[b.w + c]);
            for (var r = 0u; r < ROWS; r += 1u) {
                let v = query(q_start[r], c);
                s[r] += mat2x4(v * ka, v * kb);
            }
        }
        for (var r = 0u; r < ROWS; r += 1u) {
            s[r][0] = select(vec4(NONE), s[r][0] * p.scale, sees(position[r], key, tile));
            s[r][1] = select(vec4(NONE), s[r][1] * p.scale, sees(position[r], key + 4u, tile));
            stats[own + r * XT] = max4(max(s[r][0], s[r][1]));
        }
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r += 1u) {
            var grown = m[r];
            for (var i = 0u; i < XT; i += 1u) {
                grown = max(grown, stats[row + r * XT + i]);
            }
            let shrink = exp(m[r] - grown);
            m[r] = grown;
            let wa = weight(s[r][0], grown);
            let wb = weight(s[r][1], grown);
            weights[own + r * XT] = mat2x4(wa, wb);
            l[r] = l[r] * shrink + dot(wa + wb, vec4(1.0));
            o[r] *= shrink;
        }
        workgroupBarrier();
        for (var i = 0u; i < 2u * XT; i += 1u) {
            let four = vec4(start + 4u * i) + vec4(0u, 1u, 2u, 3u);
            let v_at = vec4(at) + (min(four, vec4(last)) - real) * p.vectors;
            let v0 = value(v_at.x, x);
            let v1 = value(v_at.y, x);
            let v2 = value(v_at.z, x);
            let v3 = value(v_at.w, x);
            for (var r = 0u; r < ROWS; r += 1u) {
                let w = weights[row + r * XT + i / 2u][i % 2u];
                o[r] += v0 * w.x + v1 * w.y + v2 * w.z + v3 * w.w;
            }
        }
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r += 1u) {
        stats[own + r * XT] = l[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r += 1u) {
        var sum = 0.0;
        for (var i = 0u; i < XT; i += 1u) {
            sum += stats[row + r * XT + i];
        }
        if SPLIT {
            let part = ((group.x * p.kv_heads + head) * YT + local.y) * ROWS + r;
            put_part(part, x, o[r], m[r], sum);
        } else {
            put(tile, first + r, head, x, o[r] * (1.0 / sum));
        }
    }
}
