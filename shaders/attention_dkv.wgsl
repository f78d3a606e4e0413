// attention_dkv: dk = dsᵀ q and dv = wᵀ dout, with w and ds of attention_dq.wgsl, computed again; the
// second half of `attention_backward`.
//
// q, dout (rows, heads, head_dim), stats of `attention_delta`, dk, dv (rows, kv_heads, head_dim); keys
// and values in pages. A workgroup has 16 keys of a run of sequences that continue each other, and one
// key/value head; a job is one of these sequences with those of its query vectors that see any of the
// keys. It walks the jobs' vectors, 16 at a time, in order: the w and ds of a block go through
// workgroup memory, and nobody else writes the gradients of its keys. See attention_vectors.wgsl. Bound by
// loads from the caches. Twin: model/cpu/attention_backward.rs.

@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

// Words of a tile of keys: the run's first row, page table, first key, end, first job, end; and of a
// job: row, past, keys, window, mask, first vector, end.
const KEYS = 6u;
const JOB = 7u;

var<workgroup> weights: array<f32, 256>;
var<workgroup> shares: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let x = index % SIDE;
    let y = index / SIDE;
    let head = group.y;
    let tile = p.tiles + KEYS * group.x;
    let base = lists[tile + 2u];
    let end_key = lists[tile + 3u];
    let page = lists[p.tables + lists[tile + 1u] + base / PAGE];
    let at = ((page * p.kv_heads + head) * PAGE + base % PAGE) * p.vectors;
    let key = base + x;
    let k_at = at + (min(key, end_key - 1u) - base) * p.vectors;
    let heads = p.group * p.kv_heads;

    var ks = array<vec4<f32>, 4>();
    var vs = array<vec4<f32>, 4>();
    for (var n = lists[tile + 4u]; n < lists[tile + 5u]; n += 1u) {
        let job = p.jobs + JOB * n;
        let row = lists[job];
        let past = lists[job + 1u];
        let total = min(end_key, lists[job + 2u]);
        let window = lists[job + 3u];
        let mask = lists[job + 4u];
        let end = lists[job + 6u];
        for (var first = lists[job + 5u]; first < end; first += SIDE) {
            let m = min(first + y, end - 1u);
            let q_at = vector_at(row, m, head, p.q_stride);
            let d_at = vector_at(row, m, head, p.out_stride);
            var products = vec4(0.0);
            var gradients = vec4(0.0);
            for (var c = 0u; c < p.vectors; c += 1u) {
                products += query(q_at, c) * keys[k_at + c];
                gradients += dout_of(d_at, c) * values[k_at + c];
            }
            let stat = stats[(row + m / p.group) * heads + head * p.group + m % p.group];
            let seen = first + y < end && key < total
                && sees(past + m / p.group, key, mask, window);
            let exponent = dot(products, vec4(1.0)) * p.scale - stat.x;
            let weight = exp(select(-1000.0, exponent, seen));
            weights[index] = weight;
            shares[index] = weight * (dot(gradients, vec4(1.0)) - stat.y) * p.scale;
            workgroupBarrier();
            for (var i = 0u; i < SIDE; i += 1u) {
                let of_i = min(first + i, end - 1u);
                let qi = vector_at(row, of_i, head, p.q_stride);
                let di = vector_at(row, of_i, head, p.out_stride);
                let share = shares[SIDE * i + y];
                let weight_i = weights[SIDE * i + y];
                let c = min(x, p.vectors - 1u);
                ks[0] += share * query(qi, c);
                vs[0] += weight_i * dout_of(di, c);
                if p.vectors > SIDE {
                    let c1 = min(x + SIDE, p.vectors - 1u);
                    ks[1] += share * query(qi, c1);
                    vs[1] += weight_i * dout_of(di, c1);
                }
                if p.vectors > 2u * SIDE {
                    let c2 = min(x + 2u * SIDE, p.vectors - 1u);
                    ks[2] += share * query(qi, c2);
                    vs[2] += weight_i * dout_of(di, c2);
                    let c3 = min(x + 3u * SIDE, p.vectors - 1u);
                    ks[3] += share * query(qi, c3);
                    vs[3] += weight_i * dout_of(di, c3);
                }
            }
            workgroupBarrier();
        }
    }
    if base + y >= end_key {
        return;
    }
    let to = (lists[tile] + base + y) * p.to_stride + head * p.head_dim;
    put(to, x, ks[0], vs[0]);
    put(to, x + SIDE, ks[1], vs[1]);
    put(to, x + 2u * SIDE, ks[2], vs[2]);
    put(to, x + 3u * SIDE, ks[3], vs[3]);
}

fn put(at: u32, c: u32, k: vec4<f32>, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        if 4u * c + i < p.head_dim {
            dk[at + 4u * c + i] = k[i];
            dv[at + 4u * c + i] = v[i];
        }
    }
}
