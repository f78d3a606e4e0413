//! Inner products of some vectors with many, and sums of many weighted by some: the two products of
//! attention, and of its backward pass. What a vector gets does not depend on those beside it.

use super::matmul::lane_sums;
use pulp::Simd;

/// Vectors processed at once: each load of the others is used so many times.
pub(super) const TOGETHER: usize = 4;

/// Whether N vectors with four others leave accumulators in the registers; otherwise two others do.
const fn fits<S: Simd, const N: usize>() -> bool {
    S::REGISTER_COUNT >= 32 || N <= 2
}

/// Computes scores[n][j] = q[n] · k[j, :], several keys at a time for independent chains of
/// additions.
#[inline(always)]
pub(super) fn dots<S: Simd, const N: usize>(
    simd: S,
    q: [&[f32]; N],
    k: &[f32],
    scores: [&mut [f32]; N],
) {
    if fits::<S, N>() {
        dots_by::<S, N, 4>(simd, q, k, scores);
    } else {
        dots_by::<S, N, 2>(simd, q, k, scores);
    }
}

/// Computes the scores of K keys at a time.
#[inline(always)]
fn dots_by<S: Simd, const N: usize, const K: usize>(
    simd: S,
    q: [&[f32]; N],
    k: &[f32],
    scores: [&mut [f32]; N],
) {
    let (dim, keys) = (q[0].len(), scores[0].len());
    let whole = keys / K * K;
    for j in (0..whole).step_by(K) {
        let some = some_dots::<S, N, K>(simd, q, &k[j * dim..]);
        for n in 0..N {
            scores[n][j..j + K].copy_from_slice(&some[n]);
        }
    }
    for j in whole..keys {
        let some = some_dots::<S, N, 1>(simd, q, &k[j * dim..]);
        for n in 0..N {
            scores[n][j] = some[n][0];
        }
    }
}

/// Returns the inner products of N queries and K keys.
#[inline(always)]
fn some_dots<S: Simd, const N: usize, const K: usize>(
    simd: S,
    q: [&[f32]; N],
    k: &[f32],
) -> [[f32; K]; N] {
    let dim = q[0].len();
    let whole = S::as_simd_f32s(q[0]).0.len();
    let queries = q.map(|q| &S::as_simd_f32s(q).0[..whole]);
    let keys: [&[S::f32s]; K] =
        std::array::from_fn(|j| &S::as_simd_f32s(&k[j * dim..][..dim]).0[..whole]);
    let mut sums = [[simd.splat_f32s(0.0); K]; N];
    for d in 0..whole {
        for n in 0..N {
            for j in 0..K {
                sums[n][j] = simd.mul_add_e_f32s(queries[n][d], keys[j][d], sums[n][j]);
            }
        }
    }
    let mut dots = [[0.0; K]; N];
    for n in 0..N {
        let rest = S::as_simd_f32s(q[n]).1;
        dots[n] = lane_sums(sums[n]);
        for (j, dot) in dots[n].iter_mut().enumerate() {
            let end = (j + 1) * dim;
            for (q, k) in rest.iter().zip(&k[end - rest.len()..end]) {
                *dot += q * k;
            }
        }
    }
    dots
}

/// Adds outs[n] += Σ_j weights[n][j] · v[j, :], in the order of j, several vectors of columns
/// at a time.
#[inline(always)]
pub(super) fn weighted_sums<S: Simd, const N: usize>(
    simd: S,
    weights: [&[f32]; N],
    v: &[f32],
    outs: [&mut [f32]; N],
) {
    let dim = outs[0].len();
    let mut vectors = 0;
    let mut split = outs.map(|out| {
        let (whole, rest) = S::as_mut_simd_f32s(out);
        vectors = whole.len();
        (whole, rest)
    });
    let step = if fits::<S, N>() { 4 } else { 2 };
    let whole = vectors / step * step;
    for d in (0..whole).step_by(step) {
        match step {
            4 => add_columns::<S, N, 4>(simd, weights, v, dim, d, &mut split),
            _ => add_columns::<S, N, 2>(simd, weights, v, dim, d, &mut split),
        }
    }
    for d in whole..vectors {
        add_columns::<S, N, 1>(simd, weights, v, dim, d, &mut split);
    }
    for (weights, (_, rest)) in weights.iter().zip(&mut split) {
        let whole = dim - rest.len();
        for (c, out) in rest.iter_mut().enumerate() {
            for (weight, v) in weights.iter().zip(v.chunks_exact(dim)) {
                *out += weight * v[whole + c];
            }
        }
    }
}

/// Adds the weighted values in C vectors of columns, beginning with vector `d` of a row.
#[inline(always)]
fn add_columns<S: Simd, const N: usize, const C: usize>(
    simd: S,
    weights: [&[f32]; N],
    v: &[f32],
    dim: usize,
    d: usize,
    outs: &mut [(&mut [S::f32s], &mut [f32]); N],
) {
    let mut sums = [[simd.splat_f32s(0.0); C]; N];
    for n in 0..N {
        sums[n].copy_from_slice(&outs[n].0[d..d + C]);
    }
    let keys = weights[0].len();
    let weights = weights.map(|weights| &weights[..keys]);
    for (j, v) in v.chunks_exact(dim).take(keys).enumerate() {
        let v = &S::as_simd_f32s(v).0[d..d + C];
        for n in 0..N {
            let weight = simd.splat_f32s(weights[n][j]);
            for c in 0..C {
                sums[n][c] = simd.mul_add_e_f32s(weight, v[c], sums[n][c]);
            }
        }
    }
    for n in 0..N {
        outs[n].0[d..d + C].copy_from_slice(&sums[n]);
    }
}
