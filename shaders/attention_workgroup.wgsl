// What the XT invocations with the same vectors tell each other in `attention`, through workgroup
// memory: by group, vector, invocation. Called in uniform control flow.

struct Place { @builtin(local_invocation_index) index: u32 }

override STATS: u32 = YT * ROWS * XT;
// Weights of 8 keys, and a number.
var<workgroup> weights: array<mat2x4<f32>, STATS>;
var<workgroup> stats: array<f32, STATS>;

// The queries that an invocation reads for others: none.
struct Own { nothing: u32 }

fn own_queries(start: ptr<function, array<u32, 8>>, c: u32, x: u32) -> Own {
    return Own(0u);
}

fn query_of(own: Own, at: u32, c: u32, r: u32, place: Place) -> vec4<f32> {
    return query(at, c);
}

fn tell(values: array<f32, 8>, x: u32, y: u32) {
    // What was told last has been read.
    workgroupBarrier();
    var told = values;
    for (var r = 0u; r < ROWS; r += 1u) {
        stats[(y * ROWS + r) * XT + x] = told[r];
    }
    workgroupBarrier();
}

fn largest_of(values: array<f32, 8>, x: u32, y: u32) -> array<f32, 8> {
    tell(values, x, y);
    var all: array<f32, 8>;
    for (var r = 0u; r < ROWS; r += 1u) {
        let row = (y * ROWS + r) * XT;
        all[r] = stats[row];
        for (var i = 1u; i < XT; i += 1u) {
            all[r] = max(all[r], stats[row + i]);
        }
    }
    return all;
}

fn sum_of(values: array<f32, 8>, x: u32, y: u32) -> array<f32, 8> {
    tell(values, x, y);
    var all: array<f32, 8>;
    for (var r = 0u; r < ROWS; r += 1u) {
        for (var i = 0u; i < XT; i += 1u) {
            all[r] += stats[(y * ROWS + r) * XT + i];
        }
    }
    return all;
}

fn publish(
    a: ptr<function, array<vec4<f32>, 8>>, b: ptr<function, array<vec4<f32>, 8>>, x: u32, y: u32,
) {
    for (var r = 0u; r < ROWS; r += 1u) {
        weights[(y * ROWS + r) * XT + x] = mat2x4((*a)[r], (*b)[r]);
    }
    workgroupBarrier();
}

// The weights of four of the keys of invocation i, for vector r.
fn weight_of(own: vec4<f32>, r: u32, i: u32, half: u32, y: u32, place: Place) -> vec4<f32> {
    let told = (y * ROWS + r) * XT + i;
    if half == 0u {
        return weights[told][0];
    }
    return weights[told][1];
}
