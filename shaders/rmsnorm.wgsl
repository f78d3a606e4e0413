// rmsnorm: h[r, c] = x[r, c] · weight[c] / √(mean_c(x[r, :]²) + eps), the sum in f32.
// x (…, dim), h (rows, dim). One workgroup of LANES invocations per row; with GATHER row r of h is
// made from the row of x that `chosen` names (`logits`). The row is read twice, the second time
// from the caches. Bound by memory. Twin: model/cpu/rmsnorm.rs. Params: `RmsNormParams` in rmsnorm.rs.

struct RmsNormParams {
    rows: u32,
    dim: u32,
    // Row strides of x and h in vectors of 4.
    x_stride: u32,
    h_stride: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: RmsNormParams;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> chosen: array<u32>;
@group(0) @binding(4) var<storage, read_write> h: array<vec4<f32>>;

override GATHER: bool = false;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    let row = flat(group, groups);
    // A grid in two dimensions may have a few workgroups too many: they go along with the last row.
    var source = min(row, p.rows - 1u);
    if GATHER {
        source = chosen[source];
    }
    let origin = source * p.x_stride;
    var squares = vec4(0.0);
    for (var c = lanes.index; c < (p.dim + 3u) / 4u; c += LANES) {
        squares += x[origin + c] * x[origin + c];
    }
    let sum = dot(sum4(squares, lanes), vec4(1.0));
    let scale = 1.0 / sqrt(sum / f32(p.dim) + p.eps);
    if row >= p.rows {
        return;
    }
    let to = row * p.h_stride;
    for (var k = lanes.index; k < (p.dim + 7u) / 8u; k += LANES) {
        var first: vec4<f32>;
        var second: vec4<f32>;
        if DTYPE == F32 {
            first = bitcast<vec4<f32>>(weight[2u * k]);
            second = bitcast<vec4<f32>>(weight[2u * k + 1u]);
        } else {
            let w = unpack(weight[k]);
            first = vec4(w.even.x, w.odd.x, w.even.y, w.odd.y);
            second = vec4(w.even.z, w.odd.z, w.even.w, w.odd.w);
        }
        h[to + 2u * k] = x[origin + 2u * k] * scale * first;
        h[to + 2u * k + 1u] = x[origin + 2u * k + 1u] * scale * second;
    }
}
