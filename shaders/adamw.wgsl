// adamw: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
// w ← w − rate · (m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + decay · w), g = scale · gradient.
// All are (rows, cols) with the same row stride; a launch covers the rows of w in one buffer. The host
// computes 1 − βᵗ in f64. One invocation per element. Bound by memory: 28 bytes an element.
// Twin: model/cpu/adamw.rs. Params: `Step` in adamw.rs.

struct Step {
    // Elements of the buffer, and of the other three before its own.
    count: u32,
    before: u32,
    cols: u32,
    stride: u32,
    // Elements of the matrix without padding.
    len: u32,
    rate: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    decay: f32,
    scale: f32,
    // 1 − β₁ᵗ and 1 − β₂ᵗ.
    first: f32,
    second: f32,
}

@group(0) @binding(0) var<uniform> p: Step;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<f32>;
@group(0) @binding(3) var<storage, read_write> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> w: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let n = flat(group, groups) * 64u + index;
    let i = p.before + n;
    let c = i % p.stride;
    if n >= p.count || c >= p.cols || i / p.stride * p.cols + c >= p.len {
        return;
    }
    let g = p.scale * gradient[i];
    let first = p.beta1 * m[i] + (1.0 - p.beta1) * g;
    let second = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
    m[i] = first;
    v[i] = second;
    let direction = first / p.first / (sqrt(second / p.second) + p.epsilon);
    w[n] -= p.rate * (direction + p.decay * w[n]);
}
