// product: what every matrix product shares, a · Wᵀ with a (rows, inner) f32 and W (…, inner) as
// stored: plain (common.wgsl) or quantised (codes.wgsl). `matmul.wgsl` (many rows) or `matvec.wgsl` (few) computes it; the op's own file says
// which rows of W belong to an output and what is done with the sum:
//
//   const PAIR                         whether an output is made of two sums (gate and up; the two
//                                      halves of a rotary pair) or of one
//   fn tile_of(n) -> Tile              the rows of the grid's n-th tile of rows
//   fn a_row(i) -> u32                 where row i's activations are
//   fn weight_row(expert, member, j)   the row of W for output j, of its first or second sum
//   fn finish(i, j, x, y)              row i, output j: the sums (y only where PAIR)
//
// A matrix larger than a binding is in several buffers, and a launch covers the outputs whose rows
// are in two of them (`w0` for the first sums, `w1` for the second; mostly the same buffer), both of
// one format.
// Params: `Product` in product.rs.

struct Product {
    // Rows of a.
    rows: u32,
    // Groups of 8 columns.
    inner8: u32,
    // Outputs of this launch, and the first of them.
    outer: u32,
    first: u32,
    // The row of W with which each of the two buffers begins.
    base0: u32,
    base1: u32,
    // Row strides: a in vectors of 4, W in vectors of 4 words, the output in elements.
    a_stride: u32,
    w_stride: u32,
    out_stride: u32,
    // gate_up: rows from a gate to its up row. expert_down_add: outputs of an expert.
    hidden: u32,
    // qkv: half of head_dim, heads, key/value heads, the type of the pages, words of a cached vector.
    half: u32,
    heads: u32,
    kv_heads: u32,
    pages: u32,
    padded: u32,
    // qkv: where slots and angles begin in the batch.
    slots: u32,
    angles: u32,
    // Experts: rows · top_k; the only expert of this launch plus 1, or 0 for all.
    assigned: u32,
    only: u32,
    experts: u32,
    // Where quantised rows have what; see codes.wgsl.
    high: u32,
    units: u32,
    numbers: u32,
    run: u32,
    block: u32,
    zero: f32,
}

// Rows first..end, of this expert.
struct Tile { first: u32, end: u32, expert: u32 }

@group(0) @binding(0) var<uniform> p: Product;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w0: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> w1: array<vec4<u32>>;

// Group k of the activations that begin at vector `at`.
fn activations(at: u32, k: u32) -> Eight {
    return eight(a[at + 2u * k], a[at + 2u * k + 1u]);
}

// Where the row for output j is in its buffer.
fn weights_at(expert: u32, member: u32, j: u32) -> u32 {
    let row = weight_row(expert, member, p.first + min(j, p.outer - 1u));
    return (row - select(p.base0, p.base1, member == 1u)) * p.w_stride;
}

// A word of quantised weights, for codes.wgsl; four of them.
fn word(member: u32, i: u32) -> u32 {
    if member == 1u {
        return w1[i / 4u][i % 4u];
    }
    return w0[i / 4u][i % 4u];
}

fn words4(member: u32, i: u32) -> vec4<u32> {
    if member == 1u {
        return w1[i];
    }
    return w0[i];
}

// Group k of the weights that begin at vector `at`.
fn weights(member: u32, at: u32, k: u32) -> Eight {
    if DTYPE == CODES {
        return quantized(member, 4u * at, k);
    }
    if DTYPE == F32 {
        let i = at + 2u * k;
        if member == 1u {
            return eight(bitcast<vec4<f32>>(w1[i]), bitcast<vec4<f32>>(w1[i + 1u]));
        }
        return eight(bitcast<vec4<f32>>(w0[i]), bitcast<vec4<f32>>(w0[i + 1u]));
    }
    if member == 1u {
        return unpack(w1[at + k]);
    }
    return unpack(w0[at + k]);
}
