//! Concatenates KV caches that were computed separately.
//!
//! The rotary embedding (RoPE) has rotated each key to the position where it was computed.
//! Rotations compose: rotating a key by the difference of two positions' angles gives the key
//! that would have been computed at the other position. Attention depends only on differences of
//! positions, so shifting a whole pass leaves all its hidden states unchanged. Values have no
//! position.

use crate::{Error, Result};
use gritlm::cache::KvSnapshot;
use rayon::prelude::*;

/// The positions of the keys in a joined cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Consecutive, as in one text: keys are rotated to their new positions.
    #[default]
    Turned,
    /// Each part starts at position 0, as in the paper's code: positions overlap, and the tokens
    /// that are read next start at the sum of the lengths.
    AsPublished,
}

/// One part of a joined cache: the cache of a pass that started at position 0.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The part's keys and values.
    pub cache: &'a KvSnapshot,
    /// Tokens to skip at the beginning: 1 for a `<s>`. The remaining tokens were computed with
    /// the skipped ones in sight.
    pub skip: usize,
}

/// Concatenates the parts into one cache in f32, so that values which are rounded later are
/// rounded only once. Rotates keys by `frequencies` (of [`gritlm::Engine::frequencies`]).
///
/// # Errors
/// When there is no part, a part has no tokens left, the number of frequencies is wrong, or the
/// parts are of different models.
pub fn join(parts: &[Part<'_>], positions: Positions, frequencies: &[f32]) -> Result<KvSnapshot> {
    let wrong = |problem: String| {
        Error::from(gritlm::Error::Input { what: "caches to join".into(), problem })
    };
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
    Ok(KvSnapshot::from_f32([layers, 2, kv_heads, tokens, head_dim], joined)?)
}

/// A part with its size and rotation.
struct Placed<'a> {
    cache: &'a KvSnapshot,
    /// Elements per head: `tokens * head_dim`.
    length: usize,
    /// Elements to skip at the beginning of each head.
    skip: usize,
    turns: Option<Vec<(f32, f32)>>,
}

/// Returns cosine and sine of the rotations that move `tokens` keys from positions `from…` to
/// `to…`, `(tokens, head_dim / 2)`; None if they do not move.
///
/// The model rounds each angle to f32, with an error of up to 1e-4 at position 4000. Taking the
/// difference of the rounded angles, without further rounding, gives the key that the model would
/// have computed.
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

/// Rotates a key; its pair `d` consists of the elements `d` and `d + head_dim / 2`.
fn turn(key: &mut [f32], turns: &[(f32, f32)]) {
    let (first, second) = key.split_at_mut(turns.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
