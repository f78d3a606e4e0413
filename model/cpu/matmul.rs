//! matmul: out[r, c] = Σ_k a[r, k] · w[c, k], accumulated in f32.
//!
//! `a (rows, inner)` is f32, `w (cols, inner)` is as the checkpoint stores it (rows are
//! contiguous, so an output is an inner product of two contiguous arrays), and `out (rows, cols)`
//! is f32.
//!
//! **Order.** The inner dimension is split into blocks of [`BLOCK`]. Within a block, one vector
//! of lanes walks along it, so lane l adds its products one after the other. Then the lanes are
//! summed, and then the blocks in order. This order depends only on `inner` and the CPU's lanes:
//! a row's result is bit-identical alone, in a large batch, and at any place in it.
//!
//! **Layout.** A bf16 vector is loaded as u32, two weights per word: `word << 16` is the even one
//! and `word & 0xffff0000` the odd one, both exact in f32. The other operand is therefore stored
//! with each chunk of 2 · lanes values as evens, then odds ([`Packed`]), so no shuffles are
//! needed.
//!
//! **Mapping.** Each task computes [`COLS`] columns. With few rows (decode) the weights are
//! converted in registers, one weight row at a time. Memory is then read strictly in order, which
//! reached 95 % of the read bandwidth here, against 70 % for four rows at a time. With many rows,
//! the task's weights are converted once to f32 (256 KiB, for the L2 cache) and used by tiles of
//! 6 × 4 outputs, whose 24 accumulators leave 8 of 32 vector registers for operands. On Zen 5
//! this ran at 1.5 times the rate of the `gemm` crate's f32 product, which packs both sides.
//!
//! Bound by memory up to about 8 rows, by arithmetic beyond.

use crate::weights::{Dtype, decode};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Values of the inner dimension whose products are added in one run of the lanes.
const BLOCK: usize = 1024;

/// Columns of one task: 64 columns of a block in f32 take 256 KiB.
const COLS: usize = 64;

/// Maximum rows for which weights are converted in registers instead of into a panel.
const FEW: usize = 4;

/// Number of products below which a second thread costs more than it gains.
const SERIAL: usize = 1 << 16;

/// Returns a human-readable name of the vector instructions in use.
pub(super) fn arch() -> &'static str {
    match (lanes(), cfg!(target_arch = "x86_64")) {
        (16, true) => "AVX-512",
        (8, true) => "AVX2",
        (4, false) => "128-bit vectors",
        _ => "no vectors",
    }
}

/// Rows of activations, with each chunk of 2 · lanes values reordered as evens, then odds, and
/// zero-padded to a whole chunk.
pub(super) struct Packed {
    rows: usize,
    inner: usize,
    stride: usize,
    /// Whether chunks keep their order, for weights in f32, which then need no reordering.
    plain: bool,
    values: Vec<Line>,
}

/// A cache line. A load of 64 bytes from unaligned memory touches two lines, and the tiles make
/// ten loads for 24 multiplications.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Grows or shrinks to `len` values, rounded up to whole lines; new ones are zero.
fn resize(lines: &mut Vec<Line>, len: usize) -> &mut [f32] {
    lines.resize(len.div_ceil(16), Line([0.0; 16]));
    &mut bytemuck::cast_slice_mut(lines)[..len]
}

impl Packed {
    /// Packs `rows` rows of `inner` values.
    pub(super) fn new(rows: usize, inner: usize, a: &[f32]) -> Self {
        Self::gather(rows, inner, |r, row| row.copy_from_slice(&a[r * inner..][..inner]))
    }

    /// Packs `rows` rows of `inner` values in their order, to multiply by weights in f32.
    pub(super) fn plain(rows: usize, inner: usize, a: &[f32]) -> Self {
        let stride = inner.next_multiple_of(2 * lanes());
        let mut values = Vec::new();
        let packed = resize(&mut values, rows * stride).chunks_exact_mut(stride.max(1));
        for (row, packed) in a.chunks_exact(inner.max(1)).zip(packed) {
            packed[..inner].copy_from_slice(row);
        }
        Self { rows, inner, stride, plain: true, values }
    }

    /// Packs the rows that `fill(row, values)` writes.
    pub(super) fn gather(
        rows: usize,
        inner: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let stride = inner.next_multiple_of(2 * lanes());
        let mut values = Vec::new();
        resize(&mut values, rows * stride)
            .par_chunks_mut(stride.max(1))
            .with_min_len(1 + SERIAL / stride.max(1))
            .enumerate()
            .for_each_init(
                || vec![0.0; inner],
                |row, (r, packed)| {
                    fill(r, row);
                    deinterleave(row, packed, stride);
                },
            );
        Self { rows, inner, stride, plain: false, values }
    }

