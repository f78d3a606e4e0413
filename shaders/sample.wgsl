// sample: the next token of each row, and log-probabilities, so that only ids and a few numbers go
// back to the host. Penalty, temperature, top-k, top-p, min-p and the draw itself, in this order, as
// in the CPU twin (model/cpu/sample.rs), which sorts the vocabulary and walks it.
//
// Here nothing is sorted: every filter keeps a prefix of the order (larger logit first, lower id
// first where equal), and a prefix is its last place. The place where a count or a sum of weights
// is reached is found bit by bit: 32 sums over the row decide the logit, and as many as an id has
// bits decide among equals. One workgroup of LANES invocations per row. Bound by latency: some 50
// passes over a row that the caches hold. Params: `SamplingParams` in sample.rs.

struct SamplingParams {
    draws: u32,
    vocab: u32,
    // Row stride of the logits.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: SamplingParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
// Per draw: where its seen ids begin here, how many, penalty, temperature, top_k, top_p, min_p,
// uniform, log-probabilities, where its results go, the token that is given (~0 for none).
@group(0) @binding(2) var<storage, read> draws: array<u32>;
// The rows after the penalty.
@group(0) @binding(3) var<storage, read_write> changed: array<f32>;
// Per draw: token, its logit, the largest logit, Σ e^(logit − largest); then (id, logit) of the
// likeliest.
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

const WORDS = 11u;
var<workgroup> best_of: array<Prefix, LANES>;
var<workgroup> sum_of: vec4<f32>;

// What invocations branch on is loaded with `workgroupUniformLoad`, which has barriers before and
// after: else browsers cannot see that all take the same way to the next barrier.

// The first in the order of all invocations' (order, id).
fn first_of(order: u32, id: u32, index: u32) -> Prefix {
    best_of[index] = Prefix(order, id);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if index < half {
            let other = best_of[index + half];
            if !within(best_of[index].order, best_of[index].id, other) {
                best_of[index] = other;
            }
        }
    }
    return workgroupUniformLoad(&best_of[0]);
}

// The sum over all invocations.
fn sum_all(value: vec4<f32>, lanes: Lanes) -> vec4<f32> {
    let sum = sum4(value, lanes);
    if lanes.index == 0u {
        sum_of = sum;
    }
    return workgroupUniformLoad(&sum_of);
}

// The first in the order of the original logits, among those after `before`.
fn next_likeliest(at: u32, before: Prefix, any: bool, index: u32) -> Prefix {
    var best = Prefix(0u, 0xffffffffu);
    for (var i = index; i < p.vocab; i += LANES) {
        let order = order_of(logits[at + i]);
        if (any || !within(order, i, before)) && within(order, i, best) {
            best = Prefix(order, i);
        }
    }
    return first_of(best.order, best.id, index);
}

// What the search for a prefix needs to know of a row.
struct Row { at: u32, largest: f32, temperature: f32 }

fn weight(row: Row, order: u32) -> f32 {
    return exp((value_of(order) - row.largest) / row.temperature);
}

// Count and sum of weights of the tokens within `prefix` whose order is at least `order`.
fn measure(row: Row, prefix: Prefix, order: u32, lanes: Lanes) -> vec2<f32> {
    var sum = vec4(0.0);
    for (var i = lanes.index; i < p.vocab; i += LANES) {
        let own = order_of(changed[row.at + i]);
        if own >= order && within(own, i, prefix) {
            sum += vec4(1.0, weight(row, own), 0.0, 0.0);
        }
    }
    return sum_all(sum, lanes).xy;
}

// How many tokens within `prefix` have exactly this order and an id below `id`.
fn equals(row: Row, prefix: Prefix, order: u32, id: u32, lanes: Lanes) -> f32 {
    var sum = vec4(0.0);
    for (var i = lanes.index; i < min(id, p.vocab); i += LANES) {
        let own = order_of(changed[row.at + i]);
        if own == order && within(own, i, prefix) {
            sum.x += 1.0;
        }
    }
    return sum_all(sum, lanes).x;
}

fn reached(found: vec2<f32>, by_weight: bool, bound: f32, beyond: bool) -> bool {
    // One is always kept, however small the bound.
    let value = select(found.x, found.y, by_weight);
    return found.x > 0.0 && select(value >= bound, value > bound, beyond);
}

