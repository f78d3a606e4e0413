// matvec: a · Wᵀ for up to 4 rows at a time; see product.wgsl for shapes and for what the op adds.
//
// LANES invocations share 8 sums (8 outputs, or 4 where an output has two) of ROWS rows: each takes
// every LANES-th group of 8 columns, so that neighbours read neighbouring 16 bytes, and the partial
// sums are added across the workgroup. Where LANES is 1 (adapters that are CPUs) an invocation walks
// 8 rows of W alone and GROUPS of them are a workgroup; with SHARE eight neighbours in a subgroup then
// read a group of activations each and pass it round. W is read once for all ROWS rows.
// Bound by memory: the weights.

override ROWS: u32 = 1u;
override GROUPS: u32 = 1u;
// Only where LANES is 1 and subgroups have at least eight invocations.
override SHARE: bool = false;
override BM: u32 = ROWS;
// The workgroup is one-dimensional, so the lanes of a subgroup are consecutive invocations.
override WIDTH: u32 = LANES * GROUPS;

const SUMS = select(8u, 4u, PAIR);
const SECOND = select(0u, 1u, PAIR);

fn put(i: u32, j: u32, c: f32) {
    if j < p.outer {
        finish(i, p.first + j, c, 0.0);
    }
}

fn put_pair(i: u32, j: u32, c: f32, d: f32) {
    if j < p.outer {
        finish(i, p.first + j, c, d);
    }
}

fn put_row(tile: Tile, i: u32, j: u32, c: vec4<f32>, d: vec4<f32>) {
    if i >= tile.end {
        return;
    }
    if PAIR {
        put_pair(i, j, c.x, d.x);
        put_pair(i, j + 1u, c.y, d.y);
        put_pair(i, j + 2u, c.z, d.z);
        put_pair(i, j + 3u, c.w, d.w);
        return;
    }
    put(i, j, c.x);
    put(i, j + 1u, c.y);
    put(i, j + 2u, c.z);
    put(i, j + 3u, c.w);
    put(i, j + 4u, d.x);
    put(i, j + 5u, d.y);
    put(i, j + 6u, d.z);
    put(i, j + 7u, d.w);
}

fn left_at(tile: Tile, i: u32) -> u32 {
    return a_row(min(tile.first + i, tile.end - 1u)) * p.a_stride;
}

fn right_at(tile: Tile, j: u32, s: u32) -> u32 {
    if PAIR {
        return weights_at(tile.expert, s / 4u, j + s % 4u);
    }
    return weights_at(tile.expert, 0u, j + s);
}

// The group that an invocation reads for its neighbours.
fn own_group(k: u32, lanes: Lanes) -> u32 {
    return min(k + lanes.index % 8u, p.inner8 - 1u);
}

fn shared_group(at: u32, k: u32) -> Eight {
    if SHARE {
        return activations(at, k);
    }
    return Eight(vec4(0.0), vec4(0.0));
}

// Group k, the n-th of those that eight neighbours have read.
fn group_of(own: Eight, at: u32, k: u32, n: u32, lanes: Lanes) -> Eight {
    if SHARE {
        return Eight(neighbour(own.even, n, lanes), neighbour(own.odd, n, lanes));
    }
    return activations(at, k);
}

fn total(value: vec4<f32>, lanes: Lanes) -> vec4<f32> {
    if LANES == 1u {
        return value;
    }
    return sum4(value, lanes);
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, lanes: Lanes) {
    let tile = tile_of(group.y);
    let lane = lanes.index % LANES;
    let j = (group.x * GROUPS + lanes.index / LANES) * SUMS;
    let a0 = left_at(tile, 0u);
    let a1 = left_at(tile, 1u);
    let a2 = left_at(tile, 2u);
    let a3 = left_at(tile, 3u);
    let b0 = right_at(tile, j, 0u);
    let b1 = right_at(tile, j, 1u);
    let b2 = right_at(tile, j, 2u);
    let b3 = right_at(tile, j, 3u);
    let b4 = right_at(tile, j, 4u);
    let b5 = right_at(tile, j, 5u);
    let b6 = right_at(tile, j, 6u);
    let b7 = right_at(tile, j, 7u);
    var c0 = vec4(0.0); var d0 = vec4(0.0);
    var c1 = vec4(0.0); var d1 = vec4(0.0);
    var c2 = vec4(0.0); var d2 = vec4(0.0);
    var c3 = vec4(0.0); var d3 = vec4(0.0);

    let step = select(LANES, 8u, SHARE);
    for (var k0 = lane; k0 < p.inner8; k0 += step) {
        let own = own_group(k0, lanes);
        let own0 = shared_group(a0, own);
        let own1 = shared_group(a1, own);
        let own2 = shared_group(a2, own);
        let own3 = shared_group(a3, own);
        let groups = select(1u, min(8u, p.inner8 - k0), SHARE);
        for (var n = 0u; n < groups; n += 1u) {
            let k = k0 + n;
            let w0 = weights(0u, b0, k);
            let w1 = weights(0u, b1, k);
            let w2 = weights(0u, b2, k);
            let w3 = weights(0u, b3, k);
            let w4 = weights(SECOND, b4, k);
            let w5 = weights(SECOND, b5, k);
            let w6 = weights(SECOND, b6, k);
            let w7 = weights(SECOND, b7, k);
            // v · M is the four inner products of v with M's columns: rows of W.
            let ce = mat4x4(w0.even, w1.even, w2.even, w3.even);
            let co = mat4x4(w0.odd, w1.odd, w2.odd, w3.odd);
            let de = mat4x4(w4.even, w5.even, w6.even, w7.even);
            let do_ = mat4x4(w4.odd, w5.odd, w6.odd, w7.odd);
            let x0 = group_of(own0, a0, k, n, lanes);
            c0 += x0.even * ce + x0.odd * co;
            d0 += x0.even * de + x0.odd * do_;
            if ROWS > 1u {
                let x1 = group_of(own1, a1, k, n, lanes);
                c1 += x1.even * ce + x1.odd * co;
                d1 += x1.even * de + x1.odd * do_;
            }
            if ROWS > 2u {
                let x2 = group_of(own2, a2, k, n, lanes);
                c2 += x2.even * ce + x2.odd * co;
                d2 += x2.even * de + x2.odd * do_;
                let x3 = group_of(own3, a3, k, n, lanes);
                c3 += x3.even * ce + x3.odd * co;
                d3 += x3.even * de + x3.odd * do_;
            }
        }
    }

    c0 = total(c0, lanes);
    d0 = total(d0, lanes);
    if ROWS > 1u {
        c1 = total(c1, lanes);
        d1 = total(d1, lanes);
    }
    if ROWS > 2u {
        c2 = total(c2, lanes);
        d2 = total(d2, lanes);
        c3 = total(c3, lanes);
        d3 = total(d3, lanes);
    }
    if lane != 0u {
        return;
    }
    put_row(tile, tile.first, j, c0, d0);
    if ROWS > 1u {
        put_row(tile, tile.first + 1u, j, c1, d1);
    }
    if ROWS > 2u {
        put_row(tile, tile.first + 2u, j, c2, d2);
        put_row(tile, tile.first + 3u, j, c3, d3);
    }
}
