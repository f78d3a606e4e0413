// What the XT invocations with the same vectors tell each other in `attention`, from register to
// register: they are neighbours in a subgroup of at least XT. No barriers. Called in uniform control
// flow.

struct Place {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

// The queries that an invocation reads for its neighbours: every XT-th.
struct Own { q: array<vec4<f32>, 8> }

fn own_queries(start: ptr<function, array<u32, 8>>, c: u32, x: u32) -> Own {
    var own: Own;
    for (var r = 0u; r < ROWS; r += XT) {
        own.q[r / XT] = query((*start)[min(r + x, ROWS - 1u)], c);
    }
    return own;
}

fn query_of(own: Own, at: u32, c: u32, r: u32, place: Place) -> vec4<f32> {
    return subgroupShuffle(own.q[r / XT], (place.lane & ~(XT - 1u)) + r % XT);
}

fn largest_of(values: array<f32, 8>, x: u32, y: u32) -> array<f32, 8> {
    var all = values;
    for (var r = 0u; r < ROWS; r += 1u) {
        for (var other = 1u; other < XT; other *= 2u) {
            all[r] = max(all[r], subgroupShuffleXor(all[r], other));
        }
    }
    return all;
}

fn sum_of(values: array<f32, 8>, x: u32, y: u32) -> array<f32, 8> {
    var all = values;
    for (var r = 0u; r < ROWS; r += 1u) {
        for (var other = 1u; other < XT; other *= 2u) {
            all[r] += subgroupShuffleXor(all[r], other);
        }
    }
    return all;
}

fn publish(
    a: ptr<function, array<vec4<f32>, 8>>, b: ptr<function, array<vec4<f32>, 8>>, x: u32, y: u32,
) {
}

// The weights of four of the keys of invocation i, for vector r.
fn weight_of(own: vec4<f32>, r: u32, i: u32, half: u32, y: u32, place: Place) -> vec4<f32> {
    return subgroupShuffle(own, (place.lane & ~(XT - 1u)) + i);
}
