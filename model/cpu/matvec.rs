//! matmul for few rows: bound by reading the weights.
//!
//! Weights become f32 in registers, and memory is read in the order of the rows. This reached 95 %
//! of the read bandwidth with bf16, against 70 % for four weight rows at a time.
//!
//! A single row, as in the decoding of one answer, is multiplied by two quantised rows at once, a
//! block of each after the other: while the sums of one wait for the previous addition, those of
//! the other run, and the next blocks are under way from memory. Taking a thousand values apart
//! first, as several rows do, leaves memory idle while they are multiplied.

use super::matmul::{Inner, Line, Packed, lane_sums, resize, rows};
use super::prefetch::{AHEAD, prefetch};
use super::unpack::{Bf16, Coded, F32, Weight, convert, take, values, words};
use crate::format::unpack::Codes;
use crate::format::{Block, WithBlock, with_block};
use crate::weights::Dtype;
use pulp::Simd;
use std::hint::black_box;

/// Weight rows that a single row is multiplied by at once.
const TOGETHER: usize = 2;

/// Multiplies all rows of `a` by the weight rows into `out (rows, weights)`.
#[inline(always)]
pub(super) fn matvec<S: Simd>(
    simd: S,
    a: &Packed,
    weights: &[(Dtype, &[u8])],
    panel: &mut Vec<Line>,
    out: &mut [f32],
) {
    let mut codes = Codes::new();
    let mut c = 0;
    while c < weights.len() {
        let ahead = weights[c..].first_chunk().filter(|_| a.rows == 1 && a.is_whole());
        if let Some(together) = ahead.filter(|w| is_one_format(w)) {
            one_row(simd, a, together, &mut out[c..]);
            c += TOGETHER;
            continue;
        }
        for k in a.blocks() {
            let block = Product { simd, a, k: &k, out: &mut out[c..], stride: weights.len() };
            block.by_row(&weights[c], &mut codes, panel);
        }
        c += 1;
    }
}

/// Returns whether all rows are quantised in the same way.
fn is_one_format(weights: &[(Dtype, &[u8]); TOGETHER]) -> bool {
    weights[0].0.is_quantized() && weights.iter().all(|w| w.0 == weights[0].0)
}

/// A block of few rows, to be multiplied by the same block of one weight row.
struct Product<'a, S> {
    simd: S,
    a: &'a Packed,
    k: &'a Inner,
    out: &'a mut [f32],
    stride: usize,
}

impl<S: Simd> Product<'_, S> {
    #[inline(always)]
    fn by_row(self, w: &(Dtype, &[u8]), codes: &mut Codes, panel: &mut Vec<Line>) {
        let (simd, k, plain) = (self.simd, self.k, self.a.plain);
        let whole = k.stored.len() == k.packed.len();
        if let Some(words) = words(w, &k.stored).filter(|_| whole && !plain) {
            self.by(Bf16(S::as_simd_u32s(words).0));
        } else if let Some(values) = values(w, &k.stored).filter(|_| whole && plain) {
            self.by(F32(S::as_simd_f32s(values).0.as_chunks().0));
        } else if let Some(run) = w.0.run().filter(|_| whole && !plain) {
            take(simd, w, &k.stored, codes);
            match run {
                16 => self.by(Coded::<16>::of(codes)),
                _ => self.by(Coded::<32>::of(codes)),
            }
        } else {
            let row = resize(panel, k.packed.len());
            convert(simd, w, &k.stored, plain, codes, row);
            self.by(F32(S::as_simd_f32s(row).0.as_chunks().0));
        }
    }

    #[inline(always)]
    fn by<W: Weight<S>>(self, w: W) {
        let Self { simd, a, k, out, stride } = self;
        rows::<S, W, 1>(simd, a, 0..a.rows, &k.packed, [w], out, stride);
    }
}

/// Multiplies a single row by quantised rows of one format.
#[inline(always)]
fn one_row<S: Simd>(simd: S, a: &Packed, w: &[(Dtype, &[u8]); TOGETHER], out: &mut [f32]) {
    let dtype = w[0].0;
    for k in a.blocks() {
        let bytes = dtype.bytes(k.stored.start)..dtype.bytes(k.stored.end);
        let w = w.map(|w| &w.1[bytes.clone()]);
        let block = OneRow { simd, x: a.block(0, &k.packed), w };
        let sums = with_block(dtype, block).unwrap_or_default();
        for (out, sum) in out.iter_mut().zip(sums) {
            // The first block overwrites what an earlier task left.
            *out = if k.stored.start == 0 { sum } else { *out + sum };
        }
    }
}

struct OneRow<'a, S> {
    simd: S,
    x: &'a [f32],
    w: [&'a [u8]; TOGETHER],
}

impl<S: Simd> WithBlock for OneRow<'_, S> {
    type Output = [f32; TOGETHER];

    /// Adds in the order of `tile`.
    #[inline(always)]
    fn call<const BYTES: usize, const PARTS: usize, B: Block<BYTES, PARTS>>(self) -> Self::Output {
        let Self { simd, x, w } = self;
        let chunks = PARTS * 16 / S::F32_LANES;
        let x = S::as_simd_f32s(x).0.as_chunks::<2>().0.chunks_exact(chunks);
        let mut w = w.map(|w| w.as_chunks::<BYTES>().0);
        for w in &mut w {
            *w = &w[..x.len()];
        }
        let mut sum = [simd.splat_f32s(0.0); TOGETHER];
        for (b, x) in x.enumerate() {
            for w in w {
                prefetch(w.as_flattened(), b * BYTES + AHEAD);
            }
            let parts = [B::take(&w[0][b]), B::take(&w[1][b])];
            // The compiler must store the parts. Otherwise it follows single codes from where they
            // are taken to where they become f32 and finds no vectors there.
            let parts = black_box(&parts);
            let w = [&parts[0], &parts[1]];
            match B::RUN {
                16 => add(simd, x, w.map(Coded::<16>::new), &mut sum),
                _ => add(simd, x, w.map(Coded::<32>::new), &mut sum),
            }
        }
        lane_sums(sum)
    }
}

/// Adds the products of a block of activations and of weights.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the same index walks several arrays")]
fn add<S: Simd, W: Weight<S>>(
    simd: S,
    x: &[[S::f32s; 2]],
    w: [W; TOGETHER],
    sum: &mut [S::f32s; TOGETHER],
) {
    for i in 0..x.len() {
        for c in 0..TOGETHER {
            sum[c] = simd.mul_add_e_f32s(x[i][0], w[c].even(simd, i), sum[c]);
        }
        for c in 0..TOGETHER {
            sum[c] = simd.mul_add_e_f32s(x[i][1], w[c].odd(simd, i), sum[c]);
        }
    }
}
