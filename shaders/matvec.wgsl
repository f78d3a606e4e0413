// matvec: a · Wᵀ for up to 4 rows at a time; see product.wgsl for shapes and for what the op adds.
//
// LANES invocations share 8 sums (8 outputs, or 4 where an output has two) of ROWS rows: each takes
// every LANES-th group of 8 columns, so that neighbours read neighbouring 16 bytes, and the partial
// sums are added across the workgroup. Where LANES is 1 (adapters that are CPUs) an invocation walks
// 8 rows of W alone and GROUPS of them are a workgroup; with SHARE eight neighbours in a subgroup then
// read a group of activations each and pass it round. W is read once for all ROWS rows; where there are
// more, workgroups with the same rows of W are neighbours in the grid, (tiles of rows, outputs).
//
// Quantised weights are multiplied as codes, and a run's scale and offset come once for all its
// products that an invocation makes in a row: Σ a · (s · c + o) = s · Σ a · c + o · Σ a. That is all
// of a run where LANES is 1, and a group of 8 otherwise.
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

// Group k of the activations, over the places of the codes that it is multiplied by.
fn placed(at: u32, k: u32) -> Eight {
    let group = activations(at, k);
    if DTYPE == CODES {
        return Eight(group.even * places(), group.odd * places());
    }
    return group;
}

fn shared_group(at: u32, k: u32) -> Eight {
    if SHARE {
        return placed(at, k);
    }
    return Eight(vec4(0.0), vec4(0.0));
}

// Group k, the n-th of those that eight neighbours have read.
fn group_of(own: Eight, at: u32, k: u32, n: u32, lanes: Lanes) -> Eight {
    if SHARE {
        return Eight(neighbour(own.even, n, lanes), neighbour(own.odd, n, lanes));
    }
    return placed(at, k);
}

// The scales and the offsets of the runs with group k of four rows, at words: only where weights
// are CODES.
struct Runs { scale: vec4<f32>, offset: vec4<f32> }

fn runs_of(member: u32, at: vec4<u32>, k: u32) -> Runs {
    let x = scale_of(member, at.x, k);
    let y = scale_of(member, at.y, k);
    let z = scale_of(member, at.z, k);
    let w = scale_of(member, at.w, k);
    let scale = vec4(x.x, y.x, z.x, w.x);
    // What the codes have too much goes with the offsets.
    return Runs(scale, vec4(x.y, y.y, z.y, w.y) - scale * p.zero);
}

// What an invocation that walks a row of CODES alone keeps of it, so that it loads four words of the
// low region at once, and each word of the high region once: on llvmpipe a single row times Q8_0
// takes 0.95 of bf16's time with it and 1.25 without.
struct Kept { low: vec4<u32>, high: u32 }

fn kept(old: Kept, member: u32, at: u32, k: u32) -> Kept {
    var now = old;
    if DTYPE == CODES && LANES == 1u {
        if (k * LOW) % 16u == 0u {
            now.low = words4(member, at + k * LOW / 16u);
        }
        if HIGH > 0u && (k * HIGH) % 4u == 0u {
            now.high = word(member, 4u * at + p.high + k * HIGH / 4u);
        }
    }
    return now;
}

// What activations are multiplied by: group k of the weights, or its codes.
fn factors(own: Kept, member: u32, at: u32, k: u32) -> Eight {
    if DTYPE != CODES {
        return weights(member, at, k);
    }
    if LANES > 1u {
        return codes(stored(member, 4u * at, k), k);
    }
    if LOW == 8u {
        return codes(Stored(select(own.low.xy, own.low.zw, k % 2u == 1u), 0u), k);
    }
    return codes(Stored(vec2(own.low[k * LOW / 4u % 4u], 0u), own.high), k);
}

// Four sums with a group added: v · M is the four inner products of v with M's columns, rows of W.
fn added(sum: vec4<f32>, x: Eight, even: mat4x4<f32>, odd: mat4x4<f32>) -> vec4<f32> {
    return sum + (x.even * even + x.odd * odd);
}

// The activations of a run, added: what its offset is multiplied by.
fn added_alone(sum: f32, x: Eight) -> f32 {
    if DTYPE == CODES {
        return sum + dot(x.even + x.odd, vec4(1.0) / places());
    }
    return sum;
}

// What the sum of a run begins with, and what the sum of all is after it. Plain weights have no
// runs, and one sum goes through.
fn begun(all: vec4<f32>) -> vec4<f32> {
    return select(all, vec4(0.0), DTYPE == CODES);
}

fn ended(all: vec4<f32>, own: vec4<f32>, alone: f32, runs: Runs) -> vec4<f32> {
    if DTYPE == CODES {
        return all + runs.scale * own + runs.offset * alone;
    }
    return own;
}

