// matmul: a · Wᵀ for many rows; see product.wgsl for shapes and for what the op adds.
//
// A workgroup of WX × WY invocations makes a tile of 8 · WY rows and 8 · WX sums (4 · WX outputs
// where an output has two). An invocation makes 8 rows × 8 sums in registers: 8 rows of a times two
// 4×4 blocks of W, so 16 vectors loaded feed 256 multiply-adds per 4 columns. STAGED, the tile's
// operands go through workgroup memory, 16 columns at a time (GPUs); otherwise each invocation
// reads them from the caches, which is up to four times as fast on adapters that are CPUs. With
// subgroups eight neighbours read a row of a each and pass it round (share_subgroup.wgsl), which
// saves half of the loads again.
// Bound by arithmetic; accumulates in f32, in the order of the columns. Operands are of type Real: f32,
// or f16 where asked for.

override WX: u32 = 8u;
override WY: u32 = 8u;
override STAGED: bool = false;
override BM: u32 = 8u * WY;
// The workgroup is one-dimensional, so the lanes of a subgroup are consecutive invocations.
override WIDTH: u32 = WX * WY;

// Groups of 8 columns staged at once, and vectors from one staged row to the next: odd, so that
// the rows of a block begin in different banks.
const DEPTH = 2u;
const PITCH = 5u;
const SUMS = select(8u, 4u, PAIR);
const SECOND = select(0u, 1u, PAIR);

override STAGED_A: u32 = select(1u, PITCH * 8u * WY, STAGED);
override STAGED_W: u32 = select(1u, PITCH * 8u * WX, STAGED);
var<workgroup> staged_a: array<vec4<Real>, STAGED_A>;
var<workgroup> staged_w: array<vec4<Real>, STAGED_W>;

// A group of 8 elements to multiply.
struct Operand { even: vec4<Real>, odd: vec4<Real> }

fn operand(v: Eight) -> Operand {
    return Operand(vec4<Real>(v.even), vec4<Real>(v.odd));
}

fn left(at: u32, k: u32) -> Operand {
    if STAGED {
        return Operand(staged_a[at + 2u * k], staged_a[at + 2u * k + 1u]);
    }
    return operand(activations(at, k));
}

fn right(member: u32, at: u32, k: u32) -> Operand {
    if STAGED {
        return Operand(staged_w[at + 2u * k], staged_w[at + 2u * k + 1u]);
    }
    return operand(weights(member, at, k));
}

// Where a row of the tile begins.
fn left_at(tile: Tile, i: u32) -> u32 {
    if STAGED {
        return (i - tile.first) * PITCH;
    }
    return a_row(min(i, tile.end - 1u)) * p.a_stride;
}

// Where the s-th of the invocation's sums has its weights; `j` is its first output.
fn right_at(tile: Tile, x: u32, j: u32, s: u32) -> u32 {
    if STAGED {
        return (s * WX + x) * PITCH;
    }
    if PAIR {
        return weights_at(tile.expert, s / 4u, j + (s % 4u) * WX);
    }
    return weights_at(tile.expert, 0u, j + s * WX);
}

fn put(tile: Tile, i: u32, j: u32, c: vec4<f32>, d: vec4<f32>) {
    if i >= tile.end {
        return;
    }
    put_one(i, j, c.x, d.x);
    put_one(i, j + WX, c.y, d.y);
    put_one(i, j + 2u * WX, c.z, d.z);
    put_one(i, j + 3u * WX, c.w, d.w);
}

fn put_one(i: u32, j: u32, c: f32, d: f32) {
    if j < p.outer {
        finish(i, p.first + j, c, d);
    }
    if !PAIR && j + 4u * WX < p.outer {
        finish(i, p.first + j + 4u * WX, d, 0.0);
    }
}

