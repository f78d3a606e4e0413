//! The products of the backward pass, out[i, j] += Σ_p a(i, p) · b[p, j], accumulated in f32.
//!
//! With dy the gradient of y = x · Wᵀ, they are dx = dy · W ([`rows_by`]: i is a row of dy, p one of
//! its columns) and dW += dyᵀ · x ([`columns_by`]: i is a column of dy, p one of its rows). In both
//! the rows of `b` are contiguous along j, so neither W nor x is ever transposed.
//!
//! **Order.** p runs in blocks of [`DEPTH`], one after the other within a block, and the blocks'
//! sums are added in order. Threads share out i and j only: the bits depend on nothing else.
//!
//! **Mapping.** A task has [`BLOCK`] to [`TALL`] values of i and up to [`WIDTH`] of j. It copies [`DEPTH`] rows
//! of `b`, some vectors wide, to a panel (64 KiB, for the L2 cache), and reads it once for each six
//! values of i: 6 × 4 accumulators with 32 registers, 6 × 2 with 16. A weight in bf16 becomes f32
//! in that copy. Where i is a column, a block of `a` is copied as well, six values side by side:
//! with rows of some kilobytes, the same columns of successive rows fall into the same few sets of
//! the cache. Where i is a row, `a` is read in place.
//!
//! Bound by arithmetic. On Zen 5 with 512 rows it ran at 1.1 to 1.5 times the rate of `matmul.rs`,
//! which sums lanes at the end of each output.

use super::matmul::{Line, resize};
use super::shared::Shared;
use super::unpack::lanes;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Values of p whose products are added in registers.
const DEPTH: usize = 256;
/// Values of i of one task, at least.
const BLOCK: usize = 96;
/// Values of i of one task where they are rows: each task reads all of its columns of `b`, from
/// memory where that is a vocabulary's.
const TALL: usize = 384;
/// Values of j of one task, at most.
const WIDTH: usize = 1024;
/// Values of i of one tile.
const TILE: usize = 6;

/// Computes out[i, :] = Σ_p a[i, p] · b[p, :], or adds it to `out`. `a (m, k)`, `out (m, n)`;
/// `b(p, columns, values)` writes some columns of row p.
pub(super) fn rows_by(
    [m, n, k]: [usize; 3],
    a: &[f32],
    b: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    out: &mut [f32],
    add: bool,
) {
    run([m, n, k], Left { values: a, stride: k, transposed: false }, b, out, add);
}

/// Adds out[i, :] += Σ_p a[p, i] · b[p, :]. `a (k, m)`, `out (m, n)`; `b` as for [`rows_by`].
pub(super) fn columns_by(
    [m, n, k]: [usize; 3],
    a: &[f32],
    b: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    out: &mut [f32],
) {
    run([m, n, k], Left { values: a, stride: m, transposed: true }, b, out, true);
}

/// Returns `b` of [`rows_by`] for rows of `width` values in memory.
pub(super) fn rows_of(
    values: &[f32],
    width: usize,
) -> impl Fn(usize, Range<usize>, &mut [f32]) + Sync {
    move |p, columns, out| out.copy_from_slice(&values[p * width..][columns])
}

/// The left operand, row-major.
#[derive(Clone, Copy)]
struct Left<'a> {
    values: &'a [f32],
    stride: usize,
    /// Whether i is a column of it.
    transposed: bool,
}

fn run(
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    out: &mut [f32],
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        // Nothing to add up.
        if !add {
            out[..m * n].fill(0.0);
        }
        return;
    }
    // Enough tasks for all threads; among those, tall ones read `b` seldom, and wide ones copy `a`
    // seldom.
    let (tasks, panel) = (4 * rayon::current_num_threads(), 4 * lanes());
    let mut block = if a.transposed { BLOCK } else { TALL };
    while block > BLOCK && m.div_ceil(block) * n.div_ceil(panel) < tasks {
        block /= 2;
    }
    let blocks = m.div_ceil(block);
    let width = n.div_ceil(tasks.div_ceil(blocks)).next_multiple_of(panel).clamp(panel, WIDTH);
    let across = n.div_ceil(width);
    let out = Shared::new(&mut out[..m * n]);
    let task = |task: usize| {
        let (row, column) = (task / across * block, task % across * width);
        let task = Task {
            a,
            b: &b,
            rows: row..(row + block).min(m),
            columns: column..(column + width).min(n),
            k,
            n,
            out: &out,
            add,
        };
        SCRATCH.with_borrow_mut(|scratch| task.run(scratch));
    };
    (0..blocks * across).into_par_iter().with_max_len(1).for_each(task);
}

/// A task's panel of `b` and its block of `a`.
type Scratch = (Vec<Line>, Vec<f32>);

thread_local! {
    /// Reused because the system would clear the pages of a new allocation for each task.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new((Vec::new(), Vec::new())) };
}

struct Task<'a, B> {
    a: Left<'a>,
    b: &'a B,
    rows: Range<usize>,
    columns: Range<usize>,
    k: usize,
    n: usize,
    out: &'a Shared<'a>,
    add: bool,
}

