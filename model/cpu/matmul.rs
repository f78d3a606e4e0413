//! matmul: out[r, c] = Σ_k a[r, k] · w[c, k], accumulated in f32.
//!
//! `a (rows, inner)` is f32, `w (cols, inner)` is as the file stores it, each row in a format of
//! its own (rows are contiguous, so an output is an inner product of two contiguous arrays), and
//! `out (rows, cols)` is f32.
//!
//! **Order.** The inner dimension is split into blocks of [`BLOCK`]. Within a block, one vector
//! of lanes walks along it, so lane l adds its products one after the other. Then the lanes are
//! summed, and then the blocks in order. This order depends only on `inner` and the CPU's lanes:
//! a row's result is bit-identical alone, in a large batch, and at any place in it. Quantised
//! weights are rounded to f32 once, the same everywhere, before they are multiplied.
//!
//! **Layout.** A bf16 vector is loaded as u32, two weights per word: `word << 16` is the even one
//! and `word & 0xffff0000` the odd one, both exact in f32. The other operand is therefore stored
//! with each chunk of 2 · lanes values as evens, then odds ([`Packed`]), so no shuffles are
//! needed.
//!
//! **Mapping.** Each task computes [`COLS`] columns. With few rows (decode) the weights become f32
//! in registers (`matvec.rs`), or activations become whole numbers (`int8.rs`); where a matrix is made
//! for it, both are in bf16 (`bf16/mod.rs`). Otherwise, with many rows, the
//! task's weights are converted once to f32 (256 KiB, for the L2 cache) and used by tiles of 6 × 4
//! outputs, whose 24 accumulators leave 8 of 32 vector registers for operands. On Zen 5 this ran at
//! 1.5 times the rate of the `gemm` crate's f32 product, which packs both sides. `unpack.rs` knows
//! how stored weights become f32.
//!
//! Bound by memory up to about 8 rows, by arithmetic beyond.

use super::Matrix;
use super::bf16::{self, Halves};
use super::int8::{self, Rounded};
use super::matvec::matvec;
use super::unpack::{F32, Weight, convert, deinterleave, lanes};
use crate::format::unpack::Codes;
use crate::ops::{Compute, Products};
use crate::weights::Dtype;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::ops::Range;

/// Values of the inner dimension whose products are added in one run of the lanes; whole blocks of
/// every format.
const BLOCK: usize = 1024;

/// Columns of one task: 64 columns of a block in f32 take 256 KiB.
const COLS: usize = 64;

/// Maximum rows for which weights are converted in registers instead of into a panel.
pub(super) const FEW: usize = 4;

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
    pub(super) rows: usize,
    inner: usize,
    stride: usize,
    /// Whether chunks keep their order, for weights in f32, which then need no reordering.
    pub(super) plain: bool,
    values: Vec<Line>,
    /// The rows in other numbers, in place of `values`.
    rounded: Option<InOther>,
}

/// Rows of activations that are not in f32.
enum InOther {
    Int8(Rounded),
    Bf16(Halves),
}

/// A cache line. A load of 64 bytes from unaligned memory touches two lines, and the tiles make
/// ten loads for 24 multiplications.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// Grows or shrinks to `len` values, rounded up to whole lines; new ones are zero.
pub(super) fn resize(lines: &mut Vec<Line>, len: usize) -> &mut [f32] {
    lines.resize(len.div_ceil(16), Line([0.0; 16]));
    &mut bytemuck::cast_slice_mut(lines)[..len]
}

impl Packed {
    /// Packs `rows` rows of `inner` values, to multiply by `w`.
    pub(super) fn new(w: &Matrix, rows: usize, inner: usize, a: &[f32]) -> Self {
        Self::gather(w, rows, inner, |r, row| row.copy_from_slice(&a[r * inner..][..inner]))
    }

    /// Packs `rows` rows of `inner` values in their order, to multiply by weights in f32.
    pub(super) fn plain(rows: usize, inner: usize, a: &[f32]) -> Self {
        let stride = inner.next_multiple_of(2 * lanes());
        let mut values = Vec::new();
        let packed = resize(&mut values, rows * stride).chunks_exact_mut(stride.max(1));
        for (row, packed) in a.chunks_exact(inner.max(1)).zip(packed) {
            packed[..inner].copy_from_slice(row);
        }
        Self { rows, inner, stride, plain: true, values, rounded: None }
    }

    /// Packs the rows that `fill(row, values)` writes, to multiply by `w`.
    pub(super) fn gather(
        w: &Matrix,
        rows: usize,
        inner: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let Products { few, many } = w.products;
        let compute = if rows <= FEW { few } else { many };
        let rounded = match compute {
            Compute::Int8 => {
                let mut all = vec![0.0; rows * inner];
                all.chunks_exact_mut(inner).enumerate().for_each(|(r, row)| fill(r, row));
                Some(InOther::Int8(Rounded::new(inner, &all)))
            }
            Compute::Bf16 => Some(InOther::Bf16(Halves::new(rows, inner, &fill))),
            Compute::F32 | Compute::F16 => return Self::exact(rows, inner, fill),
        };
        Self { rows, inner, stride: inner, plain: false, values: Vec::new(), rounded }
    }

