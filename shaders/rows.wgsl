// rows: rows that are gathered, to[n, :] = from[list[n], :], or added up,
// to[d, :] += Σ_e scale_e · from[source_e, :]: the gradients of the embedding table and of pooled
// vectors, the rows that predict in `cross_entropy`, and a mixture's rows sorted by expert.
// from (…, dim), to (…, dim). One invocation has one vector of 4 columns of one row of `to` and adds
// its terms in the order of the list, so nothing is added twice or in another order. Bound by memory.
// Twins: model/cpu/embed_backward.rs, model/cpu/pool_backward.rs. Params: `Rows` in rows.rs.

struct Rows {
    // Rows of `to` that get something.
    count: u32,
    // Vectors of 4 columns, and row strides in them.
    vectors: u32,
    from_stride: u32,
    to_stride: u32,
    // Where the list begins: indices of rows, or for each row of `to` its index and its entries'
    // first and end.
    list: u32,
    // Where the entries begin, 0 to gather: source, scale.
    entries: u32,
}

@group(0) @binding(0) var<uniform> p: Rows;
@group(0) @binding(1) var<storage, read> from_rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read_write> to_rows: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = flat(group, groups) * 64u + index;
    let n = i / p.vectors;
    let c = i % p.vectors;
    if n >= p.count {
        return;
    }
    if p.entries == 0u {
        to_rows[n * p.to_stride + c] = from_rows[list[p.list + n] * p.from_stride + c];
        return;
    }
    let at = p.list + 3u * n;
    let to = list[at] * p.to_stride + c;
    var sum = to_rows[to];
    for (var e = list[at + 1u]; e < list[at + 2u]; e += 1u) {
        let entry = p.entries + 2u * e;
        sum += bitcast<f32>(list[entry + 1u]) * from_rows[list[entry] * p.from_stride + c];
    }
    to_rows[to] = sum;
}
