// contrastive: unit vectors of the first `used` columns, û = x / ‖x‖, and backwards the gradients of
// the vectors, given those of the unit vectors: dx += (dû − (dû · û) û) / ‖x‖.
// x, dx (rows, dim), unit, dunit (rows, used), lengths (rows). One workgroup of LANES invocations per
// row, each with every LANES-th column. Bound by memory. The scores, their gradients and the products
// between are in linear.wgsl, cross_entropy.wgsl and outer.wgsl. Twin: model/cpu/contrastive.rs.
// Params: `Unit` in contrastive.rs.

struct Unit {
    rows: u32,
    used: u32,
    // Row strides in elements.
    x_stride: u32,
    unit_stride: u32,
    backward: u32,
}

@group(0) @binding(0) var<uniform> p: Unit;
// The vectors, or backwards their gradients.
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> unit: array<f32>;
@group(0) @binding(3) var<storage, read_write> lengths: array<f32>;
@group(0) @binding(4) var<storage, read_write> dunit: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    let row = flat(group, groups);
    // A grid in two dimensions may have a few workgroups too many.
    let n = min(row, p.rows - 1u);
    let at = n * p.x_stride;
    let to = n * p.unit_stride;
    var sum = 0.0;
    for (var c = lanes.index; c < p.used; c += LANES) {
        if p.backward != 0u {
            sum += dunit[to + c] * unit[to + c];
        } else {
            sum += x[at + c] * x[at + c];
        }
    }
    let total = sum4(vec4(sum, 0.0, 0.0, 0.0), lanes).x;
    if row >= p.rows {
        return;
    }
    if p.backward != 0u {
        for (var c = lanes.index; c < p.used; c += LANES) {
            x[at + c] += (dunit[to + c] - total * unit[to + c]) / lengths[row];
        }
        return;
    }
    // As torch's normalize, which keeps a zero vector zero.
    let length = max(sqrt(total), 1e-12);
    for (var c = lanes.index; c < p.unit_stride; c += LANES) {
        var value = 0.0;
        if c < p.used {
            value = x[at + c] / length;
        }
        unit[to + c] = value;
    }
    if lanes.index == 0u {
        lengths[row] = length;
    }
}
