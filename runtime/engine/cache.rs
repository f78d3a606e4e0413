//! Manages KV pages: which caches hold them, and snapshots of caches off the device.
//!
//! The device holds one pool of pages. `KvPool` counts how many caches hold each of them, and a
//! [`KvCache`] is the page table of one sequence. The pages of a pass are reserved before
//! anything is computed, and those of an answer before its first pass. So nothing is ever written
//! past the pool, and a refused request changes nothing. Dropping a cache gives its pages back.
//!
//! Several caches may share a full page, which becomes free when its last holder gives it back.
//! No cache writes to a shared page, because tokens are only ever appended, and appended tokens
//! go into pages reserved later. If the last page of a shared prefix is not full, it is computed
//! again instead of copied.

use crate::{Error, Result};
use bytemuck::{Pod, PodCastError};
use gritlm_model::config::Config;
use gritlm_model::ops::{NO_PAGE, PAGE};
use half::bf16;
use memmap2::Mmap;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The device's pages, and how many caches hold each.
#[derive(Debug)]
pub(crate) struct KvPool {
    state: Mutex<State>,
    pages: usize,
    /// Told when pages become free.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    /// Stack of the pages without a holder. Page 0 is on top at first, and freed pages go on top,
    /// so that pages in use before are reused and memory stays small.
    free: Vec<u32>,
    holders: Vec<u32>,
}

impl KvPool {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        let state = State { free: (0..pages as u32).rev().collect(), holders: vec![0; pages] };
        Arc::new(Self { state: Mutex::new(state), pages, freed: Notify::new() })
    }

    /// Returns the number of all pages, free or not.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the number of pages that no cache holds.
    pub(crate) fn free_pages(&self) -> usize {
        self.state().free.len()
    }

    /// Gives back each page, the last one first, so that the first is the next to be reused.
    fn give_back(&self, pages: impl DoubleEndedIterator<Item = u32>) {
        let mut state = self.state();
        for page in pages.rev().filter(|&p| p != NO_PAGE) {
            let holders = &mut state.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                state.free.push(page);
            }
        }
        drop(state);
        self.freed.notify_one();
    }

    /// Returns what is told when pages become free.
    pub(crate) fn freed(&self) -> &Notify {
        &self.freed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The lists are consistent between any two calls, so a panic elsewhere does not spoil
        // them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys and values of one sequence, in pages of the engine that made it.
///
/// [`crate::Engine::run`] adds the tokens that it runs; see [`crate::batch::Sequence`]. Dropping
/// a cache gives its pages back.
#[derive(Debug)]
pub struct KvCache {
    pool: Arc<KvPool>,
    table: Vec<u32>,
    tokens: usize,
}

impl KvCache {
    pub(crate) fn new(pool: &Arc<KvPool>) -> Self {
        Self { pool: Arc::clone(pool), table: Vec::new(), tokens: 0 }
    }

    /// Returns the number of tokens in the cache, which is the position of the next one.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns whether the cache holds no token.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    pub(crate) fn belongs_to(&self, pool: &Arc<KvPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Returns the page table, indexed by position / [`PAGE`].
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    /// Returns how many more pages the cache needs for `more` further tokens.
    pub(crate) fn lacks(&self, more: usize) -> usize {
        (self.tokens + more).div_ceil(PAGE).saturating_sub(self.table.len())
    }

    /// Reserves the pages for `more` further tokens: all of them or, on an error, none.
    pub(crate) fn reserve(&mut self, more: usize) -> Result<()> {
        let pages = self.lacks(more);
        let State { free, holders } = &mut *self.pool.state();
        if pages > free.len() {
            let spare = self.table.len() * PAGE - self.tokens;
            return Err(Error::NoRoom {
                needed: more,
                free: free.len() * PAGE + spare,
                total: self.pool.pages * PAGE,
            });
        }
        let rest = free.len() - pages;
        for page in free.drain(rest..).rev() {
            holders[page as usize] = 1;
            self.table.push(page);
        }
        Ok(())
    }

    /// Gives back all but the first `pages` pages. Those given back must not hold a token yet.
    pub(crate) fn give_back(&mut self, pages: usize) {
        debug_assert!(pages * PAGE >= self.tokens);
        self.pool.give_back(self.table.drain(pages..));
    }

    /// Returns the length of the page table, including pages that a sliding window has freed.
    pub(crate) fn pages(&self) -> usize {
        self.table.len()
    }

    /// Counts tokens that a pass has written into reserved pages.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Frees the pages whose tokens all stand before `position`. No later query may attend to
    /// them.
    pub(crate) fn forget_before(&mut self, position: usize) {
        let pages = (position / PAGE).min(self.table.len());
        self.pool.give_back(self.table[..pages].iter().copied());
        self.table[..pages].fill(NO_PAGE);
    }

    /// Returns whether a sliding window has freed some of its pages.
    pub(crate) fn has_holes(&self) -> bool {
        self.table.contains(&NO_PAGE)
    }

    /// Returns a cache that shares these pages, which must be full, or `None` if a sliding window
    /// has freed one of them.
    pub(crate) fn share(&self, pages: Range<usize>) -> Option<Self> {
        debug_assert!(pages.end * PAGE <= self.tokens);
        let table = self.table[pages].to_vec();
        if table.contains(&NO_PAGE) {
            return None;
        }
        let mut state = self.pool.state();
        table.iter().for_each(|&page| state.holders[page as usize] += 1);
        Some(Self { pool: Arc::clone(&self.pool), tokens: table.len() * PAGE, table })
    }

    /// Appends the pages of a cache that continues this one. All pages of both must be full.
    pub(crate) fn append(&mut self, mut next: Self) {
        debug_assert!(self.tokens == self.table.len() * PAGE);
        self.tokens += next.tokens;
        self.table.append(&mut next.table);
    }

    /// Returns whether no other cache holds any of its pages.
    pub(crate) fn is_sole_holder(&self) -> bool {
        let state = self.pool.state();
        self.table.iter().all(|&p| p == NO_PAGE || state.holders[p as usize] == 1)
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.pool.give_back(self.table.iter().copied());
    }
}

/// Values of a snapshot, in the type that they are stored in.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Numbers<f32>),
    Bf16(Numbers<bf16>),
}

