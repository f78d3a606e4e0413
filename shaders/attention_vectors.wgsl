// attention_vectors: the queries and the caches, as attention_kept, attention_dq and attention_dkv read
// them. See attention_pair.wgsl.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> lists: array<u32>;

// Columns 4 c and on of the vector that begins at element `at`.
fn query(at: u32, c: u32) -> vec4<f32> {
    if p.head_dim % 4u == 0u {
        return q[at / 4u + c];
    }
    let i = at + 4u * c;
    let v = vec4(q[i / 4u][i % 4u], q[(i + 1u) / 4u][(i + 1u) % 4u],
        q[(i + 2u) / 4u][(i + 2u) % 4u], q[(i + 3u) / 4u][(i + 3u) % 4u]);
    return select(vec4(0.0), v, vec4(4u * c) + vec4(0u, 1u, 2u, 3u) < vec4(p.head_dim));
}
