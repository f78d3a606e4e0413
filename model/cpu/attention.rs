//! attention: out = softmax(q kᵀ / √head_dim + mask) v over the paged KV cache, per sequence and
//! head.
//!
//! `q` and `out` are `(rows, heads, head_dim)`; keys and values are in pages. A [`Block`] is some
//! query tokens of a sequence and a key/value head, whose query heads share a page while it is in
//! the CPU's cache. A page gives a [`Part`]: the exponentials of the scores relative to the largest,
//! and the values weighted by them. Parts are folded in the order of the pages.
//!
//! A task has a block with all its pages or, where blocks are too few for the threads, as when one
//! answer is decoded behind a long context, a run of its pages, whose parts are folded afterwards.
//! A page's keys are turned, so that a vector has the scores of several keys and no lanes are summed
//! up. Within a page a key's lane is that of its slot. So a query's bits depend on its own keys
//! alone: not on its block, its batch or the threads.
//!
//! Bound by arithmetic with many queries, by memory when decoding.

use super::Pages;
use super::exp::exp;
use super::shared::Shared;
use super::turn::turned;
use super::vectors::{TOGETHER, weighted_sums};
use crate::ops::{Attention, Layout, PAGE, Span};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::array;
use std::iter::zip;
use std::ops::Range;

/// Query tokens of one block. With three heads a group, a page's scores take 24 KiB. Blocks of 8 read
/// keys and values from the outer caches four times as often: prefill of 2,048 tokens took 1.4 times
/// as long.
const QUERIES: usize = 32;
/// Slots whose keys are turned together: a whole number of any CPU's vectors.
const LANES: usize = 16;
/// Tasks that a thread should find, so that all end at about the same time.
const TASKS: usize = 4;

/// Computes attention; `lse (rows, heads)` gets ln Σ e^score of each query where it is wanted.
pub(super) fn attention(
    p: Attention,
    q: &[f32],
    pages: &Pages,
    layout: &Layout,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let mut blocks = Vec::new();
    for &span in &layout.spans {
        let table = &layout.tables[span.table as usize..];
        for first in (0..span.rows as usize).step_by(QUERIES) {
            let queries = first..(first + QUERIES).min(span.rows as usize);
            for kv_head in 0..p.kv_heads as usize {
                blocks.push(Block { p, q, pages, table, span, kv_head, queries: queries.clone() });
            }
        }
    }
    let outs = Outs { out: Shared::new(out), lse: lse.map(Shared::new) };
    let arch = Arch::new();
    let tasks = TASKS * rayon::current_num_threads();
    let all: usize = blocks.iter().map(|block| block.pages().len()).sum();
    if blocks.len() >= tasks || all < 2 * tasks {
        blocks.par_iter().for_each_init(<(Part, Room)>::default, |(part, room), block| {
            let mut folded = Folded::new(block, &outs);
            for page in block.pages() {
                arch.dispatch(Page { block, page, part, room });
                folded.add(part);
            }
            folded.end();
        });
        return;
    }
    let part = |block: &Block<'_>| block.pages().map(|_| Part::default()).collect();
    let mut parts: Vec<Vec<Part>> = blocks.iter().map(part).collect();
    let run = all.div_ceil(tasks);
    let runs = zip(&blocks, &mut parts).flat_map(|(block, parts)| {
        let firsts = block.pages().step_by(run);
        zip(firsts, parts.chunks_mut(run)).map(move |(first, parts)| (block, first, parts))
    });
    let mut runs: Vec<(&Block<'_>, usize, &mut [Part])> = runs.collect();
    let runs = runs.par_iter_mut().with_max_len(1);
    runs.for_each_init(Room::default, |room, (block, first, parts)| {
        for (page, part) in zip(*first.., parts.iter_mut()) {
            arch.dispatch(Page { block, page, part, room });
        }
    });
    for (block, parts) in zip(&blocks, &parts) {
        let mut folded = Folded::new(block, &outs);
        parts.iter().for_each(|part| folded.add(part));
        folded.end();
    }
}

/// Query tokens of a sequence, with the query heads that share a key/value head.
struct Block<'a> {
    p: Attention,
    q: &'a [f32],
    pages: &'a Pages,
    table: &'a [u32],
    span: Span,
    kv_head: usize,
    queries: Range<usize>,
}

