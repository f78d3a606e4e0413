//! Caches that were computed apart, one after the other.
//!
//! A key has been turned by the rotary embedding to the position where it was computed. Turns
//! compose: turned on by the difference of two positions' angles, it is the key that would have
//! been computed at the other one, because attention sees only differences of positions and so
//! everything below it is the same. Values have no position.

use crate::cache::KvCache;
use crate::{Error, Result};
use rayon::prelude::*;

/// Where joined keys stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// One after the other, as one text's would.
    #[default]
    Turned,
    /// Every part from 0 on, as the paper's code leaves them: they overlap, and what is read next
    /// stands behind the sum of the lengths.
    AsPublished,
}

/// A part of a join: the cache of one pass from position 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its keys and values.
    pub cache: &'a KvCache,
    /// Tokens to leave out at its beginning: 1 for a `<s>`. The others were computed seeing it.
    pub skip: usize,
}

/// The parts as one cache, in f32, so that numbers which are to be rounded are rounded once. Keys
/// are turned by `frequencies` (of [`crate::Engine::frequencies`]).
///
/// # Errors
/// When there is no part, a part has nothing left, or they are of different models.
pub fn join(parts: &[Part<'_>], positions: Positions, frequencies: &[f32]) -> Result<KvCache> {
    let wrong = |problem: String| Error::Input { what: "caches to join".into(), problem };
    let first = parts.first().ok_or_else(|| wrong("expected at least one".into()))?.cache;
    let [layers, _, kv_heads, _, head_dim] = first.shape();
    if frequencies.len() * 2 != head_dim {
        let (expected, found) = (head_dim / 2, frequencies.len());
        return Err(wrong(format!("expected {expected} frequencies, found {found}")));
    }
    let mut placed = Vec::with_capacity(parts.len());
    let mut tokens = 0;
    for &Part { cache, skip } in parts {
        let expected = [layers, 2, kv_heads, cache.tokens(), head_dim];
        if cache.shape() != expected {
            let found = cache.shape();
            return Err(wrong(format!("expected shape {expected:?}, found {found:?}")));
        }
        let kept = cache.tokens().checked_sub(skip).filter(|&kept| kept > 0);
        let kept = kept.ok_or_else(|| {
            wrong(format!("{skip} of a part's {} tokens are left out", cache.tokens()))
        })?;
        let start = if positions == Positions::Turned { tokens } else { 0 };
        placed.push(Placed {
            cache,
            length: cache.tokens() * head_dim,
            skip: skip * head_dim,
            turns: turns(frequencies, skip, start, kept),
        });
        tokens += kept;
    }
    let length = tokens * head_dim;
    let mut joined = vec![0.0; layers * 2 * kv_heads * length];
    joined.par_chunks_exact_mut(length).enumerate().for_each(|(head, mut rest)| {
        let are_keys = (head / kv_heads).is_multiple_of(2);
        let mut buffer = Vec::new();
        for part in &placed {
            let at = head * part.length + part.skip..(head + 1) * part.length;
            let from = part.cache.part(at, &mut buffer);
            let (to, after) = rest.split_at_mut(from.len());
            rest = after;
            to.copy_from_slice(from);
            if let (true, Some(turns)) = (are_keys, &part.turns) {
                let rows = to.chunks_exact_mut(head_dim).zip(turns.chunks_exact(head_dim / 2));
                rows.for_each(|(row, turns)| turn(row, turns));
            }
        }
    });
    KvCache::from_f32([layers, 2, kv_heads, tokens, head_dim], joined)
}

/// A part, and what is to be done with it.
struct Placed<'a> {
    cache: &'a KvCache,
    /// Numbers of a head.
    length: usize,
    /// Of these, at the beginning, those left out.
    skip: usize,
    turns: Option<Vec<(f32, f32)>>,
}

/// Cosine and sine of what takes `tokens` keys from positions `from…` to `to…`,
/// `(tokens, head_dim / 2)`; None where they stand there.
///
/// The model rounds each angle to f32, which at position 4000 is up to 1e-4; the difference of the
/// rounded ones, and no rounding of its own, gives the key that the model would have computed.
fn turns(frequencies: &[f32], from: usize, to: usize, tokens: usize) -> Option<Vec<(f32, f32)>> {
    if from == to {
        return None;
    }
    let angle = |f: f32, position: usize| f64::from(f * position as f32);
    let all = (0..tokens).into_par_iter().flat_map_iter(|i| {
        frequencies.iter().map(move |&f| {
            let (sin, cos) = (angle(f, to + i) - angle(f, from + i)).sin_cos();
            (cos as f32, sin as f32)
        })
    });
    Some(all.collect())
}

/// Turns pair d of a key, which is its elements d and d + head_dim / 2.
fn turn(key: &mut [f32], turns: &[(f32, f32)]) {
    let (first, second) = key.split_at_mut(turns.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