    /// Returns block `k` of row `r`.
    #[inline(always)]
    fn block(&self, r: usize, k: &Range<usize>) -> &[f32] {
        let values: &[f32] = bytemuck::cast_slice(&self.values);
        &values[r * self.stride..][k.clone()]
    }
}

fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Writes `row` to `packed` chunk by chunk, evens first. `len` is a whole number of chunks, and
/// values beyond the end of `row` become zero.
fn deinterleave(row: &[f32], packed: &mut [f32], len: usize) {
    let lanes = lanes();
    for (c, chunk) in packed[..len].chunks_exact_mut(2 * lanes).enumerate() {
        let rest = row.get(c * 2 * lanes..).unwrap_or_default();
        for l in 0..lanes {
            chunk[l] = rest.get(2 * l).copied().unwrap_or(0.0);
            chunk[lanes + l] = rest.get(2 * l + 1).copied().unwrap_or(0.0);
        }
    }
}

/// Multiplies `a` by the rows of a weight matrix that `weight` returns as stored.
///
/// Output column c has one value per entry of `strands`: that of weight row `strands[i] + c`.
/// `emit(row, columns, values)` receives the values for a run of columns, strand after strand. No
/// two calls have a row and column in common.
pub(super) fn matmul<'w>(
    a: &Packed,
    cols: usize,
    strands: &[usize],
    weight: impl Fn(usize) -> (Dtype, &'w [u8]) + Sync,
    emit: impl Fn(usize, Range<usize>, &[f32]) + Sync,
) {
    if a.rows == 0 {
        return;
    }
    let arch = Arch::new();
    let width = (COLS / strands.len()).max(1);
    let tasks = cols.div_ceil(width);
    let small = a.rows * a.inner * cols * strands.len() < SERIAL;
    // Split down to single tasks, so that a thread that is ahead can steal work.
    let (least, most) = if small { (tasks, tasks) } else { (1, 1) };
    (0..tasks).into_par_iter().with_min_len(least).with_max_len(most).for_each(|task| {
        let columns = task * width..((task + 1) * width).min(cols);
        let weights: Vec<(Dtype, &[u8])> = strands
            .iter()
            .flat_map(|&s| columns.clone().map(move |c| s + c))
            .map(&weight)
            .collect();
        SCRATCH.with_borrow_mut(|(panel, out)| {
            let out = resize(out, a.rows * weights.len());
            arch.dispatch(Task { a, weights: &weights, panel, out });
            for (r, values) in out.chunks_exact(weights.len()).enumerate() {
                emit(r, columns.clone(), values);
            }
        });
    });
}

thread_local! {
    /// A task's panel and its outputs, some 512 KiB. They are reused because the system would
    /// clear the pages of a new allocation for each task.
    static SCRATCH: RefCell<(Vec<Line>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// One task: multiplies all rows of `a` by a few weight rows into `out (rows, weights)`.
struct Task<'a> {
    a: &'a Packed,
    weights: &'a [(Dtype, &'a [u8])],
    panel: &'a mut Vec<Line>,
    out: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, weights, panel, out } = self;
        // In the last block the packed rows are zero-padded to a whole chunk.
        let packed = |k: usize| k..(k + BLOCK).min(a.stride);
        let stored = |k: usize| k..(k + BLOCK).min(a.inner);
        let blocks = || (0..a.inner).step_by(BLOCK);

        let whole = a.stride == a.inner;
        if a.rows <= FEW && whole && weights.iter().all(|w| is_direct(w, a.plain)) {
            // One weight row after the other, so that memory is read in order.
            for (c, w) in weights.iter().enumerate() {
                let out = &mut out[c..];
                for k in blocks() {
                    let (r, packed, stride) = (0..a.rows, packed(k), weights.len());
                    if let Some(words) = words(w, &stored(k)) {
                        let w = [Bf16(S::as_simd_u32s(words).0)];
                        rows::<S, _, 1>(simd, a, r, &packed, w, out, stride);
                    } else if let Some(values) = values(w, &stored(k)) {
                        let w = [F32(S::as_simd_f32s(values).0.as_chunks().0)];
                        rows::<S, _, 1>(simd, a, r, &packed, w, out, stride);
                    }
                }
            }
            return;
        }
        for k in blocks() {
            let (stored, packed) = (stored(k), packed(k));
            let panel = resize(panel, weights.len() * packed.len());
            for (w, row) in weights.iter().zip(panel.chunks_exact_mut(packed.len())) {
                convert(simd, w, &stored, a.plain, row);
            }
            // Use 6 × 4 accumulators with 32 registers, 3 × 3 with 16.
            if S::REGISTER_COUNT >= 32 {
                tiles::<S, 6, 4>(simd, a, &packed, panel, out, weights.len());
            } else {
                tiles::<S, 3, 3>(simd, a, &packed, panel, out, weights.len());
            }
        }
    }
}

