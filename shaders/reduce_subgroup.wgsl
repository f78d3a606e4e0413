// Sums over the LANES invocations of a workgroup, subgroup by subgroup; whatever their size.
// The subgroups' sums are added in order. Called in uniform control flow.

override LANES: u32 = 64u;

struct Lanes {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

var<workgroup> partial: array<vec4<f32>, LANES>;

fn sum4(value: vec4<f32>, lanes: Lanes) -> vec4<f32> {
    // What the last call left has been read. A subgroup whose invocations have left a loop one after
    // the other is whole again only behind a barrier, whatever the language says.
    workgroupBarrier();
    let own = subgroupAdd(value);
    if lanes.place == 0u {
        partial[lanes.subgroup] = own;
    }
    workgroupBarrier();
    var sum = partial[0];
    for (var i = 1u; i < lanes.subgroups; i += 1u) {
        sum += partial[i];
    }
    return sum;
}

// What the n-th of eight neighbours has.
fn neighbour(value: vec4<f32>, n: u32, lanes: Lanes) -> vec4<f32> {
    return subgroupShuffle(value, (lanes.place & ~7u) + n);
}
