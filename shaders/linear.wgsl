// linear: out[i, j] = Σ_k a[i, k] · W[j, k], for `logits` (of normalised rows), `route` (the
// router's logits) and `search` (scores of a stretch of the corpus, whose vectors are the rows of
// W). a (rows, inner), W (outer, inner), out (rows, outer).

@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const PAIR = false;

fn weight_row(expert: u32, member: u32, j: u32) -> u32 {
    return j;
}

fn finish(i: u32, j: u32, sum: f32, none: f32) {
    out[i * p.out_stride + j] = sum;
}
