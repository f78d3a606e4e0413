// qkv_codes: the keys and values of a pass, which `qkv` has left in f32, into pages of q8_0: 32 columns
// share the scale max |x| / 127, rounded to f16, and a code is x / scale, rounded.
//
// A scale lies in half a word, so an invocation has 64 columns of a vector, or its last 32. Rows of
// keys32 and values32 are (rows, kv_heads, head_dim) in pages of f32; keys and values of one layer in
// pages (pages.wgsl). Bound by memory. Twin: model/format/q8_0.rs.
// Params: `QkvCodes` in qkv.rs.

struct QkvCodes {
    rows: u32,
    kv_heads: u32,
    head_dim: u32,
    // As in pages.wgsl.
    vectors: u32,
    side: u32,
    width: u32,
    // Where slots begin in the batch.
    slots: u32,
}

@group(0) @binding(0) var<uniform> p: QkvCodes;
@group(0) @binding(1) var<storage, read> keys32: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> values32: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<u32>;
@group(0) @binding(5) var<storage, read> batch: array<u32>;

fn wide(which: u32, i: u32) -> vec4<f32> {
    if which == 0u {
        return keys32[i];
    }
    return values32[i];
}

fn put(which: u32, i: u32, word: u32) {
    if which == 0u {
        keys[i] = word;
    } else {
        values[i] = word;
    }
}

fn codes_of(x: vec4<f32>, inverse: f32) -> vec4<u32> {
    return bitcast<vec4<u32>>(vec4<i32>(round(clamp(x * inverse, vec4(-127.0), vec4(127.0)))));
}

// Writes the codes of the 32 columns from vector `first` on to words from `to` on, and returns the bits
// of their scale.
fn block(which: u32, first: u32, to: u32) -> u32 {
    var largest = vec4(0.0);
    for (var v = 0u; v < 8u; v += 1u) {
        largest = max(largest, abs(wide(which, first + v)));
    }
    let most = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let bits = half_bits(vec2(bitcast<u32>(most / 127.0), 0u)).x;
    let scale = unpack2x16float(bits).x;
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    for (var c = 0u; c < 2u; c += 1u) {
        var word = vec4(0u);
        for (var i = 0u; i < 4u; i += 1u) {
            word |= (codes_of(wide(which, first + 4u * c + i), inverse) & vec4(255u)) << vec4(8u * i);
        }
        put(which, to + 4u * c, word.x);
        put(which, to + 4u * c + 1u, word.y);
        put(which, to + 4u * c + 2u, word.z);
        put(which, to + 4u * c + 3u, word.w);
    }
    return bits;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let part = n % scale_words();
    let which = n / scale_words() % 2u;
    let head = n / (2u * scale_words()) % p.kv_heads;
    let row = n / (2u * scale_words() * p.kv_heads);
    if row >= p.rows {
        return;
    }
    let vector = ((row / PAGE) * p.kv_heads + head) * PAGE + row % PAGE;
    let first = vector * p.vectors + 16u * part;
    let slot = batch[p.slots + row];
    let place = places_of(head_at(slot / PAGE, head), vec4(slot % PAGE));
    let to = 4u * place.chunk.x + 16u * part;
    var scales = block(which, first, to);
    if 64u * part + 32u < p.head_dim {
        scales |= block(which, first + 8u, to + 8u) << 16u;
    }
    put(which, place.scale.x + part, scales);
}
