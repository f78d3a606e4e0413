// qkv_backward: the gradients of q and k turned back by the angles of their rows, beside that of v:
// dy = [dq; dk; dv], (X, Y) → (X cos φ + Y sin φ, Y cos φ − X sin φ) for each rotary pair; the products
// with dy are in outer.wgsl. dq (rows, heads, head_dim), dk, dv (rows, kv_heads, head_dim),
// dy (rows, (heads + 2 · kv_heads) · head_dim). One invocation per pair. Bound by memory.
// Twin: model/cpu/qkv_backward.rs. Params: `QkvBackward` in qkv_backward.rs.

struct QkvBackward {
    rows: u32,
    // Pairs of a head, heads, key/value heads.
    half: u32,
    heads: u32,
    kv_heads: u32,
    // Row strides in elements.
    q_stride: u32,
    kv_stride: u32,
    dy_stride: u32,
    // Where the angles begin in the batch.
    angles: u32,
}

@group(0) @binding(0) var<uniform> p: QkvBackward;
@group(0) @binding(1) var<storage, read> dq: array<f32>;
@group(0) @binding(2) var<storage, read> dk: array<f32>;
@group(0) @binding(3) var<storage, read> dv: array<f32>;
@group(0) @binding(4) var<storage, read> batch: array<u32>;
@group(0) @binding(5) var<storage, read_write> dy: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let pairs = (p.heads + 2u * p.kv_heads) * p.half;
    let row = n / pairs;
    if row >= p.rows {
        return;
    }
    let head = n % pairs / p.half;
    let d = n % p.half;
    let to = row * p.dy_stride + head * 2u * p.half + d;
    if head >= p.heads + p.kv_heads {
        let at = row * p.kv_stride + (head - p.heads - p.kv_heads) * 2u * p.half + d;
        dy[to] = dv[at];
        dy[to + p.half] = dv[at + p.half];
        return;
    }
    var x: f32;
    var y: f32;
    if head < p.heads {
        let at = row * p.q_stride + head * 2u * p.half + d;
        x = dq[at];
        y = dq[at + p.half];
    } else {
        let at = row * p.kv_stride + (head - p.heads) * 2u * p.half + d;
        x = dk[at];
        y = dk[at + p.half];
    }
    let angle = p.angles + 2u * (row * p.half + d);
    let cosine = bitcast<f32>(batch[angle]);
    let sine = bitcast<f32>(batch[angle + 1u]);
    dy[to] = x * cosine + y * sine;
    dy[to + p.half] = y * cosine - x * sine;
}