impl<B: Fn(usize, Range<usize>, &mut [f32])> Task<'_, B> {
    fn run(self, (panel, block): &mut Scratch) {
        let arch = Arch::new();
        let wide = 4 * lanes();
        for depth in (0..self.k).step_by(DEPTH) {
            let depth = depth..(depth + DEPTH).min(self.k);
            if self.a.transposed {
                self.copy_block(&depth, block);
            }
            for column in self.columns.clone().step_by(wide) {
                let columns = column..(column + wide).min(self.columns.end);
                let panel = resize(panel, depth.len() * wide);
                for (p, row) in depth.clone().zip(panel.chunks_exact_mut(wide)) {
                    let (row, rest) = row.split_at_mut(columns.len());
                    (self.b)(p, columns.clone(), row);
                    rest.fill(0.0);
                }
                arch.dispatch(Panel {
                    a: self.a,
                    block,
                    panel,
                    rows: self.rows.clone(),
                    depth: depth.clone(),
                    columns,
                    n: self.n,
                    out: self.out,
                    add: self.add || depth.start > 0,
                });
            }
        }
    }

    /// Copies the task's columns of `a` tile by tile: for each p the values of six columns, and of
    /// fewer in the last tile.
    fn copy_block(&self, depth: &Range<usize>, block: &mut Vec<f32>) {
        block.clear();
        for first in self.rows.clone().step_by(TILE) {
            let tile = first..(first + TILE).min(self.rows.end);
            for p in depth.clone() {
                block.extend_from_slice(&self.a.values[p * self.a.stride..][tile.clone()]);
            }
        }
    }
}

/// All rows of a task times one panel.
struct Panel<'a> {
    a: Left<'a>,
    block: &'a [f32],
    panel: &'a [f32],
    rows: Range<usize>,
    depth: Range<usize>,
    columns: Range<usize>,
    n: usize,
    out: &'a Shared<'a>,
    add: bool,
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for first in self.rows.clone().step_by(TILE) {
            match (self.rows.end - first).min(TILE) {
                1 => self.tile::<S, 1>(simd, first),
                2 => self.tile::<S, 2>(simd, first),
                3 => self.tile::<S, 3>(simd, first),
                4 => self.tile::<S, 4>(simd, first),
                5 => self.tile::<S, 5>(simd, first),
                _ => self.tile::<S, TILE>(simd, first),
            }
        }
    }
}

impl Panel<'_> {
    /// Computes M rows from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(&self, simd: S, first: usize) {
        let (depth, stride) = (self.depth.len(), self.a.stride);
        let mut tile = [[0.0; 64]; M];
        if self.a.transposed {
            let at = (first - self.rows.start) * depth;
            let left = Side(self.block[at..at + M * depth].as_chunks::<M>().0);
            self.columns::<S, _, M>(simd, left, &mut tile);
        } else {
            let mut rows: [&[f32]; M] = [&[]; M];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = &self.a.values[(first + i) * stride..][self.depth.clone()];
            }
            self.columns::<S, _, M>(simd, Rows(rows), &mut tile);
        }
        let width = self.columns.len();
        for (i, tile) in tile.iter().enumerate() {
            // SAFETY: each row and column belongs to exactly one task, and to one panel of it.
            let out = unsafe { self.out.slice((first + i) * self.n + self.columns.start, width) };
            if self.add {
                out.iter_mut().zip(tile).for_each(|(out, sum)| *out += sum);
            } else {
                out.copy_from_slice(&tile[..width]);
            }
        }
    }

    /// Computes all columns of a tile, four vectors at a time where there are registers for them.
    #[inline(always)]
    fn columns<S: Simd, L: Tile, const M: usize>(
        &self,
        simd: S,
        left: L,
        tile: &mut [[f32; 64]; M],
    ) {
        if S::REGISTER_COUNT >= 32 {
            self.sums::<S, L, M, 4>(simd, left, 0, tile);
        } else {
            self.sums::<S, L, M, 2>(simd, left, 0, tile);
            self.sums::<S, L, M, 2>(simd, left, 2, tile);
        }
    }

    /// Computes N vectors of columns from vector `at` of the panel on. The slices have one known
    /// length, as in `matmul.rs`: a bounds check in the loop makes the compiler spill.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the same index walks several arrays")]
    fn sums<S: Simd, L: Tile, const M: usize, const N: usize>(
        &self,
        simd: S,
        left: L,
        at: usize,
        tile: &mut [[f32; 64]; M],
    ) {
        let depth = self.depth.len();
        let panel = &S::as_simd_f32s(self.panel).0.as_chunks::<4>().0[..depth];
        let left = left.first(depth);
        let mut sum = [[simd.splat_f32s(0.0); N]; M];
        for p in 0..depth {
            for i in 0..M {
                let x = simd.splat_f32s(left.at(i, p));
                for j in 0..N {
                    sum[i][j] = simd.mul_add_e_f32s(x, panel[p][at + j], sum[i][j]);
                }
            }
        }
        for i in 0..M {
            S::as_mut_simd_f32s(&mut tile[i]).0[at..at + N].copy_from_slice(&sum[i]);
        }
    }
}

/// The left operand of a tile.
trait Tile: Copy {
    /// Keeps only the first `depth` values of p.
    fn first(self, depth: usize) -> Self;
    fn at(&self, i: usize, p: usize) -> f32;
}

/// Values of several rows.
#[derive(Clone, Copy)]
struct Rows<'a, const M: usize>([&'a [f32]; M]);

impl<const M: usize> Tile for Rows<'_, M> {
    #[inline(always)]
    fn first(mut self, depth: usize) -> Self {
        for row in &mut self.0 {
            *row = &row[..depth];
        }
        self
    }

    #[inline(always)]
    fn at(&self, i: usize, p: usize) -> f32 {
        self.0[i][p]
    }
}

/// Values of several columns, side by side.
#[derive(Clone, Copy)]
struct Side<'a, const M: usize>(&'a [[f32; M]]);

impl<const M: usize> Tile for Side<'_, M> {
    #[inline(always)]
    fn first(self, depth: usize) -> Self {
        Self(&self.0[..depth])
    }

    #[inline(always)]
    fn at(&self, i: usize, p: usize) -> f32 {
        self.0[p][i]
    }
}
