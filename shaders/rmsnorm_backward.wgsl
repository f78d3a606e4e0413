// rmsnorm_backward: with s = 1 / √(mean(x²) + eps) of a row,
// dx += s · (w ⊙ dh − x · s² · Σ(x ⊙ w ⊙ dh) / dim); s is kept for `rmsnorm_weight`.
// x, dh, dx (rows, dim), scales (rows). One workgroup of LANES invocations per row, each with every
// LANES-th group of 8 columns; the row is read twice, the second time from the caches. Bound by
// memory. Twin: model/cpu/rmsnorm_backward.rs. Params: `RmsNormBackward` in rmsnorm_backward.rs.

struct RmsNormBackward {
    rows: u32,
    dim: u32,
    // Row strides in vectors of 4.
    x_stride: u32,
    dh_stride: u32,
    dx_stride: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: RmsNormBackward;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> dh: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;

// Columns 8 k and on of the weight, the second half beside the first.
fn weights(k: u32) -> array<vec4<f32>, 2> {
    if DTYPE == F32 {
        return array(bitcast<vec4<f32>>(weight[2u * k]), bitcast<vec4<f32>>(weight[2u * k + 1u]));
    }
    let w = unpack(weight[k]);
    return array(
        vec4(w.even.x, w.odd.x, w.even.y, w.odd.y),
        vec4(w.even.z, w.odd.z, w.even.w, w.odd.w),
    );
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    let row = flat(group, groups);
    // A grid in two dimensions may have a few workgroups too many: they go along with the last row.
    let source = min(row, p.rows - 1u);
    let at = source * p.x_stride;
    let d_at = source * p.dh_stride;
    var squares = vec4(0.0);
    var along = vec4(0.0);
    for (var k = lanes.index; k < (p.dim + 7u) / 8u; k += LANES) {
        let w = weights(k);
        let first = x[at + 2u * k];
        let second = x[at + 2u * k + 1u];
        squares += first * first;
        squares += second * second;
        along += first * w[0] * dh[d_at + 2u * k];
        along += second * w[1] * dh[d_at + 2u * k + 1u];
    }
    let sums = sum4(vec4(dot(squares, vec4(1.0)), dot(along, vec4(1.0)), 0.0, 0.0), lanes);
    let scale = 1.0 / sqrt(sums.x / f32(p.dim) + p.eps);
    let pull = scale * scale * sums.y / f32(p.dim);
    if row >= p.rows {
        return;
    }
    let to = row * p.dx_stride;
    for (var k = lanes.index; k < (p.dim + 7u) / 8u; k += LANES) {
        let w = weights(k);
        dx[to + 2u * k] += scale * (w[0] * dh[d_at + 2u * k] - x[at + 2u * k] * pull);
        let second = 2u * k + 1u;
        dx[to + second] += scale * (w[1] * dh[d_at + second] - x[at + second] * pull);
    }
    if lanes.index == 0u {
        scales[row] = scale;
    }
}
