// qkv: [q; k; v] = h · [Wq; Wk; Wv]ᵀ, then the rotary embedding on q and k, k and v into the pages.
//
// An output is a rotary pair: elements d and d + head_dim / 2 of a head, both sums made by one
// invocation, so nothing is stored unrotated: (x, y) → (x cos φ − y sin φ, y cos φ + x sin φ). The
// angles' cosines and sines come with the batch, from the CPU: a GPU's sine of thousands of turns
// is not to be relied on.
// h (rows, dim), q (rows, heads, head_dim); keys, values (pages, kv_heads, PAGE, padded head_dim) of
// one layer. Twin: model/cpu/qkv.rs.

@group(0) @binding(4) var<storage, read_write> q: array<f32>;
@group(0) @binding(5) var<storage, read_write> keys: array<f32>;
@group(0) @binding(6) var<storage, read_write> values: array<f32>;
@group(0) @binding(7) var<storage, read> batch: array<u32>;

const PAIR = true;
const PAGE = 128u;

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return (j / p.half) * 2u * p.half + member * p.half + j % p.half;
}

fn finish(i: u32, j: u32, x: f32, y: f32) {
    let head = j / p.half;
    let d = j % p.half;
    let slot = batch[p.slots + i];
    if head >= p.heads + p.kv_heads {
        let at = cached(slot, head - p.heads - p.kv_heads) + d;
        values[at] = x;
        values[at + p.half] = y;
        return;
    }
    let angle = p.angles + 2u * (i * p.half + d);
    let cosine = bitcast<f32>(batch[angle]);
    let sine = bitcast<f32>(batch[angle + 1u]);
    let first = x * cosine - y * sine;
    let second = y * cosine + x * sine;
    if head < p.heads {
        let at = i * p.out_stride + head * 2u * p.half + d;
        q[at] = first;
        q[at + p.half] = second;
    } else {
        let at = cached(slot, head - p.heads) + d;
        keys[at] = first;
        keys[at + p.half] = second;
    }
}

fn cached(slot: u32, head: u32) -> u32 {
    return (((slot / PAGE) * p.kv_heads + head) * PAGE + slot % PAGE) * p.padded;
}