// The shortest prefix of `prefix` whose count or weight reaches `bound`, or goes beyond it; all of
// it where none does.
fn shorten(
    row: Row, prefix: Prefix, by_weight: bool, bound: f32, beyond: bool, lanes: Lanes,
) -> Prefix {
    let all = measure(row, prefix, 0u, lanes);
    if !reached(all, by_weight, bound, beyond) {
        return prefix;
    }
    var order = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
        if reached(measure(row, prefix, order | bit, lanes), by_weight, bound, beyond) {
            order |= bit;
        }
    }
    // Of the tokens with this order, equal in weight, so many are needed; those with a higher one
    // do not suffice.
    var more = vec2(0.0);
    if order < 0xffffffffu {
        more = measure(row, prefix, order + 1u, lanes);
    }
    var needed = bound - more.x;
    if by_weight {
        let n = (bound - more.y) / weight(row, order);
        needed = select(ceil(n), floor(n) + 1.0, beyond);
    }
    needed = max(needed, 1.0);
    // The largest id with fewer equals below it than needed.
    var id = 0u;
    for (var bit = 0x80000000u >> countLeadingZeros(p.vocab); bit > 0u; bit >>= 1u) {
        if (id | bit) < p.vocab && equals(row, prefix, order, id | bit, lanes) < needed {
            id |= bit;
        }
    }
    // Where rounding asks for one more than there are: no further than `prefix`.
    return Prefix(order, select(id, min(id, prefix.id), order == prefix.order));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, lanes: Lanes) {
    let index = lanes.index;
    let draw = WORDS * group.x;
    let at = group.x * p.stride;
    let to = draws[draw + 9u];

    let likeliest = next_likeliest(at, Prefix(0u, 0u), true, index);
    let top = value_of(likeliest.order);
    var sum = vec4(0.0);
    for (var i = index; i < p.vocab; i += LANES) {
        sum.x += exp(logits[at + i] - top);
        changed[at + i] = logits[at + i];
    }
    sum = sum4(sum, lanes);
    storageBarrier();
    let penalty = bitcast<f32>(draws[draw + 2u]);
    for (var n = index; n < draws[draw + 1u]; n += LANES) {
        let id = draws[draws[draw] + n];
        if id < p.vocab {
            let logit = changed[at + id];
            let finite = 3.4028234e38;
            let new_logit = select(logit * penalty, logit / penalty, logit > 0.0);
            changed[at + id] = clamp(new_logit, -finite, finite);
        }
    }
    storageBarrier();

    var best = Prefix(0u, 0xffffffffu);
    for (var i = index; i < p.vocab; i += LANES) {
        let order = order_of(changed[at + i]);
        if within(order, i, best) {
            best = Prefix(order, i);
        }
    }
    best = first_of(best.order, best.id, index);
    let temperature = bitcast<f32>(draws[draw + 3u]);
    let given = draws[draw + 10u];
    if given < p.vocab {
        // Its log-probability alone is asked for.
        best.id = given;
    } else if temperature > 0.0 {
        let row = Row(at, value_of(best.order), temperature);
        var prefix = Prefix(0u, 0xffffffffu);
        let top_k = draws[draw + 4u];
        if top_k > 0u && top_k < p.vocab {
            prefix = shorten(row, prefix, false, f32(top_k), false, lanes);
        }
        let top_p = bitcast<f32>(draws[draw + 5u]);
        if top_p < 1.0 {
            let bound = top_p * measure(row, prefix, 0u, lanes).y;
            prefix = shorten(row, prefix, true, bound, false, lanes);
        }
        let min_p = bitcast<f32>(draws[draw + 6u]);
        if min_p > 0.0 {
            // The likeliest weighs 1, so min-p is a threshold on the weights themselves.
            var likely = vec4(0.0);
            for (var i = index; i < p.vocab; i += LANES) {
                let own = order_of(changed[at + i]);
                if within(own, i, prefix) && weight(row, own) >= min_p {
                    likely.x += 1.0;
                }
            }
            let count = max(sum_all(likely, lanes).x, 1.0);
            prefix = shorten(row, prefix, false, count, false, lanes);
        }
        let bound = bitcast<f32>(draws[draw + 7u]) * measure(row, prefix, 0u, lanes).y;
        let drawn = shorten(row, prefix, true, bound, true, lanes);
        // Where rounding kept the sum below the bound: the last of the kept.
        best = last_within(row, drawn, lanes);
    }
    if index == 0u {
        out[to] = best.id;
        out[to + 1u] = bitcast<u32>(logits[at + best.id]);
        out[to + 2u] = bitcast<u32>(top);
        out[to + 3u] = bitcast<u32>(sum.x);
    }
    var before = likeliest;
    for (var n = 0u; n < min(draws[draw + 8u], p.vocab); n += 1u) {
        if n > 0u {
            before = next_likeliest(at, before, false, index);
        }
        if index == 0u {
            out[to + 4u + 2u * n] = before.id;
            out[to + 5u + 2u * n] = bitcast<u32>(value_of(before.order));
        }
    }
}

// The last token of a prefix: the prefix may name a place beyond it.
fn last_within(row: Row, prefix: Prefix, lanes: Lanes) -> Prefix {
    var last = Prefix(0xffffffffu, 0u);
    for (var i = lanes.index; i < p.vocab; i += LANES) {
        let own = order_of(changed[row.at + i]);
        if within(own, i, prefix) && !within(own, i, last) {
            last = Prefix(own, i);
        }
    }
    // The last is the first of the reversed order.
    let reversed = first_of(~last.order, ~last.id, lanes.index);
    return Prefix(~reversed.order, ~reversed.id);
}