// Copies DEPTH groups of the tile's rows of a and of W to workgroup memory.
fn stage(tile: Tile, block: u32, index: u32, k0: u32) {
    for (var n = index; n < DEPTH * 8u * WY; n += WX * WY) {
        let row = n / DEPTH;
        let k = min(k0 + n % DEPTH, p.inner8 - 1u);
        let values = operand(activations(a_row(min(tile.first + row, tile.end - 1u)) * p.a_stride, k));
        staged_a[row * PITCH + 2u * (n % DEPTH)] = values.even;
        staged_a[row * PITCH + 2u * (n % DEPTH) + 1u] = values.odd;
    }
    for (var n = index; n < DEPTH * 8u * WX; n += WX * WY) {
        let row = n / DEPTH;
        let k = min(k0 + n % DEPTH, p.inner8 - 1u);
        let j = block * SUMS * WX + row % (SUMS * WX);
        var values: Operand;
        if PAIR && row >= 4u * WX {
            values = operand(weights(1u, weights_at(tile.expert, 1u, j), k));
        } else {
            values = operand(weights(0u, weights_at(tile.expert, 0u, j), k));
        }
        staged_w[row * PITCH + 2u * (n % DEPTH)] = values.even;
        staged_w[row * PITCH + 2u * (n % DEPTH) + 1u] = values.odd;
    }
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, place: Place) {
    let tile = tile_of(group.y);
    let x = place.index % WX;
    let i = tile.first + place.index / WX * 8u;
    let j = group.x * SUMS * WX + x;

    let a0 = left_at(tile, i);
    let a1 = left_at(tile, i + 1u);
    let a2 = left_at(tile, i + 2u);
    let a3 = left_at(tile, i + 3u);
    let a4 = left_at(tile, i + 4u);
    let a5 = left_at(tile, i + 5u);
    let a6 = left_at(tile, i + 6u);
    let a7 = left_at(tile, i + 7u);
    // The row that this invocation reads for its neighbours.
    let own_at = left_at(tile, i + place.index % 8u);
    let b0 = right_at(tile, x, j, 0u);
    let b1 = right_at(tile, x, j, 1u);
    let b2 = right_at(tile, x, j, 2u);
    let b3 = right_at(tile, x, j, 3u);
    let b4 = right_at(tile, x, j, 4u);
    let b5 = right_at(tile, x, j, 5u);
    let b6 = right_at(tile, x, j, 6u);
    let b7 = right_at(tile, x, j, 7u);

    var c0 = vec4(0.0); var d0 = vec4(0.0);
    var c1 = vec4(0.0); var d1 = vec4(0.0);
    var c2 = vec4(0.0); var d2 = vec4(0.0);
    var c3 = vec4(0.0); var d3 = vec4(0.0);
    var c4 = vec4(0.0); var d4 = vec4(0.0);
    var c5 = vec4(0.0); var d5 = vec4(0.0);
    var c6 = vec4(0.0); var d6 = vec4(0.0);
    var c7 = vec4(0.0); var d7 = vec4(0.0);

    let depth = select(p.inner8, DEPTH, STAGED);
    for (var k0 = 0u; k0 < p.inner8; k0 += depth) {
        if STAGED {
            workgroupBarrier();
            stage(tile, group.x, place.index, k0);
            workgroupBarrier();
        }
        let groups = min(depth, p.inner8 - k0);
        for (var k = 0u; k < groups; k += 1u) {
            let w0 = right(0u, b0, k);
            let w1 = right(0u, b1, k);
            let w2 = right(0u, b2, k);
            let w3 = right(0u, b3, k);
            let w4 = right(SECOND, b4, k);
            let w5 = right(SECOND, b5, k);
            let w6 = right(SECOND, b6, k);
            let w7 = right(SECOND, b7, k);
            // v · M is the four inner products of v with M's columns: rows of W.
            let ce = mat4x4<Real>(w0.even, w1.even, w2.even, w3.even);
            let co = mat4x4<Real>(w0.odd, w1.odd, w2.odd, w3.odd);
            let de = mat4x4<Real>(w4.even, w5.even, w6.even, w7.even);
            let do_ = mat4x4<Real>(w4.odd, w5.odd, w6.odd, w7.odd);
            let own = own_row(own_at, k);
            let x0 = row_of(own, a0, k, 0u, place);
            c0 += vec4<f32>(x0.even * ce) + vec4<f32>(x0.odd * co);
            d0 += vec4<f32>(x0.even * de) + vec4<f32>(x0.odd * do_);
            let x1 = row_of(own, a1, k, 1u, place);
            c1 += vec4<f32>(x1.even * ce) + vec4<f32>(x1.odd * co);
            d1 += vec4<f32>(x1.even * de) + vec4<f32>(x1.odd * do_);
            let x2 = row_of(own, a2, k, 2u, place);
            c2 += vec4<f32>(x2.even * ce) + vec4<f32>(x2.odd * co);
            d2 += vec4<f32>(x2.even * de) + vec4<f32>(x2.odd * do_);
            let x3 = row_of(own, a3, k, 3u, place);
            c3 += vec4<f32>(x3.even * ce) + vec4<f32>(x3.odd * co);
            d3 += vec4<f32>(x3.even * de) + vec4<f32>(x3.odd * do_);
            let x4 = row_of(own, a4, k, 4u, place);
            c4 += vec4<f32>(x4.even * ce) + vec4<f32>(x4.odd * co);
            d4 += vec4<f32>(x4.even * de) + vec4<f32>(x4.odd * do_);
            let x5 = row_of(own, a5, k, 5u, place);
            c5 += vec4<f32>(x5.even * ce) + vec4<f32>(x5.odd * co);
            d5 += vec4<f32>(x5.even * de) + vec4<f32>(x5.odd * do_);
            let x6 = row_of(own, a6, k, 6u, place);
            c6 += vec4<f32>(x6.even * ce) + vec4<f32>(x6.odd * co);
            d6 += vec4<f32>(x6.even * de) + vec4<f32>(x6.odd * do_);
            let x7 = row_of(own, a7, k, 7u, place);
            c7 += vec4<f32>(x7.even * ce) + vec4<f32>(x7.odd * co);
            d7 += vec4<f32>(x7.even * de) + vec4<f32>(x7.odd * do_);
        }
    }
    put(tile, i, j, c0, d0);
    put(tile, i + 1u, j, c1, d1);
    put(tile, i + 2u, j, c2, d2);
    put(tile, i + 3u, j, c3, d3);
    put(tile, i + 4u, j, c4, d4);
    put(tile, i + 5u, j, c5, d5);
    put(tile, i + 6u, j, c6, d6);
    put(tile, i + 7u, j, c7, d7);
}