fn total(value: vec4<f32>, lanes: Lanes) -> vec4<f32> {
    if LANES == 1u {
        return value;
    }
    return sum4(value, lanes);
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, lanes: Lanes) {
    let tile = tile_of(group.x);
    let lane = lanes.index % LANES;
    let j = (group.y * GROUPS + lanes.index / LANES) * SUMS;
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

    var h0: Kept;
    var h1: Kept;
    var h2: Kept;
    var h3: Kept;
    var h4: Kept;
    var h5: Kept;
    var h6: Kept;
    var h7: Kept;
    // An invocation that walks its rows alone takes eight groups in a row.
    let several = SHARE || (DTYPE == CODES && LANES == 1u);
    let step = select(LANES, 8u, several);
    for (var k0 = lane; k0 < p.inner8; k0 += step) {
        let own = own_group(k0, lanes);
        let own0 = shared_group(a0, own);
        let own1 = shared_group(a1, own);
        let own2 = shared_group(a2, own);
        let own3 = shared_group(a3, own);
        let groups = select(1u, min(8u, p.inner8 - k0), several);
        // Groups that share their scales.
        let run = select(groups, select(1u, 1u << p.run, several), DTYPE == CODES);
        for (var first = 0u; first < groups; first += run) {
            var c_runs: Runs;
            var d_runs: Runs;
            if DTYPE == CODES {
                c_runs = runs_of(0u, 4u * vec4(b0, b1, b2, b3), k0 + first);
                d_runs = runs_of(SECOND, 4u * vec4(b4, b5, b6, b7), k0 + first);
            }
            var e0 = begun(c0); var f0 = begun(d0); var g0 = 0.0;
            var e1 = begun(c1); var f1 = begun(d1); var g1 = 0.0;
            var e2 = begun(c2); var f2 = begun(d2); var g2 = 0.0;
            var e3 = begun(c3); var f3 = begun(d3); var g3 = 0.0;
            for (var n = first; n < first + run; n += 1u) {
                let k = k0 + n;
                h0 = kept(h0, 0u, b0, k);
                h1 = kept(h1, 0u, b1, k);
                h2 = kept(h2, 0u, b2, k);
                h3 = kept(h3, 0u, b3, k);
                h4 = kept(h4, SECOND, b4, k);
                h5 = kept(h5, SECOND, b5, k);
                h6 = kept(h6, SECOND, b6, k);
                h7 = kept(h7, SECOND, b7, k);
                let w0 = factors(h0, 0u, b0, k);
                let w1 = factors(h1, 0u, b1, k);
                let w2 = factors(h2, 0u, b2, k);
                let w3 = factors(h3, 0u, b3, k);
                let w4 = factors(h4, SECOND, b4, k);
                let w5 = factors(h5, SECOND, b5, k);
                let w6 = factors(h6, SECOND, b6, k);
                let w7 = factors(h7, SECOND, b7, k);
                let ce = mat4x4(w0.even, w1.even, w2.even, w3.even);
                let co = mat4x4(w0.odd, w1.odd, w2.odd, w3.odd);
                let de = mat4x4(w4.even, w5.even, w6.even, w7.even);
                let do_ = mat4x4(w4.odd, w5.odd, w6.odd, w7.odd);
                let x0 = group_of(own0, a0, k, n, lanes);
                e0 = added(e0, x0, ce, co);
                f0 = added(f0, x0, de, do_);
                g0 = added_alone(g0, x0);
                if ROWS > 1u {
                    let x1 = group_of(own1, a1, k, n, lanes);
                    e1 = added(e1, x1, ce, co);
                    f1 = added(f1, x1, de, do_);
                    g1 = added_alone(g1, x1);
                }
                if ROWS > 2u {
                    let x2 = group_of(own2, a2, k, n, lanes);
                    e2 = added(e2, x2, ce, co);
                    f2 = added(f2, x2, de, do_);
                    g2 = added_alone(g2, x2);
                    let x3 = group_of(own3, a3, k, n, lanes);
                    e3 = added(e3, x3, ce, co);
                    f3 = added(f3, x3, de, do_);
                    g3 = added_alone(g3, x3);
                }
            }
            c0 = ended(c0, e0, g0, c_runs); d0 = ended(d0, f0, g0, d_runs);
            c1 = ended(c1, e1, g1, c_runs); d1 = ended(d1, f1, g1, d_runs);
            c2 = ended(c2, e2, g2, c_runs); d2 = ended(d2, f2, g2, d_runs);
            c3 = ended(c3, e3, g3, c_runs); d3 = ended(d3, f3, g3, d_runs);
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
