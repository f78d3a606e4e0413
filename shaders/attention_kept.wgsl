// attention_kept: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, as attention.wgsl, and
// lse[row, head] = ln Σ e^score of each query, from which the backward pass makes the weights again.
//
// q, out (rows, heads, head_dim), lse (rows, heads); keys, values (pages, kv_heads, PAGE, padded
// head_dim) of one layer. A workgroup has 16 query vectors of one sequence and one key/value head, and
// walks the keys that any of them sees: the scores of a block go through workgroup memory, each
// invocation rescales its columns when the largest grows (online softmax) and adds the weighted
// values. See attention_vectors.wgsl. Bound by loads from the caches, two for each product.
// Twin: model/cpu/attention.rs.

@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

var<workgroup> scores: array<f32, 256>;
var<workgroup> weights: array<f32, 256>;

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

    var largest = NONE;
    var sum = 0.0;
    var o = array<vec4<f32>, 4>();
    for (var base = lists[tile + 7u]; base < end_key; base += SIDE) {
        let page = lists[table + base / PAGE];
        let at = ((page * p.kv_heads + head) * PAGE + base % PAGE) * p.vectors;
        let key = base + x;
        let k_at = at + (min(key, last) - base) * p.vectors;
        var products = vec4(0.0);
        for (var c = 0u; c < p.vectors; c += 1u) {
            products += query(q_at, c) * keys[k_at + c];
        }
        let seen = key < end_key && sees(position, key, mask, window);
        let score = select(NONE, dot(products, vec4(1.0)) * p.scale, seen);
        scores[index] = score;
        workgroupBarrier();
        var grown = largest;
        for (var j = 0u; j < SIDE; j += 4u) {
            let s = SIDE * y + j;
            grown = max(grown, max(max(scores[s], scores[s + 1u]), max(scores[s + 2u], scores[s + 3u])));
        }
        let shrink = exp(largest - grown);
        largest = grown;
        // What is not seen stays nothing, also where nothing has been seen so far.
        weights[index] = select(exp(score - grown), 0.0, score == NONE);
        workgroupBarrier();
        sum *= shrink;
        for (var s = 0u; s < 4u; s += 1u) {
            o[s] *= shrink;
        }
        for (var j = 0u; j < SIDE; j += 1u) {
            let weight = weights[SIDE * y + j];
            sum += weight;
            let v_at = at + (min(base + j, last) - base) * p.vectors;
            o[0] += weight * values[v_at + min(x, p.vectors - 1u)];
            if p.vectors > SIDE {
                o[1] += weight * values[v_at + min(x + SIDE, p.vectors - 1u)];
            }
            if p.vectors > 2u * SIDE {
                o[2] += weight * values[v_at + min(x + 2u * SIDE, p.vectors - 1u)];
                o[3] += weight * values[v_at + min(x + 3u * SIDE, p.vectors - 1u)];
            }
        }
    }
    if vector >= end {
        return;
    }
    let to = vector_at(row, m, head, p.to_stride);
    put(to, x, o[0] / sum);
    put(to, x + SIDE, o[1] / sum);
    put(to, x + 2u * SIDE, o[2] / sum);
    put(to, x + 3u * SIDE, o[3] / sum);
    if x == 0u {
        let query_head = head * p.group + m % p.group;
        lse[(row + m / p.group) * p.lse_stride + query_head] = largest + ln(sum);
    }
}

fn put(at: u32, c: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        if 4u * c + i < p.head_dim {
            out[at + 4u * c + i] = v[i];
        }
    }
}
