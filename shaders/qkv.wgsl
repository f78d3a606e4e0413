// qkv: [q; k; v] = h · [Wq; Wk; Wv]ᵀ, then the rotary embedding on q and k, k and v into the pages.
//
// An output is a rotary pair: elements d and d + head_dim / 2 of a head, both sums made by one
// invocation, so nothing is stored unrotated: (x, y) → (x cos φ − y sin φ, y cos φ + x sin φ). The
// angles' cosines and sines come with the batch, from the CPU: a GPU's sine of thousands of turns
// is not to be relied on.
// h (rows, dim), q (rows, heads, head_dim); keys, values of one layer in pages of f32, f16 or bf16
// (pages.wgsl); a parameter says which, because variants would be as many pipelines again. For pages of
// q8_0, whose columns share scales, rows are left in order in pages of f32 (qkv_codes.wgsl).
// Twin: model/cpu/qkv.rs.

@group(0) @binding(4) var<storage, read_write> q: array<f32>;
@group(0) @binding(5) var<storage, read_write> keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> values: array<u32>;
@group(0) @binding(7) var<storage, read> batch: array<u32>;

const PAIR = true;
const PAGE = 128u;

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return (j / p.half) * 2u * p.half + member * p.half + j % p.half;
}

fn finish(i: u32, j: u32, x: f32, y: f32) {
    let head = j / p.half;
    let d = j % p.half;
    let slot = select(batch[p.slots + i], i, p.pages == CODES);
    if head >= p.heads + p.kv_heads {
        let to = cached(slot, head - p.heads - p.kv_heads, d, x, y);
        values[to.at] = to.first;
        if !packed() {
            values[to.at + p.half] = to.second;
        }
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
        return;
    }
    let to = cached(slot, head - p.heads, d, first, second);
    keys[to.at] = to.first;
    if !packed() {
        keys[to.at + p.half] = to.second;
    }
}

// Whether a pair is in one word.
fn packed() -> bool {
    return p.pages == F16 || p.pages == BF16;
}

// The words of a pair of a cached head, and where the first is.
struct Cached { at: u32, first: u32, second: u32 }

fn cached(slot: u32, head: u32, d: u32, x: f32, y: f32) -> Cached {
    let at = (((slot / PAGE) * p.kv_heads + head) * PAGE + slot % PAGE) * p.padded + d;
    if !packed() {
        return Cached(at, bitcast<u32>(x), bitcast<u32>(y));
    }
    return Cached(at, rounded2(x, y, p.pages), 0u);
}
