//! KV pages: who owns which, and caches that leave the device.
//!
//! The device holds one pool; `KvPool` counts its pages and [`KvCache`] is one sequence's table of
//! them. A request takes all the pages that it will need before anything is computed, so nothing is
//! ever written past the pool and a refused request changes nothing. Dropping a cache gives its
//! pages back.
//!
//! Full pages may be shared: a page is free when its last holder has given it back. Nobody writes a
//! shared page, because tokens are only ever added, and those go into pages taken since; the last
//! page of a shared prefix that is not full is computed again instead of copied.

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

/// The device's pages, and how many caches hold each.
#[derive(Debug)]
pub(crate) struct KvPool {
    state: Mutex<State>,
    pages: usize,
}

#[derive(Debug)]
struct State {
    /// Pages without holder, highest first: low ones are reused, so memory stays small.
    free: Vec<u32>,
    holders: Vec<u32>,
}

impl KvPool {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        let state = State { free: (0..pages as u32).rev().collect(), holders: vec![0; pages] };
        Arc::new(Self { state: Mutex::new(state), pages })
    }

    /// All pages, free or not.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Pages that nobody holds now.
    pub(crate) fn free_pages(&self) -> usize {
        self.state().free.len()
    }

    /// Gives back each page, the last first, so that the first is the next to be taken.
    fn give_back(&self, pages: impl DoubleEndedIterator<Item = u32>) {
        let mut state = self.state();
        for page in pages.rev().filter(|&p| p != NO_PAGE) {
            let holders = &mut state.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                state.free.push(page);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The lists are whole between any two calls, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys and values of one sequence, in pages of the engine that made it.
///
/// A cache grows as a sequence is run; see [`crate::batch::Sequence`].
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

    /// Tokens in the cache; the next one stands at this position.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    pub(crate) fn belongs_to(&self, pool: &Arc<KvPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Pages by position / [`PAGE`].
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    /// Pages that `more` tokens beyond those in the cache need and it does not hold yet.
    pub(crate) fn lacks(&self, more: usize) -> usize {
        (self.tokens + more).div_ceil(PAGE).saturating_sub(self.table.len())
    }

    /// Takes the pages for `more` tokens beyond those in the cache; all or none.
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

    /// Gives back all but the first `pages` pages, which hold no token yet.
    pub(crate) fn give_back(&mut self, pages: usize) {
        debug_assert!(pages * PAGE >= self.tokens);
        self.pool.give_back(self.table.drain(pages..));
    }

    /// Pages held.
    pub(crate) fn pages(&self) -> usize {
        self.table.len()
    }

    /// Counts tokens that have been computed into reserved pages.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Frees the pages whose every token stands before `position`; no later query may see them.
    pub(crate) fn forget_before(&mut self, position: usize) {
        let pages = (position / PAGE).min(self.table.len());
        self.pool.give_back(self.table[..pages].iter().copied());
        self.table[..pages].fill(NO_PAGE);
    }

    /// Whether a sliding window has freed a part of it.
    pub(crate) fn has_holes(&self) -> bool {
        self.table.contains(&NO_PAGE)
    }

    /// Holds the given pages, which are full, as well as this cache does; None where a window has
    /// freed one.
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

    /// Appends the pages of a cache that follows this one, both full to their last page.
    pub(crate) fn append(&mut self, mut next: Self) {
        debug_assert!(self.tokens == self.table.len() * PAGE);
        self.tokens += next.tokens;
        self.table.append(&mut next.table);
    }

    /// Whether no other cache holds any of its pages.
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

/// How an exported cache stores its numbers.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Numbers<f32>),
    Bf16(Numbers<bf16>),
}

/// Numbers in memory, or where they lie in a file.
#[derive(Clone)]
enum Numbers<T> {
    Owned(Vec<T>),
    /// Bytes of the map that are whole numbers, well aligned.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: Pod> Numbers<T> {
    /// These bytes of a map; copied where they are not aligned.
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

/// Keys (after the rotary embedding) and values of a sequence, off the device and without padding:
/// `(layers, 2, kv_heads, tokens, head_dim)`.
///
/// This is what the GRIT paper stores of a document, to generate from it without reading it again.
#[derive(Clone, Debug, PartialEq)]
pub struct KvSnapshot {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    values: Values,
}

impl KvSnapshot {
    /// Of numbers in the order of `shape`: `(layers, 2, kv_heads, tokens, head_dim)`.
    ///
    /// # Errors
    /// When their count is not the shape's, or its second size is not 2.
    pub fn from_f32(shape: [usize; 5], values: Vec<f32>) -> Result<Self> {
        Self::of(shape, Values::F32(Numbers::Owned(values)))
    }

    /// [`KvSnapshot::from_f32`] of rounded numbers, which are kept as they are.
    ///
    /// # Errors
    /// As [`KvSnapshot::from_f32`].
    pub fn from_bf16(shape: [usize; 5], values: Vec<bf16>) -> Result<Self> {
        Self::of(shape, Values::Bf16(Numbers::Owned(values)))
    }

    /// [`KvSnapshot::from_f32`], or where `rounded` [`KvSnapshot::from_bf16`], of the numbers in these
    /// bytes of a mapped file, which are not copied.
    ///
    /// # Errors
    /// As [`KvSnapshot::from_f32`].
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

    /// The numbers themselves, where they are rounded to bfloat16.
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        if let Values::Bf16(values) = &self.values { Some(values) } else { None }
    }

    /// The numbers themselves, where they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        if let Values::F32(values) = &self.values { Some(values) } else { None }
    }

    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    pub fn shape(&self) -> [usize; 5] {
        [self.layers, 2, self.kv_heads, self.tokens, self.head_dim]
    }

    /// Checks that a model with this config can go on from the cache.
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

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The same numbers rounded to bfloat16: 128 KiB per token for GritLM-7B.
    pub fn to_bf16(&self) -> Self {
        let values = match &self.values {
            Values::F32(values) => {
                Numbers::Owned(values.iter().map(|&v| bf16::from_f32(v)).collect())
            }
            Values::Bf16(values) => values.clone(),
        };
        Self { values: Values::Bf16(values), ..*self }
    }

    /// All numbers as f32, in the order of [`KvSnapshot::shape`].
    pub fn to_f32(&self) -> Vec<f32> {
        self.wide().into_owned()
    }

    /// [`KvSnapshot::to_f32`], without a copy where they are.
    pub fn wide(&self) -> Cow<'_, [f32]> {
        match &self.values {
            Values::F32(values) => Cow::Borrowed(values),
            Values::Bf16(values) => widened(values).collect(),
        }
    }

    /// Some of the numbers as f32: in `buffer`, where they are rounded.
    pub fn part<'a>(&'a self, at: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.values {
            Values::F32(values) => &values[at],
            Values::Bf16(values) => {
                widened(&values[at]).collect_into_vec(buffer);
                buffer
            }
        }
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => size_of_val(&**values),
            Values::Bf16(values) => size_of_val(&**values),
        }
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        match &self.values {
            Values::F32(values) => values.iter().all(|v| v.is_finite()),
            Values::Bf16(values) => values.iter().all(|v| v.is_finite()),
        }
    }

    /// The caches one after the other, as the paper's code joins them: keys keep the positions that
    /// they were computed at, so those overlap; what is generated next goes on at the sum of the
    /// lengths.
    ///
    /// # Errors
    /// When there is none, or they are of different models.
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

/// A long document has more numbers than one thread converts in good time.
fn widened(values: &[bf16]) -> impl IndexedParallelIterator<Item = f32> {
    values.par_iter().with_min_len(1 << 16).map(|v| v.to_f32())
}
