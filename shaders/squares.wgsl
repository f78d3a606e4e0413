// squares: Σ x² of parts of 4096 elements, which the host adds in f64. x (…), parts (…). One workgroup
// of LANES invocations per part, each with every LANES-th vector of 4. Bound by memory.
// Params: `Squares` in buffers.rs.

struct Squares {
    // Elements.
    count: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> p: Squares;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;

const PART = 1024u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lanes: Lanes,
) {
    let part = flat(group, groups);
    var sum = vec4(0.0);
    for (var c = lanes.index; c < PART; c += LANES) {
        let at = part * PART + c;
        if part < p.parts && 4u * at < p.count {
            let inside = vec4(4u * at) + vec4(0u, 1u, 2u, 3u) < vec4(p.count);
            let v = select(vec4(0.0), x[at], inside);
            sum += v * v;
        }
    }
    let total = dot(sum4(sum, lanes), vec4(1.0));
    if part < p.parts && lanes.index == 0u {
        parts[part] = total;
    }
}
