// Shared by every shader: how weights are stored, and how workgroups are numbered.
//
// Rows of activations and of weights are padded with zeros to a multiple of 8 elements, so that
// every shader reads whole vectors. A group of 8 elements is handled as two vectors, the even and
// the odd ones, because that is what one shift and one mask make of packed bf16. Quantised weights,
// which only products and `embed` read, are in codes.wgsl.

const BF16 = 0u;
const F16 = 1u;
const F32 = 2u;
const CODES = 3u;
// How the weights of this pipeline are stored.
override DTYPE: u32 = BF16;

// Elements 0 2 4 6 and 1 3 5 7 of a group.
struct Eight { even: vec4<f32>, odd: vec4<f32> }

fn eight(first: vec4<f32>, second: vec4<f32>) -> Eight {
    return Eight(vec4(first.xz, second.xz), vec4(first.yw, second.yw));
}

// Eight packed 16-bit weights.
fn unpack(u: vec4<u32>) -> Eight {
    if DTYPE == BF16 {
        return Eight(bitcast<vec4<f32>>(u << vec4(16u)), bitcast<vec4<f32>>(u & vec4(0xffff0000u)));
    }
    let x = unpack2x16float(u.x);
    let y = unpack2x16float(u.y);
    let z = unpack2x16float(u.z);
    let w = unpack2x16float(u.w);
    return Eight(vec4(x.x, y.x, z.x, w.x), vec4(x.y, y.y, z.y, w.y));
}

// Vectors of four words that a group of 8 weights takes.
fn words() -> u32 {
    return select(1u, 2u, DTYPE == F32);
}

// The number of a workgroup where one dimension of the grid would not hold them all.
fn flat(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
