// attention_dout: the gradient of attention's output and what `attention_delta` has made of it, as
// attention_dq and attention_dkv read them. See attention_vectors.wgsl.

@group(0) @binding(5) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> stats: array<vec2<f32>>;

// Columns 4 c and on of the vector that begins at element `at`.
fn dout_of(at: u32, c: u32) -> vec4<f32> {
    if p.head_dim % 4u == 0u {
        return dout[at / 4u + c];
    }
    let i = at + 4u * c;
    let v = vec4(dout[i / 4u][i % 4u], dout[(i + 1u) / 4u][(i + 1u) % 4u],
        dout[(i + 2u) / 4u][(i + 2u) % 4u], dout[(i + 3u) / 4u][(i + 3u) % 4u]);
    return select(vec4(0.0), v, vec4(4u * c) + vec4(0u, 1u, 2u, 3u) < vec4(p.head_dim));
}
