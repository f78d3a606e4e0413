// attention_dq: dq = ds k, with the weights w = e^(s − lse) of the scores s = q kᵀ / √head_dim, computed
// again, and ds = w ⊙ (dout vᵀ − δ) / √head_dim; the first half of `attention_backward`.
//
// q, dout, dq (rows, heads, head_dim), stats of `attention_delta`; keys and values in pages. A workgroup
// has 16 query vectors of one sequence and one key/value head, and walks the keys that any of them
// sees: the ds of a block go through workgroup memory. See attention_vectors.wgsl. Bound by loads from
// the caches. Twin: model/cpu/attention_backward.rs.

@group(0) @binding(7) var<storage, read_write> dq: array<f32>;

var<workgroup> shares: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let x = index % SIDE;
    let y = index / SIDE;
    let head = group.y;
    let tile = p.tiles + TILE * group.x;
    let row = lists[tile];
    let end = lists[tile + 3u];
    let table = p.tables + lists[tile + 4u];
    let last = lists[tile + 5u] - 1u;
    let window = lists[tile + 6u];
    let end_key = lists[tile + 8u];
    let mask = lists[tile + 9u];
    let vector = lists[tile + 2u] + y;
    let m = min(vector, end - 1u);
    let position = lists[tile + 1u] + m / p.group;
    let q_at = vector_at(row, m, head, p.q_stride);
    let d_at = vector_at(row, m, head, p.out_stride);
    let heads = p.group * p.kv_heads;
    let stat = stats[(row + m / p.group) * heads + head * p.group + m % p.group];

    var sum = array<vec4<f32>, 4>();
    for (var base = lists[tile + 7u]; base < end_key; base += SIDE) {
        let page = lists[table + base / PAGE];
        let at = ((page * p.kv_heads + head) * PAGE + base % PAGE) * p.vectors;
        let key = base + x;
        let k_at = at + (min(key, last) - base) * p.vectors;
        var products = vec4(0.0);
        var gradients = vec4(0.0);
        for (var c = 0u; c < p.vectors; c += 1u) {
            products += query(q_at, c) * keys[k_at + c];
            gradients += dout_of(d_at, c) * values[k_at + c];
        }
        let seen = key < end_key && sees(position, key, mask, window);
        let exponent = dot(products, vec4(1.0)) * p.scale - stat.x;
        let weight = exp(select(-1000.0, exponent, seen));
        shares[index] = weight * (dot(gradients, vec4(1.0)) - stat.y) * p.scale;
        workgroupBarrier();
        for (var j = 0u; j < SIDE; j += 1u) {
            let share = shares[SIDE * y + j];
            let v_at = at + (min(base + j, last) - base) * p.vectors;
            sum[0] += share * keys[v_at + min(x, p.vectors - 1u)];
            if p.vectors > SIDE {
                sum[1] += share * keys[v_at + min(x + SIDE, p.vectors - 1u)];
            }
            if p.vectors > 2u * SIDE {
                sum[2] += share * keys[v_at + min(x + 2u * SIDE, p.vectors - 1u)];
                sum[3] += share * keys[v_at + min(x + 3u * SIDE, p.vectors - 1u)];
            }
        }
        workgroupBarrier();
    }
    if vector >= end {
        return;
    }
    let to = vector_at(row, m, head, p.to_stride);
    put(to, x, sum[0]);
    put(to, x + SIDE, sum[1]);
    put(to, x + 2u * SIDE, sum[2]);
    put(to, x + 3u * SIDE, sum[3]);
}

fn put(at: u32, c: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        if 4u * c + i < p.head_dim {
            dq[at + 4u * c + i] = v[i];
        }
    }
}