/// Returns a block of a bf16 row as words of two weights, or `None` if it has another type or is
/// not aligned.
#[inline(always)]
fn words<'a>((dtype, bytes): &(Dtype, &'a [u8]), k: &Range<usize>) -> Option<&'a [u32]> {
    match dtype {
        Dtype::Bf16 => bytemuck::try_cast_slice(&bytes[2 * k.start..2 * k.end]).ok(),
        _ => None,
    }
}

/// Returns a block of an f32 row, or `None` if it has another type or is not aligned.
#[inline(always)]
fn values<'a>((dtype, bytes): &(Dtype, &'a [u8]), k: &Range<usize>) -> Option<&'a [f32]> {
    match dtype {
        Dtype::F32 => bytemuck::try_cast_slice(&bytes[4 * k.start..4 * k.end]).ok(),
        _ => None,
    }
}

/// Returns whether a row can be multiplied as it is stored.
fn is_direct(w: &(Dtype, &[u8]), plain: bool) -> bool {
    match plain {
        true => values(w, &(0..0)).is_some(),
        false => words(w, &(0..0)).is_some(),
    }
}

/// Converts a block of a stored row to f32 in the packed order, zero-padded.
#[inline(always)]
fn convert<S: Simd>(simd: S, w: &(Dtype, &[u8]), k: &Range<usize>, plain: bool, row: &mut [f32]) {
    match words(w, k) {
        Some(words) if k.len() == row.len() && !plain => {
            let words = Bf16(S::as_simd_u32s(words).0);
            let out = S::as_mut_simd_f32s(row).0;
            for i in 0..out.len() / 2 {
                (out[2 * i], out[2 * i + 1]) = (words.even(simd, i), words.odd(simd, i));
            }
        }
        _ => {
            let (dtype, bytes) = *w;
            let width = dtype.bytes();
            let bytes = &bytes[width * k.start..width * k.end];
            if plain {
                let (values, rest) = row.split_at_mut(k.len());
                decode(dtype, bytes, values);
                rest.fill(0.0);
            } else {
                let mut values = vec![0.0; k.len()];
                decode(dtype, bytes, &mut values);
                deinterleave(&values, row, row.len());
            }
        }
    }
}

/// Multiplies all rows by all rows of the panel, in tiles of M × N.
#[inline(always)]
fn tiles<S: Simd, const M: usize, const N: usize>(
    simd: S,
    a: &Packed,
    k: &Range<usize>,
    panel: &[f32],
    out: &mut [f32],
    cols: usize,
) {
    let column = |c: usize| F32(S::as_simd_f32s(&panel[c * k.len()..][..k.len()]).0.as_chunks().0);
    for first in (0..a.rows).step_by(M) {
        let tile = first..(first + M).min(a.rows);
        let mut c = 0;
        while c + N <= cols {
            let mut w = [F32([].as_slice()); N];
            for (j, w) in w.iter_mut().enumerate() {
                *w = column(c + j);
            }
            rows::<S, _, N>(simd, a, tile.clone(), k, w, &mut out[c..], cols);
            c += N;
        }
        for c in c..cols {
            rows::<S, _, 1>(simd, a, tile.clone(), k, [column(c)], &mut out[c..], cols);
        }
    }
}

/// Multiplies at most six rows by N weight rows.
#[inline(always)]
fn rows<S: Simd, W: Weight<S>, const N: usize>(
    simd: S,
    a: &Packed,
    r: Range<usize>,
    k: &Range<usize>,
    w: [W; N],
    out: &mut [f32],
    stride: usize,
) {
    let out = &mut out[r.start * stride..];
    match r.len() {
        1 => tile::<S, W, 1, N>(simd, a, r.start, k, w, out, stride),
        2 => tile::<S, W, 2, N>(simd, a, r.start, k, w, out, stride),
        3 => tile::<S, W, 3, N>(simd, a, r.start, k, w, out, stride),
        4 => tile::<S, W, 4, N>(simd, a, r.start, k, w, out, stride),
        5 => tile::<S, W, 5, N>(simd, a, r.start, k, w, out, stride),
        6 => tile::<S, W, 6, N>(simd, a, r.start, k, w, out, stride),
        n => debug_assert_eq!(n, 0, "a tile has at most six rows"),
    }
}

