// outer: the two products of a backward pass, out[i, j] = Σ_p a(i, p) · b[p, j].
//
// With dy the gradient of y = x · Wᵀ they are
//   dx = dy · W      a(i, p) = a[i, p], b = W as stored: plain (common.wgsl) or quantised (codes.wgsl)
//   dW += dyᵀ · x    a(i, p) = a[p, i] (TRANSPOSED), b = x in f32
// Rows of b are contiguous along j in both, so neither W nor x is ever transposed in memory.
// a (m, depth) or (depth, m), b (depth, n), out (m, n) f32. For a mixture (p.experts > 0) rows are
// sorted by expert: expert e has rows e · depth … of W for its own rows of dy, or adds to rows
// e · m … of dW from its own rows of both.
//
// A workgroup of 16 × 16 invocations has 64 × 64 outputs, each invocation 4 × 4. It walks p in steps
// of 16: both operands go through 8 KiB of workgroup memory, so that each value is loaded once for 64
// outputs and each weight is decoded once for 64 rows. Every output is the sum of one invocation,
// first over 16 values of p and then over the steps, in order: the same bits every time, and an error
// that grows with the number of steps. A matrix in several buffers has one launch for each, in order;
// the launch that has the first row writes, the others add. Bound by arithmetic.
// Twin: model/cpu/outer.rs. Params: `Outer` in outer.rs; regions of the routing in expert_sort.wgsl.

struct Outer {
    // Rows of out (of one expert where TRANSPOSED), and groups of 8 columns.
    m: u32,
    groups: u32,
    // Values of p, for each expert.
    depth: u32,
    // Row strides: a and out in vectors of 4, b in vectors of 4 words.
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    // Rows of W in this buffer: first, and how many.
    first: u32,
    count: u32,
    // Whether a product that is TRANSPOSED adds to out.
    add: u32,
    // 0 where rows are not grouped by expert; rows · top_k that the routing has room for.
    experts: u32,
    assigned: u32,
    // Where quantised rows have what; see codes.wgsl.
    high: u32,
    units: u32,
    numbers: u32,
    run: u32,
    block: u32,
    zero: f32,
}

@group(0) @binding(0) var<uniform> p: Outer;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> routing: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

override TRANSPOSED: bool = false;

const SIDE = 64u;
const STEP = 16u;
// Value p of row i is at p · SIDE + i.
var<workgroup> left: array<f32, 1024>;
// Vector c of row p is at p · 16 + c.
var<workgroup> right: array<vec4<f32>, 256>;

fn word(member: u32, i: u32) -> u32 {
    return b[i / 4u][i % 4u];
}

// Group k of the row of b that begins at vector `at`.
fn group_of(at: u32, k: u32) -> Eight {
    if DTYPE == CODES {
        return quantized(0u, 4u * at, k);
    }
    if DTYPE == F32 {
        return eight(bitcast<vec4<f32>>(b[at + 2u * k]), bitcast<vec4<f32>>(b[at + 2u * k + 1u]));
    }
    return unpack(b[at + k]);
}