    /// Packs the rows that `fill(row, values)` writes, to be multiplied in f32.
    pub(super) fn exact(
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
                    deinterleave(row, packed);
                },
            );
        Self { rows, inner, stride, plain: false, values, rounded: None }
    }

    /// Returns whether the rows are in the packed order and need no padding.
    pub(super) fn is_whole(&self) -> bool {
        self.stride == self.inner && !self.plain
    }

    /// Returns the blocks of the inner dimension.
    #[inline(always)]
    pub(super) fn blocks(&self) -> impl Iterator<Item = Inner> {
        let (inner, stride) = (self.inner, self.stride);
        let block = move |k: usize| Inner {
            stored: k..(k + BLOCK).min(inner),
            packed: k..(k + BLOCK).min(stride),
        };
        (0..inner).step_by(BLOCK).map(block)
    }

    /// Returns block `k` of row `r`.
    #[inline(always)]
    pub(super) fn block(&self, r: usize, k: &Range<usize>) -> &[f32] {
        let values: &[f32] = bytemuck::cast_slice(&self.values);
        &values[r * self.stride..][k.clone()]
    }
}

/// A block of the inner dimension.
pub(super) struct Inner {
    /// Its values in a weight row.
    pub(super) stored: Range<usize>,
    /// Its values in a packed row: in the last block they are padded to a whole chunk.
    pub(super) packed: Range<usize>,
}

/// Multiplies `a` by the rows of a weight matrix, which `rows` adds to a list as stored.
///
/// Output column c has one value per entry of `strands`: that of weight row `strands[i] + c`.
/// `emit(row, columns, values)` receives the values for a run of columns, strand after strand. No
/// two calls have a row and column in common.
pub(super) fn matmul<'w>(
    a: &Packed,
    cols: usize,
    strands: &[usize],
    rows: impl Fn(Range<usize>, &mut Rows<'w>) + Sync,
    emit: impl Fn(usize, Range<usize>, &[f32]) + Sync,
) {
    if a.rows == 0 {
        return;
    }
    let width = width(a, cols, (COLS / strands.len()).max(1));
    let tasks = cols.div_ceil(width);
    let small = a.rows * a.inner * cols * strands.len() < SERIAL;
    // Split down to single tasks, so that a thread that is ahead can steal work.
    let (least, most) = if small { (tasks, tasks) } else { (1, 1) };
    (0..tasks).into_par_iter().with_min_len(least).with_max_len(most).for_each(|task| {
        let columns = task * width..((task + 1) * width).min(cols);
        let mut weights = Rows::new();
        strands.iter().for_each(|s| rows(s + columns.start..s + columns.end, &mut weights));
        SCRATCH.with_borrow_mut(|(panel, out)| {
            let out = resize(out, a.rows * weights.len());
            Task { a, weights: &weights, panel, out }.run();
            for (r, values) in out.chunks_exact(weights.len()).enumerate() {
                emit(r, columns.clone(), values);
            }
        });
    });
}

/// Returns the columns of a task: `most`, or, with few rows, so many that each thread has about as many
/// tasks. Otherwise one of two threads has five of the nine tasks of 576 columns.
fn width(a: &Packed, cols: usize, most: usize) -> usize {
    if a.rows > FEW {
        return most;
    }
    let unit = if matches!(a.rounded, Some(InOther::Bf16(_))) { bf16::SIDE } else { 1 };
    let (units, threads) = (cols.div_ceil(unit), rayon::current_num_threads());
    let rounds = (units * unit / (threads * most)).max(1);
    units.div_ceil(threads * rounds) * unit
}

/// Weight rows of a task as stored, without memory of their own.
pub(super) type Rows<'w> = SmallVec<[(Dtype, &'w [u8]); 2 * COLS]>;

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

impl Task<'_> {
    /// Runs the task with the CPU's vectors. It is a function of its own, so that its code stands
    /// once and not in each op that calls the generic `matmul`.
    #[inline(never)]
    fn run(self) {
        match &self.a.rounded {
            Some(InOther::Int8(rows)) => int8::multiply(rows, self.weights, self.out),
            Some(InOther::Bf16(rows)) => {
                bf16::multiply(rows, self.weights, self.panel, self.out);
            }
            None => Arch::new().dispatch(self),
        }
    }
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, weights, panel, out } = self;
        if a.rows <= FEW {
            return matvec(simd, a, weights, panel, out);
        }
        let codes = &mut Codes::new();
        for k in a.blocks() {
            let panel = resize(panel, weights.len() * k.packed.len());
            for (w, row) in weights.iter().zip(panel.chunks_exact_mut(k.packed.len())) {
                convert(simd, w, &k.stored, a.plain, codes, row);
            }
            // Use 6 × 4 accumulators with 32 registers, 3 × 3 with 16.
            if S::REGISTER_COUNT >= 32 {
                tiles::<S, 6, 4>(simd, a, &k.packed, panel, out, weights.len());
            } else {
                tiles::<S, 3, 3>(simd, a, &k.packed, panel, out, weights.len());
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
pub(super) fn rows<S: Simd, W: Weight<S>, const N: usize>(
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
pub(super) fn lane_sums<V: bytemuck::Pod, const N: usize>(vectors: [V; N]) -> [f32; N] {
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
