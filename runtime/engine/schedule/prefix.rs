//! Prefix caching: full KV pages are kept for later prompts that begin with the same tokens.
//!
//! There is one tree for each attention window, because keys and values depend on every earlier
//! token and on what that token attended to. Each level of the tree is a page. The look-up
//! compares tokens, not hashes, so no client can get the keys of another prompt. Bidirectional
//! passes neither use nor fill the cache, because there every token depends on all others.

use crate::Engine;
use crate::cache::{KvCache, KvPool};
use gritlm_model::ops::PAGE;
use std::collections::HashMap;

/// Nodes by the tokens of their page.
type Level = HashMap<Box<[u32]>, Node>;

struct Node {
    page: KvCache,
    /// Clock of the last look-up or insertion that passed this node; never less than that of a
    /// child.
    used: u64,
    next: Level,
}

/// The prefix trees, which hold their pages as a sequence does.
#[derive(Default)]
pub(super) struct Prefixes {
    windows: HashMap<Option<u32>, Level>,
    pages: usize,
    clock: u64,
}

impl Prefixes {
    /// Returns the number of pages held, including those that sequences share.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns a cache with the longest known prefix of `ids`. It never covers all of `ids`,
    /// because the last token must run for its logits.
    pub(super) fn find(&mut self, engine: &Engine, window: Option<u32>, ids: &[u32]) -> KvCache {
        self.clock += 1;
        let mut cache = engine.cache();
        let mut level = self.windows.get_mut(&window);
        for tokens in ids[..ids.len().saturating_sub(1)].chunks_exact(PAGE) {
            let Some(node) = level.and_then(|l| l.get_mut(tokens)) else { break };
            let Some(page) = node.page.share(0..1) else { break };
            cache.append(page);
            node.used = self.clock;
            level = Some(&mut node.next);
        }
        cache
    }

    /// Keeps the full pages of a sequence; `ids` are the tokens in its cache.
    pub(super) fn insert(&mut self, window: Option<u32>, ids: &[u32], cache: &KvCache) {
        self.clock += 1;
        let mut level = self.windows.entry(window).or_default();
        for (i, tokens) in ids.chunks_exact(PAGE).enumerate() {
            if !level.contains_key(tokens) {
                // The cache no longer holds the pages that its sliding window has passed.
                let Some(page) = cache.share(i..i + 1) else { return };
                level.insert(tokens.into(), Node { page, used: 0, next: Level::new() });
                self.pages += 1;
            }
            let Some(node) = level.get_mut(tokens) else { return };
            node.used = self.clock;
            level = &mut node.next;
        }
    }

    /// Evicts the least recently used prefixes until `pages` are free. Returns false, and evicts
    /// nothing, if all prefixes that no sequence uses are not enough.
    pub(super) fn make_room(&mut self, pool: &KvPool, pages: usize) -> bool {
        let free = pool.free_pages();
        if pages <= free {
            return true;
        }
        if pages > free + self.windows.values().map(unused).sum::<usize>() {
            return false;
        }
        while pool.free_pages() < pages {
            let Some(oldest) = self.windows.values().filter_map(oldest).min() else { return false };
            self.windows.values_mut().for_each(|level| forget(level, oldest));
            self.pages -= 1;
        }
        true
    }
}

/// Counts the pages in `level` and below that no sequence shares.
fn unused(level: &Level) -> usize {
    let count = |n: &Node| usize::from(n.page.is_sole_holder()) + unused(&n.next);
    level.values().map(count).sum()
}

/// Returns the oldest `used` stamp among the evictable leaves below. Each path has a stamp of its
/// own, so the stamp names one leaf.
fn oldest(level: &Level) -> Option<u64> {
    let oldest = |n: &Node| match n.next.is_empty() {
        true => n.page.is_sole_holder().then_some(n.used),
        false => oldest(&n.next),
    };
    level.values().filter_map(oldest).min()
}

/// Removes the leaf whose `used` stamp this is.
fn forget(level: &mut Level, used: u64) {
    level.retain(|_, node| {
        let last = node.next.is_empty();
        forget(&mut node.next, used);
        !(last && node.used == used)
    });
}
