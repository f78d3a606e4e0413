// cross_entropy: a row's loss and the gradients of its scores, in the places of the scores: with
// z = score / temperature over the row's candidates, loss = ln Σ e^z − z_target and
// d = scale · (softmax(z) − onehot(target)); the scores of others become 0.
// scores (rows, cols), losses (rows). For `cross_entropy` the candidates are the vocabulary, for
// `contrastive` passages. One workgroup of 256 invocations per row, which is read three times. The sums
// go through workgroup memory in a tree. Bound by memory. Twin: model/cpu/cross_entropy.rs.
// Params: `Loss` in cross_entropy.rs.

struct Loss {
    rows: u32,
    cols: u32,
    stride: u32,
    // The first row's place in losses, whose elements are counted row by row; their columns, stride.
    first: u32,
    losses_cols: u32,
    losses_stride: u32,
    temperature: f32,
}

@group(0) @binding(0) var<uniform> p: Loss;
@group(0) @binding(1) var<storage, read_write> scores: array<f32>;
// Per row: target, first candidate, candidates, scale.
@group(0) @binding(2) var<storage, read> wanted: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

const WIDTH = 256u;
var<workgroup> partial: array<f32, WIDTH>;

@compute @workgroup_size(WIDTH)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let row = flat(group, groups);
    if row >= p.rows {
        return;
    }
    let record = wanted[row];
    let at = row * p.stride;
    let end = record.y + record.z;
    let target_score = scores[at + record.x];
    var largest = target_score;
    for (var c = record.y + index; c < end; c += WIDTH) {
        largest = max(largest, scores[at + c]);
    }
    partial[index] = largest;
    for (var half = WIDTH / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if index < half {
            partial[index] = max(partial[index], partial[index + half]);
        }
    }
    workgroupBarrier();
    largest = partial[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var c = record.y + index; c < end; c += WIDTH) {
        sum += exp((scores[at + c] - largest) / p.temperature);
    }
    partial[index] = sum;
    for (var half = WIDTH / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if index < half {
            partial[index] += partial[index + half];
        }
    }
    workgroupBarrier();
    sum = partial[0];
    let scale = bitcast<f32>(record.w);
    for (var c = index; c < p.cols; c += WIDTH) {
        var d = 0.0;
        if c >= record.y && c < end {
            d = scale / sum * exp((scores[at + c] - largest) / p.temperature);
        }
        scores[at + c] = d - select(0.0, scale, c == record.x);
    }
    if index == 0u {
        let n = p.first + row;
        losses[n / p.losses_cols * p.losses_stride + n % p.losses_cols] =
            ln(sum) - (target_score - largest) / p.temperature;
    }
}
