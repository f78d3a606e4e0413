// Sums over the LANES invocations of a workgroup through workgroup memory, for adapters without
// subgroups. A tree, so the order of additions is fixed. Called in uniform control flow.

override LANES: u32 = 64u;

struct Lanes { @builtin(local_invocation_index) index: u32 }

var<workgroup> partial: array<vec4<f32>, LANES>;

fn sum4(value: vec4<f32>, lanes: Lanes) -> vec4<f32> {
    // What the last call left has been read.
    workgroupBarrier();
    partial[lanes.index] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lanes.index < half {
            partial[lanes.index] += partial[lanes.index + half];
        }
    }
    workgroupBarrier();
    return partial[0];
}

// What the n-th of eight neighbours has: only with subgroups.
fn neighbour(value: vec4<f32>, n: u32, lanes: Lanes) -> vec4<f32> {
    return value;
}