impl Block<'_> {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.p.head_dim as usize
    }

    #[inline(always)]
    fn group(&self) -> usize {
        (self.p.heads / self.p.kv_heads) as usize
    }

    /// Returns the number of query vectors: each token's heads of the group.
    #[inline(always)]
    fn count(&self) -> usize {
        self.queries.len() * self.group()
    }

    #[inline(always)]
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// Returns where vector i begins in `q` and `out`.
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        let row = self.span.row as usize + self.queries.start + i / self.group();
        let head = self.kv_head * self.group() + i % self.group();
        (row * self.p.heads as usize + head) * self.head_dim()
    }

    /// Returns the keys that vector i sees.
    #[inline(always)]
    fn keys(&self, i: usize) -> Range<usize> {
        let past = self.span.past as usize;
        let token = past + self.queries.start + i / self.group();
        self.span.mask.keys(token, past + self.span.rows as usize)
    }

    /// Returns the keys that any vector sees: the first and the last visible key never move back
    /// from one query to the next.
    #[inline(always)]
    fn seen(&self) -> Range<usize> {
        self.keys(0).start..self.keys(self.count() - 1).end
    }

    /// Returns where keys and values of some slots of a page are.
    #[inline(always)]
    fn place(&self, page: usize, slots: Range<usize>) -> Range<usize> {
        self.pages.head(self.p.layer as usize, self.table[page] as usize, self.kv_head, slots)
    }

    /// Returns the pages of these keys.
    fn pages(&self) -> Range<usize> {
        let seen = self.seen();
        seen.start / PAGE..seen.end.div_ceil(PAGE)
    }
}

/// What a page contributes to a block.
#[derive(Default)]
struct Part {
    /// For each vector the largest score, and the sum of the exponentials of the scores relative to
    /// it, which is 0 only where the vector sees no key of the page.
    ends: Vec<(f32, f32)>,
    /// The values weighted by these exponentials, `(count, head_dim)`.
    outs: Vec<f32>,
}

/// Room that a thread uses again and again.
#[derive(Default)]
struct Room {
    /// Scores, then their exponentials, `(count, PAGE)`.
    scores: Vec<f32>,
    /// Keys of a page, turned: `(head_dim, keys)`.
    turned: Vec<f32>,
    /// Keys or values of a page, where they are not stored in f32.
    wide: Vec<f32>,
}

/// Computes the part of a page.
struct Page<'a> {
    block: &'a Block<'a>,
    page: usize,
    part: &'a mut Part,
    room: &'a mut Room,
}

impl Page<'_> {
    /// Returns the slots of the page that hold some of these keys.
    #[inline(always)]
    fn slots(&self, keys: &Range<usize>) -> Range<usize> {
        let first = self.page * PAGE;
        let slot = |key: usize| key.clamp(first, first + PAGE) - first;
        slot(keys.start)..slot(keys.end)
    }
}