/// Numbers in memory or in a mapped file.
#[derive(Clone)]
enum Numbers<T> {
    Owned(Vec<T>),
    /// Range of the map's bytes: aligned for `T`, and a whole number of elements long.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: Pod> Numbers<T> {
    /// Wraps these bytes of a map, or copies them if they are misaligned. Returns `None` if they
    /// lie outside the map or are not a whole number of elements.
    fn of(map: Arc<Mmap>, bytes: Range<usize>) -> Option<Self> {
        match bytemuck::try_cast_slice::<u8, T>(map.get(bytes.clone())?) {
            Ok(_) => Some(Self::Mapped(map, bytes)),
            Err(PodCastError::TargetAlignmentGreaterAndInputNotAligned) => {
                Some(Self::Owned(bytemuck::pod_collect_to_vec(map.get(bytes)?)))
            }
            Err(_) => None,
        }
    }
}

impl<T: Pod> Deref for Numbers<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped(map, bytes) => bytemuck::cast_slice(&map[bytes.clone()]),
        }
    }
}

impl<T: Pod + PartialEq> PartialEq for Numbers<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Numbers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Keys (after RoPE) and values of a sequence, off the device and without padding:
/// `(layers, 2, kv_heads, tokens, head_dim)`.
///
/// The GRIT paper stores this for a document, to generate from it without running it again.
#[derive(Clone, Debug, PartialEq)]
pub struct KvSnapshot {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    values: Values,
}

impl KvSnapshot {
    /// Creates a snapshot of values in the order of `shape`:
    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    ///
    /// # Errors
    /// When the number of values does not match the shape, or the shape's second size is not 2.
    pub fn from_f32(shape: [usize; 5], values: Vec<f32>) -> Result<Self> {
        Self::of(shape, Values::F32(Numbers::Owned(values)))
    }

    /// Like [`KvSnapshot::from_f32`], with values in bfloat16, which are stored as they are.
    ///
    /// # Errors
    /// As [`KvSnapshot::from_f32`].
    pub fn from_bf16(shape: [usize; 5], values: Vec<bf16>) -> Result<Self> {
        Self::of(shape, Values::Bf16(Numbers::Owned(values)))
    }

    /// Like [`KvSnapshot::from_f32`], or [`KvSnapshot::from_bf16`] if `rounded`, with the values
    /// in these bytes of a mapped file. They are copied only if they are misaligned.
    ///
    /// # Errors
    /// As [`KvSnapshot::from_f32`]. Bytes outside the map, or not a whole number of values, count
    /// as 0 values.
    pub fn from_map(
        shape: [usize; 5],
        rounded: bool,
        map: &Arc<Mmap>,
        bytes: Range<usize>,
    ) -> Result<Self> {
        let map = Arc::clone(map);
        let values = match rounded {
            true => Numbers::of(map, bytes).map(Values::Bf16),
            false => Numbers::of(map, bytes).map(Values::F32),
        };
        Self::of(shape, values.unwrap_or(Values::F32(Numbers::Owned(Vec::new()))))
    }

