// linear_add: x[i, j] += Σ_k a[i, k] · W[j, k]. a (rows, inner), W (outer, inner), x (rows, outer).
// Each element of x belongs to one invocation of the product. Twin: model/cpu/linear_add.rs.

@group(0) @binding(4) var<storage, read_write> x: array<f32>;

const PAIR = false;

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return j;
}

fn finish(i: u32, j: u32, sum: f32, none: f32) {
    x[i * p.out_stride + j] += sum;
}