impl WithSimd for Page<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let seen = self.slots(&self.block.seen());
        let (block, head_dim) = (self.block, self.block.head_dim());
        let count = block.count();
        let place = block.place(self.page, seen.clone());

        // Whole vectors that hold the slots.
        let whole = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
        let k = block.pages.keys.read(place.clone(), &mut self.room.wide);
        turn(simd, k, head_dim, seen.start - whole.start, whole.len(), &mut self.room.turned);
        let turned = &self.room.turned;
        self.room.scores.resize(count * PAGE, 0.0);
        let rows = self.room.scores.chunks_mut(TOGETHER * PAGE);
        for (first, rows) in zip((0..count).step_by(TOGETHER), rows) {
            match rows.len() / PAGE {
                4 => score::<S, 4>(simd, block, first, &whole, turned, rows),
                3 => score::<S, 3>(simd, block, first, &whole, turned, rows),
                2 => score::<S, 2>(simd, block, first, &whole, turned, rows),
                _ => score::<S, 1>(simd, block, first, &whole, turned, rows),
            }
        }

        self.part.ends.clear();
        for i in 0..count {
            let slots = self.slots(&block.keys(i));
            let row = &mut self.room.scores[i * PAGE..][whole.clone()];
            let slots = slots.start - whole.start..slots.end - whole.start;
            self.part.ends.push(exponentials(simd, row, slots, block.scale()));
        }

        self.part.outs.clear();
        self.part.outs.resize(count * head_dim, 0.0);
        let v = block.pages.values.read(place, &mut self.room.wide);
        let rows = self.room.scores.chunks(TOGETHER * PAGE);
        for (rows, outs) in zip(rows, self.part.outs.chunks_mut(TOGETHER * head_dim)) {
            match rows.len() / PAGE {
                4 => weigh::<S, 4>(simd, rows, &seen, v, outs),
                3 => weigh::<S, 3>(simd, rows, &seen, v, outs),
                2 => weigh::<S, 2>(simd, rows, &seen, v, outs),
                _ => weigh::<S, 1>(simd, rows, &seen, v, outs),
            }
        }
    }
}

/// Turns keys `(keys, head_dim)` to `(head_dim, width)`, the first to column `at`. Other columns are
/// zeros.
#[inline(always)]
fn turn<S: Simd>(simd: S, k: &[f32], head_dim: usize, at: usize, width: usize, out: &mut Vec<f32>) {
    out.clear();
    out.resize(head_dim * width, 0.0);
    for first in (0..width).step_by(LANES) {
        // The keys of these columns.
        let keys = first.saturating_sub(at)..(first + LANES - at).min(k.len() / head_dim);
        for d in (0..head_dim).step_by(LANES) {
            let dims = LANES.min(head_dim - d);
            let mut square = [[0.0; LANES]; LANES];
            for key in keys.clone() {
                let vector = &k[key * head_dim + d..][..dims];
                match vector.first_chunk() {
                    Some(vector) => square[at + key - first] = *vector,
                    None => square[at + key - first][..dims].copy_from_slice(vector),
                }
            }
            let square = turned(simd, square);
            for (row, values) in out[d * width..].chunks_mut(width).zip(&square[..dims]) {
                row[first..first + LANES].copy_from_slice(values);
            }
        }
    }
}

/// Computes the scores of N query vectors in these slots, one dimension after the other;
/// `rows (N, PAGE)`.
#[inline(always)]
fn score<S: Simd, const N: usize>(
    simd: S,
    block: &Block<'_>,
    first: usize,
    slots: &Range<usize>,
    turned: &[f32],
    rows: &mut [f32],
) {
    let q = array::from_fn(|n| &block.q[block.at(first + n)..][..block.head_dim()]);
    let mut rows = rows.chunks_exact_mut(PAGE);
    let scores: [_; N] = array::from_fn(|_| {
        let scores = &mut rows.next().unwrap_or_default()[slots.clone()];
        scores.fill(0.0);
        scores
    });
    weighted_sums::<S, N>(simd, q, turned, scores);
}

/// Adds the values of these slots, weighted by `rows (N, PAGE)`, to `outs (N, head_dim)`.
#[inline(always)]
fn weigh<S: Simd, const N: usize>(
    simd: S,
    rows: &[f32],
    slots: &Range<usize>,
    v: &[f32],
    outs: &mut [f32],
) {
    let weights = array::from_fn(|n| &rows[n * PAGE..][slots.clone()]);
    let mut outs = outs.chunks_exact_mut(outs.len() / N);
    let outs = array::from_fn(|_| outs.next().unwrap_or_default());
    weighted_sums::<S, N>(simd, weights, v, outs);
}