/// Computes M × N inner products of one block and adds them to `out`.
///
/// It uses plain loops instead of closures, because a closure need not be inlined where the
/// vector instructions are enabled, and then costs ten times as much. The slices have one known
/// length and are indexed by their own counter: bounds checks in the loop make the compiler spill
/// the accumulators, which halves the speed.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the same index walks several arrays")]
fn tile<S: Simd, W: Weight<S>, const M: usize, const N: usize>(
    simd: S,
    a: &Packed,
    first: usize,
    k: &Range<usize>,
    mut w: [W; N],
    out: &mut [f32],
    stride: usize,
) {
    let pairs = k.len() / (2 * S::F32_LANES);
    let zero = simd.splat_f32s(0.0);
    let mut x: [&[[S::f32s; 2]]; M] = [&[]; M];
    for r in 0..M {
        x[r] = &S::as_simd_f32s(a.block(first + r, k)).0.as_chunks().0[..pairs];
    }
    for c in 0..N {
        w[c] = w[c].first(pairs);
    }
    let mut sum = [[zero; N]; M];
    for i in 0..pairs {
        let mut even = [zero; N];
        for c in 0..N {
            even[c] = w[c].even(simd, i);
        }
        for r in 0..M {
            for c in 0..N {
                sum[r][c] = simd.mul_add_e_f32s(x[r][i][0], even[c], sum[r][c]);
            }
        }
        let mut odd = [zero; N];
        for c in 0..N {
            odd[c] = w[c].odd(simd, i);
        }
        for r in 0..M {
            for c in 0..N {
                sum[r][c] = simd.mul_add_e_f32s(x[r][i][1], odd[c], sum[r][c]);
            }
        }
    }
    for r in 0..M {
        let sums = lane_sums(sum[r]);
        let out = &mut out[r * stride..][..N];
        for c in 0..N {
            // The first block overwrites what an earlier task left.
            out[c] = if k.start == 0 { sums[c] } else { out[c] + sums[c] };
        }
    }
}

/// Returns the sum of each vector's lanes, adding the upper half to the lower until one lane is
/// left. It processes several vectors at once, so that their last steps share instructions; one
/// by one they took a tenth of the time of large products.
#[inline(always)]
fn lane_sums<V: bytemuck::Pod, const N: usize>(vectors: [V; N]) -> [f32; N] {
    let mut sums = [0.0; N];
    for c in 0..N {
        let mut lanes = [0.0f32; 16];
        let count = size_of::<V>() / 4;
        lanes[..count].copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&vectors[c])));
        let mut half = count / 2;
        while half > 0 {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
            half /= 2;
        }
        sums[c] = lanes[0];
    }
    sums
}

/// A block of a weight row, read a chunk at a time as its even and its odd values.
trait Weight<S: Simd>: Copy {
    /// Keeps only the first `chunks` chunks.
    fn first(self, chunks: usize) -> Self;
    fn even(self, simd: S, i: usize) -> S::f32s;
    fn odd(self, simd: S, i: usize) -> S::f32s;
}

/// A block already in f32, in the packed order.
#[derive(Clone, Copy)]
struct F32<'a, V>(&'a [[V; 2]]);

impl<S: Simd> Weight<S> for F32<'_, S::f32s> {
    #[inline(always)]
    fn first(self, chunks: usize) -> Self {
        Self(&self.0[..chunks])
    }

    #[inline(always)]
    fn even(self, _: S, i: usize) -> S::f32s {
        self.0[i][0]
    }

    #[inline(always)]
    fn odd(self, _: S, i: usize) -> S::f32s {
        self.0[i][1]
    }
}

/// A block of bf16 as stored, two values per word.
#[derive(Clone, Copy)]
struct Bf16<'a, V>(&'a [V]);

impl<S: Simd> Weight<S> for Bf16<'_, S::u32s> {
    #[inline(always)]
    fn first(self, chunks: usize) -> Self {
        Self(&self.0[..chunks])
    }

    #[inline(always)]
    fn even(self, simd: S, i: usize) -> S::f32s {
        let shifted = simd.wrapping_dyn_shl_u32s(self.0[i], simd.splat_u32s(16));
        simd.transmute_f32s_u32s(shifted)
    }

    #[inline(always)]
    fn odd(self, simd: S, i: usize) -> S::f32s {
        simd.transmute_f32s_u32s(simd.and_u32s(self.0[i], simd.splat_u32s(0xffff_0000)))
    }
}
