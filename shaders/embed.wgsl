// embed: x[r, :] = table[tokens[r], :]. table (vocab, dim) as stored, plain or quantised
// (codes.wgsl), x (rows, dim) f32.
// One invocation writes a group of 8 columns. A launch covers the rows of the table in one buffer
// and skips the tokens that are in another. Bound by memory. Twin: model/cpu/embed.rs.
// Params: `Embed` in embed.rs.

struct Embed {
    rows: u32,
    // Groups of 8 columns.
    groups: u32,
    // Rows of the table in this buffer: first, and how many.
    first: u32,
    count: u32,
    // Row strides in vectors of 4.
    table_stride: u32,
    x_stride: u32,
    // Where quantised rows have what; see codes.wgsl.
    high: u32,
    units: u32,
    numbers: u32,
    run: u32,
    block: u32,
    zero: f32,
}

@group(0) @binding(0) var<uniform> p: Embed;
@group(0) @binding(1) var<storage, read> batch: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

fn word(member: u32, i: u32) -> u32 {
    return table[i / 4u][i % 4u];
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let row = n / p.groups;
    let k = n % p.groups;
    if row >= p.rows {
        return;
    }
    let token = batch[row];
    if token < p.first || token - p.first >= p.count {
        return;
    }
    let row_at = (token - p.first) * p.table_stride;
    let at = row_at + k * words();
    let to = row * p.x_stride + 2u * k;
    if DTYPE == F32 {
        x[to] = bitcast<vec4<f32>>(table[at]);
        x[to + 1u] = bitcast<vec4<f32>>(table[at + 1u]);
        return;
    }
    var v: Eight;
    if DTYPE == CODES {
        v = quantized(0u, 4u * row_at, k);
    } else {
        v = unpack(table[at]);
    }
    x[to] = vec4(v.even.x, v.odd.x, v.even.y, v.odd.y);
    x[to + 1u] = vec4(v.even.z, v.odd.z, v.even.w, v.odd.w);
}