/// Replaces the scores in `slots` by the exponentials of what they lie below the largest, times
/// `scale`, and the others by 0. Returns the largest score and the exponentials' sum. `row` is whole
/// vectors.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32], slots: Range<usize>, scale: f32) -> (f32, f32) {
    if slots.is_empty() {
        row.fill(0.0);
        return (f32::NEG_INFINITY, 0.0);
    }
    row[..slots.start].fill(f32::NEG_INFINITY);
    row[slots.end..].fill(f32::NEG_INFINITY);
    let vectors = S::as_mut_simd_f32s(row).0;
    let mut max = simd.splat_f32s(f32::NEG_INFINITY);
    for scores in vectors.iter() {
        max = simd.max_f32s(max, *scores);
    }
    let max = simd.reduce_max_f32s(max);
    let (all_max, scale) = (simd.splat_f32s(max), simd.splat_f32s(scale));
    let mut sum = simd.splat_f32s(0.0);
    for scores in vectors {
        let below = simd.sub_f32s(*scores, all_max);
        *scores = exp(simd, simd.mul_f32s(below, scale));
        sum = simd.add_f32s(sum, *scores);
    }
    (max, simd.reduce_sum_f32s(sum))
}

/// Where results go.
struct Outs<'a> {
    out: Shared<'a>,
    lse: Option<Shared<'a>>,
}

/// The parts of a block's pages so far, added up in `out`.
struct Folded<'a> {
    block: &'a Block<'a>,
    outs: &'a Outs<'a>,
    /// For each vector the largest score, and the sum of the exponentials relative to it. The sum is
    /// in f64: with thousands of keys an f32 sum would lose the last two digits.
    ends: Vec<(f32, f64)>,
}

impl<'a> Folded<'a> {
    fn new(block: &'a Block<'a>, outs: &'a Outs<'a>) -> Self {
        let ends = vec![(f32::NEG_INFINITY, 0.0); block.count()];
        let folded = Self { block, outs, ends };
        (0..block.count()).for_each(|i| folded.out(i).fill(0.0));
        folded
    }

    #[expect(clippy::mut_from_ref, reason = "the block owns its rows and heads of `out`")]
    fn out(&self, i: usize) -> &mut [f32] {
        // SAFETY: each row and head belongs to exactly one block, and a block to one `Folded`,
        // which keeps no result of an earlier call.
        unsafe { self.outs.out.slice(self.block.at(i), self.block.head_dim()) }
    }

    /// Adds the part of the next page.
    fn add(&mut self, part: &Part) {
        let scale = self.block.scale();
        let outs = part.outs.chunks_exact(self.block.head_dim());
        for (i, (&(max, sum), part)) in zip(&part.ends, outs).enumerate() {
            if sum == 0.0 {
                continue;
            }
            let (so_far, all) = self.ends[i];
            let shrink = (-(so_far - max).abs() * scale).exp();
            if max > so_far {
                self.ends[i] = (max, f64::from(shrink) * all + f64::from(sum));
                zip(self.out(i), part).for_each(|(out, part)| *out = *out * shrink + part);
            } else {
                self.ends[i].1 += f64::from(shrink) * f64::from(sum);
                zip(self.out(i), part).for_each(|(out, part)| *out += shrink * part);
            }
        }
    }

    /// Divides by the sums.
    fn end(self) {
        for (i, (max, sum)) in self.ends.iter().enumerate() {
            let inverse = (1.0 / sum) as f32;
            self.out(i).iter_mut().for_each(|out| *out *= inverse);
            if let Some(lse) = &self.outs.lse {
                let value = f64::from(max * self.block.scale()) + sum.ln();
                // SAFETY: as in `out`.
                unsafe { lse.slice(self.block.at(i) / self.block.head_dim(), 1) }
                    .fill(value as f32);
            }
        }
    }
}