    fn of(shape: [usize; 5], values: Values) -> Result<Self> {
        let len = match &values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        };
        let [layers, pair, kv_heads, tokens, head_dim] = shape;
        let product = shape.iter().try_fold(1_usize, |all, &n| all.checked_mul(n));
        if pair != 2 || product != Some(len) {
            return Err(Error::Input {
                what: "keys and values".into(),
                problem: format!("expected (layers, 2, …) numbers, found {len} for {shape:?}"),
            });
        }
        Ok(Self { layers, kv_heads, head_dim, tokens, values })
    }

    /// Returns the stored values, if they are bfloat16.
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        if let Values::Bf16(values) = &self.values { Some(values) } else { None }
    }

    /// Returns the stored values, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        if let Values::F32(values) = &self.values { Some(values) } else { None }
    }

    /// Returns the shape, `(layers, 2, kv_heads, tokens, head_dim)`.
    pub fn shape(&self) -> [usize; 5] {
        [self.layers, 2, self.kv_heads, self.tokens, self.head_dim]
    }

    /// Checks that a model with this config can continue from the snapshot.
    pub(crate) fn check_shape(&self, c: &Config) -> Result<()> {
        let expected = [c.layers, 2, c.kv_heads, self.tokens, c.head_dim];
        let found = self.shape();
        match expected == found {
            true => Ok(()),
            false => {
                let problem = format!("expected shape {expected:?}, found {found:?}");
                Err(Error::Input { what: "cache".into(), problem })
            }
        }
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the same values rounded to bfloat16: 128 KiB per token for GritLM-7B.
    pub fn to_bf16(&self) -> Self {
        let values = match &self.values {
            Values::F32(values) => {
                Numbers::Owned(values.iter().map(|&v| bf16::from_f32(v)).collect())
            }
            Values::Bf16(values) => values.clone(),
        };
        Self { values: Values::Bf16(values), ..*self }
    }

    /// Returns all values as f32, in the order of [`KvSnapshot::shape`].
    pub fn to_f32(&self) -> Vec<f32> {
        self.wide().into_owned()
    }

    /// Like [`KvSnapshot::to_f32`], but borrows the values if they are stored as f32.
    pub(crate) fn wide(&self) -> Cow<'_, [f32]> {
        match &self.values {
            Values::F32(values) => Cow::Borrowed(values),
            Values::Bf16(values) => widened(values).collect(),
        }
    }

    /// Returns the values in the range `at` as f32. Values stored as bfloat16 are converted into
    /// `buffer`; others are borrowed.
    ///
    /// # Panics
    /// When `at` is out of range.
    pub fn part<'a>(&'a self, at: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.values {
            Values::F32(values) => &values[at],
            Values::Bf16(values) => {
                widened(&values[at]).collect_into_vec(buffer);
                buffer
            }
        }
    }

    /// Returns the size of the stored values in bytes.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => size_of_val(&**values),
            Values::Bf16(values) => size_of_val(&**values),
        }
    }

    /// Returns whether every value is finite.
    pub fn is_finite(&self) -> bool {
        match &self.values {
            Values::F32(values) => values.iter().all(|v| v.is_finite()),
            Values::Bf16(values) => values.iter().all(|v| v.is_finite()),
        }
    }

    /// Joins caches one after the other, as the paper's code does. Keys keep the positions that
    /// they were computed at, so these overlap, and generation continues at the sum of the
    /// lengths. The result is bfloat16 if all caches are, else f32.
    ///
    /// # Errors
    /// When `caches` is empty, or the caches belong to models of different shapes.
    pub fn concat(caches: &[&Self]) -> Result<Self> {
        let wrong = |problem: String| Error::Input { what: "caches to join".into(), problem };
        let first = *caches.first().ok_or_else(|| wrong("expected at least one".into()))?;
        let mut tokens = 0;
        for cache in caches {
            let key = |c: &Self| (c.layers, c.kv_heads, c.head_dim);
            if key(cache) != key(first) {
                let (a, b) = (first.shape(), cache.shape());
                return Err(wrong(format!("expected one model's, found shapes {a:?} and {b:?}")));
            }
            tokens += cache.tokens;
        }
        let parts: Vec<Cow<'_, [f32]>> = caches.iter().map(|c| c.wide()).collect();
        let mut joined = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
        for head in 0..first.layers * 2 * first.kv_heads {
            for (cache, part) in caches.iter().zip(&parts) {
                let len = cache.tokens * cache.head_dim;
                joined.extend_from_slice(&part[head * len..][..len]);
            }
        }
        let all = Self { tokens, values: Values::F32(Numbers::Owned(joined)), ..*first };
        let rounded = caches.iter().all(|c| matches!(c.values, Values::Bf16(_)));
        Ok(if rounded { all.to_bf16() } else { all })
    }
}

/// Converts in parallel, because a long document has too many values for one thread.
fn widened(values: &[bf16]) -> impl IndexedParallelIterator<Item = f32> {
    values.par_iter().with_min_len(1 << 16).map(|v| v.to_f32())
}
