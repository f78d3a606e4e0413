// matrix: a · Wᵀ on cooperative matrices; see product.wgsl for shapes and for what the op adds.
//
// A workgroup is one subgroup of LANES invocations and makes 32 rows × 32 sums (16 outputs where an
// output has two, in two blocks of 16) from 16×16 blocks: per 16 columns the operands are rounded to
// half precision into workgroup memory and multiplied block by block into four f32 accumulators,
// which go through workgroup memory to `finish`. Only where asked for (f16 rounds the operands to
// 11 bits) and where the adapter offers 16×16×16 f16 to f32 in subgroups of one size.
// Bound by arithmetic; staging is most of the rest.

override LANES: u32 = 32u;
const SIDE = 16u;
const BM = 2u * SIDE;
const SECOND = select(0u, 1u, PAIR);

var<workgroup> staged_a: array<f16, 512>;
var<workgroup> staged_w: array<f16, 512>;
var<workgroup> sums: array<f32, 1024>;

fn rounded(v: Eight) -> array<f16, 8> {
    let even = vec4<f16>(v.even);
    let odd = vec4<f16>(v.odd);
    return array(even.x, odd.x, even.y, odd.y, even.z, odd.z, even.w, odd.w);
}

// The output of the c-th of the workgroup's 32 sums.
fn output_of(block: u32, c: u32) -> u32 {
    if PAIR {
        return block * SIDE + c % SIDE;
    }
    return block * 2u * SIDE + c;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile = tile_of(group.y);
    let side = SIDE;
    let wide = 2u * SIDE;
    // Zeros are loaded: Mesa 25.0 makes 2.4e-38 of an accumulator without a value.
    for (var n = index; n < 1024u; n += LANES) {
        sums[n] = 0.0;
    }
    workgroupBarrier();
    var c00 = coopLoadT<coop_mat16x16<f32, C>>(&sums[0], wide);
    var c01 = c00;
    var c10 = c00;
    var c11 = c00;
    for (var k0 = 0u; k0 < p.inner8; k0 += 2u) {
        workgroupBarrier();
        for (var n = index; n < 64u; n += LANES) {
            let row = n / 2u;
            let k = k0 + n % 2u;
            let to = row * SIDE + n % 2u * 8u;
            var left = Eight(vec4(0.0), vec4(0.0));
            var right = left;
            if k < p.inner8 {
                let i = min(tile.first + row, tile.end - 1u);
                left = activations(a_row(i) * p.a_stride, k);
                let j = output_of(group.x, row);
                if PAIR && row >= SIDE {
                    right = weights(1u, weights_at(tile.expert, 1u, j), k);
                } else {
                    right = weights(0u, weights_at(tile.expert, 0u, j), k);
                }
            }
            var values = rounded(left);
            var others = rounded(right);
            for (var e = 0u; e < 8u; e += 1u) {
                staged_a[to + e] = values[e];
                staged_w[to + e] = others[e];
            }
        }
        workgroupBarrier();
        // Rows of a as they lie; rows of W are the columns of its transpose.
        let a0 = coopLoadT<coop_mat16x16<f16, A>>(&staged_a[0], side);
        let a1 = coopLoadT<coop_mat16x16<f16, A>>(&staged_a[256], side);
        let b0 = coopLoad<coop_mat16x16<f16, B>>(&staged_w[0], side);
        let b1 = coopLoad<coop_mat16x16<f16, B>>(&staged_w[256], side);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
    }
    coopStoreT(c00, &sums[0], wide);
    coopStoreT(c01, &sums[16], wide);
    coopStoreT(c10, &sums[512], wide);
    coopStoreT(c11, &sums[528], wide);
    workgroupBarrier();
    for (var n = index; n < 1024u; n += LANES) {
        let i = tile.first + n / wide;
        let c = n % wide;
        let j = output_of(group.x, c);
        if i >= tile.end || j >= p.outer {
            continue;
        }
        if !PAIR {
            finish(i, p.first + j, sums[n], 0.0);
        } else if c < SIDE {
            finish(i, p.first + j, sums[n], sums[n + SIDE]);
        }
    }
}
