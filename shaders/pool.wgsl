// pool: one vector per span of hidden states: the mean, the weighted mean, the first or the last row,
// in f32; optionally divided by its length. h (rows, dim), out (spans, dim). One workgroup of LANES
// invocations per span; each has every LANES-th vector of 4 columns. Bound by memory.
// Twin: model/cpu/pool.rs. Params: `Pool` in pool.rs.

struct Pool {
    spans: u32,
    // Vectors of 4 columns, and row strides in them.
    vectors: u32,
    h_stride: u32,
    out_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Pool;
@group(0) @binding(1) var<storage, read> h: array<vec4<f32>>;
// Per span: first row, rows, weighted, normalize.
@group(0) @binding(2) var<storage, read> spans: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    // A grid in two dimensions may have a few workgroups too many: they do the last span again.
    let n = min(flat(group, groups), p.spans - 1u);
    let span = spans[n];
    let weighted = span.z != 0u;
    let rows = f32(span.y);
    let total = select(rows, rows * (rows + 1.0) / 2.0, weighted);
    var squares = vec4(0.0);
    for (var c = lanes.index; c < p.vectors; c += LANES) {
        var sum = vec4(0.0);
        for (var r = 0u; r < span.y; r += 1u) {
            sum += select(1.0, f32(r + 1u), weighted) * h[(span.x + r) * p.h_stride + c];
        }
        sum /= total;
        squares += sum * sum;
        out[n * p.out_stride + c] = sum;
    }
    // As torch's normalize, which keeps a zero vector zero.
    let length = max(sqrt(dot(sum4(squares, lanes), vec4(1.0))), 1e-12);
    if span.w != 0u {
        for (var c = lanes.index; c < p.vectors; c += LANES) {
            out[n * p.out_stride + c] /= length;
        }
    }
}