// The first place of an expert.
fn start_of(e: u32) -> u32 {
    return routing[4u * p.assigned + e];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    // Rows `top..bottom` of a and out, p in `begin..until`, and the row of b for p = 0.
    var top = group.y * SIDE;
    var bottom = p.m;
    var begin = 0u;
    var until = p.depth;
    var b_row = 0u;
    var out_row = 0u;
    var add = p.add != 0u;
    if TRANSPOSED {
        if p.experts > 0u {
            let tiles = (p.m + SIDE - 1u) / SIDE;
            let expert = group.y / tiles;
            top = group.y % tiles * SIDE;
            begin = start_of(expert);
            until = start_of(expert + 1u);
            out_row = expert * p.m;
        }
    } else {
        var expert = 0u;
        if p.experts > 0u {
            // The expert of this tile; tiles beyond the last one have no rows.
            var tile = group.y;
            var first = 0u;
            bottom = 0u;
            for (var e = 0u; e < p.experts; e += 1u) {
                first = start_of(e);
                let end = start_of(e + 1u);
                let tiles = (end - first + SIDE - 1u) / SIDE;
                if tile < tiles {
                    expert = e;
                    bottom = end;
                    break;
                }
                tile -= tiles;
            }
            top = first + tile * SIDE;
        }
        // The part of the expert's rows of W that is in this buffer.
        let rows = expert * p.depth;
        begin = max(rows, p.first) - rows;
        until = max(min(rows + p.depth, p.first + p.count), rows) - rows;
        b_row = rows - p.first;
        add = begin > 0u;
        if begin >= until {
            bottom = 0u;
        }
    }
    if top >= bottom {
        return;
    }

    let x = index % 16u;
    let y = index / 16u;
    let column = group.x * 8u;
    var sum0 = vec4(0.0);
    var sum1 = vec4(0.0);
    var sum2 = vec4(0.0);
    var sum3 = vec4(0.0);
    for (var start = begin & ~3u; start < until; start += STEP) {
        // a: one vector of 4 for each invocation.
        if TRANSPOSED {
            let row = start + y;
            let i = top + 4u * x;
            var v = vec4(0.0);
            if row >= begin && row < until && i < bottom {
                v = a[row * p.a_stride + i / 4u];
            }
            let at = y * SIDE + 4u * x;
            left[at] = v.x;
            left[at + 1u] = v.y;
            left[at + 2u] = v.z;
            left[at + 3u] = v.w;
        } else {
            let i = index / 4u;
            let row = start + 4u * (index % 4u);
            let each = vec4(row) + vec4(0u, 1u, 2u, 3u);
            var v = vec4(0.0);
            if top + i < bottom && row < until {
                v = a[(top + i) * p.a_stride + row / 4u];
            }
            v = select(vec4(0.0), v, (each >= vec4(begin)) & (each < vec4(until)));
            let at = 4u * (index % 4u) * SIDE + i;
            left[at] = v.x;
            left[at + SIDE] = v.y;
            left[at + 2u * SIDE] = v.z;
            left[at + 3u * SIDE] = v.w;
        }
        // b: a group of 8 columns for each invocation of the first half.
        if index < 128u {
            let row = start + index / 8u;
            let k = column + index % 8u;
            var v = Eight(vec4(0.0), vec4(0.0));
            if row >= begin && row < until && k < p.groups {
                v = group_of((b_row + row) * p.b_stride, k);
            }
            right[2u * index] = vec4(v.even.x, v.odd.x, v.even.y, v.odd.y);
            right[2u * index + 1u] = vec4(v.even.z, v.odd.z, v.even.w, v.odd.w);
        }
        workgroupBarrier();
        var part0 = vec4(0.0);
        var part1 = vec4(0.0);
        var part2 = vec4(0.0);
        var part3 = vec4(0.0);
        // Four at a time: llvmpipe ends the loops of an invocation after 65,535 iterations in all.
        for (var k = 0u; k < STEP; k += 4u) {
            for4(k * SIDE + 4u * y, k * 16u + x, &part0, &part1, &part2, &part3);
        }
        sum0 += part0;
        sum1 += part1;
        sum2 += part2;
        sum3 += part3;
        workgroupBarrier();
    }
    let c = 2u * column + x;
    if c >= 2u * p.groups {
        return;
    }
    let i = top + 4u * y;
    put(i, bottom, out_row, c, sum0, add);
    put(i + 1u, bottom, out_row, c, sum1, add);
    put(i + 2u, bottom, out_row, c, sum2, add);
    put(i + 3u, bottom, out_row, c, sum3, add);
}

// Adds the products of four values of p.
fn for4(
    l: u32, r: u32,
    s0: ptr<function, vec4<f32>>, s1: ptr<function, vec4<f32>>,
    s2: ptr<function, vec4<f32>>, s3: ptr<function, vec4<f32>>,
) {
    let b0 = right[r];
    let b1 = right[r + 16u];
    let b2 = right[r + 32u];
    let b3 = right[r + 48u];
    *s0 = of4(*s0, l, b0, b1, b2, b3);
    *s1 = of4(*s1, l + 1u, b0, b1, b2, b3);
    *s2 = of4(*s2, l + 2u, b0, b1, b2, b3);
    *s3 = of4(*s3, l + 3u, b0, b1, b2, b3);
}

fn of4(
    s: vec4<f32>, l: u32, b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>,
) -> vec4<f32> {
    return s + left[l] * b0 + left[l + SIDE] * b1 + left[l + 2u * SIDE] * b2
        + left[l + 3u * SIDE] * b3;
}

fn put(i: u32, bottom: u32, out_row: u32, c: u32, sum: vec4<f32>, add: bool) {
    if i >= bottom {
        return;
    }
    let at = (out_row + i) * p.out_stride + c;
    if add {
        out[at] += sum;
    } else {
        out[at] = sum;
    }
}
