//! KV pages: who owns which, and caches that leave the device.
//!
//! The device holds one pool; `Pool` counts its pages and [`Cache`] is one sequence's table of
//! them. A request takes all the pages that it will need before anything is computed, so nothing is
//! ever written past the pool and a refused request changes nothing. Dropping a cache gives its
//! pages back.

use crate::{Error, Result};
use gritlm_model::ops::{NO_PAGE, PAGE};
use half::bf16;
use std::sync::{Arc, Mutex, PoisonError};

/// The pages that nobody owns.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Free pages, highest first: low ones are reused, so memory stays small.
    free: Mutex<Vec<u32>>,
    pages: usize,
}

impl Pool {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new((0..pages as u32).rev().collect()), pages })
    }

    /// Pages that nobody owns now.
    pub(crate) fn free_pages(&self) -> usize {
        self.free().len()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        // The list is whole between any two statements, so a panic elsewhere does not spoil it.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys and values of one sequence, in pages of the engine that made it.
///
/// A cache grows as a sequence is run; see [`crate::batch::Sequence`].
#[derive(Debug)]
pub struct Cache {
    pool: Arc<Pool>,
    table: Vec<u32>,
    tokens: usize,
}

impl Cache {
    pub(crate) fn new(pool: &Arc<Pool>) -> Self {
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

    pub(crate) fn belongs_to(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Pages by position / [`PAGE`].
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    /// Takes the pages for `more` tokens beyond those in the cache; all or none.
    pub(crate) fn reserve(&mut self, more: usize) -> Result<()> {
        let pages = (self.tokens + more).div_ceil(PAGE).saturating_sub(self.table.len());
        let mut free = self.pool.free();
        if pages > free.len() {
            let spare = self.table.len() * PAGE - self.tokens;
            return Err(Error::NoRoom {
                needed: more,
                free: free.len() * PAGE + spare,
                total: self.pool.pages * PAGE,
            });
        }
        let rest = free.len() - pages;
        self.table.extend(free.drain(rest..).rev());
        Ok(())
    }

    /// Gives back all but the first `pages` pages, which hold no token yet.
    pub(crate) fn give_back(&mut self, pages: usize) {
        debug_assert!(pages * PAGE >= self.tokens);
        self.pool.free().extend(self.table.drain(pages..).rev());
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
        for page in self.table[..pages].iter_mut().filter(|p| **p != NO_PAGE) {
            self.pool.free().push(*page);
            *page = NO_PAGE;
        }
    }

    /// Whether a sliding window has freed a part of it.
    pub(crate) fn has_holes(&self) -> bool {
        self.table.contains(&NO_PAGE)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let mut free = self.pool.free();
        free.extend(self.table.iter().rev().filter(|&&p| p != NO_PAGE));
    }
}

/// How an exported cache stores its numbers.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// Keys (after the rotary embedding) and values of a sequence, off the device and without padding:
/// `(layers, 2, kv_heads, tokens, head_dim)`.
///
/// This is what the GRIT paper stores of a document, to generate from it without reading it again.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    values: Values,
}

impl KvCache {
    pub(crate) fn from_f32(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        tokens: usize,
        values: Vec<f32>,
    ) -> Self {
        debug_assert_eq!(values.len(), layers * 2 * kv_heads * tokens * head_dim);
        Self { layers, kv_heads, head_dim, tokens, values: Values::F32(values) }
    }

    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    pub fn shape(&self) -> [usize; 5] {
        [self.layers, 2, self.kv_heads, self.tokens, self.head_dim]
    }

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The same numbers rounded to bfloat16: 128 KiB per token for GritLM-7B.
    pub fn to_bf16(&self) -> Self {
        let values = match &self.values {
            Values::F32(values) => values.iter().map(|&v| bf16::from_f32(v)).collect(),
            Values::Bf16(values) => values.clone(),
        };
        Self { values: Values::Bf16(values), ..*self }
    }

    /// All numbers as f32, in the order of [`KvCache::shape`].
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
        }
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => size_of_val(values.as_slice()),
            Values::Bf16(values) => size_of_val(values.as_slice()),
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
        let parts: Vec<Vec<f32>> = caches.iter().map(|c| c.to_f32()).collect();
        let mut joined = Vec::with_capacity(parts.iter().map(Vec::len).sum());
        for head in 0..first.layers * 2 * first.kv_heads {
            for (cache, part) in caches.iter().zip(&parts) {
                let len = cache.tokens * cache.head_dim;
                joined.extend_from_slice(&part[head * len..][..len]);
            }
        }
        let all = Self { tokens, values: Values::F32(joined), ..*first };
        let rounded = caches.iter().all(|c| matches!(c.values, Values::Bf16(_)));
        Ok(if rounded { all.to_bf16() } else { all })
    }
}
