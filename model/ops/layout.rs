//! What changes from batch to batch: masks, sequences, page tables, rotary angles.

use crate::format::Dtype;
use rayon::prelude::*;
use std::ops::Range;

/// Which keys a query attends to. Each sequence of a batch has a mask of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Query i sees key j where j ≤ i and, with a window w, i − w < j: w keys, its own included.
    Causal {
        /// Window in tokens.
        window: Option<u32>,
    },
    /// Query i sees every key or, with a window w, the keys j with |i − j| < w.
    Bidirectional {
        /// Window in tokens, in both directions.
        window: Option<u32>,
    },
}

impl Mask {
    /// Returns the range of keys that query `i` of a sequence of `total` tokens sees.
    ///
    /// ```
    /// use gritlm_model::ops::Mask;
    /// assert_eq!(Mask::Causal { window: Some(2) }.keys(5, 9), 4..6);
    /// assert_eq!(Mask::Bidirectional { window: Some(2) }.keys(5, 9), 4..7);
    /// assert_eq!(Mask::Bidirectional { window: None }.keys(5, 9), 0..9);
    /// ```
    pub fn keys(self, i: usize, total: usize) -> Range<usize> {
        let first = |window: Option<u32>| window.map_or(0, |w| (i + 1).saturating_sub(w as usize));
        match self {
            Self::Causal { window } => first(window)..(i + 1).min(total),
            Self::Bidirectional { window } => {
                first(window)..window.map_or(total, |w| (i + w as usize).min(total))
            }
        }
    }
}

/// One sequence's part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first row in the batch.
    pub row: u32,
    /// Its rows in the batch.
    pub rows: u32,
    /// Number of its tokens already in the KV cache, which is also the position of its first row.
    pub past: u32,
    /// Where its page table begins in [`Layout::tables`].
    pub table: u32,
    /// Which keys its rows see.
    pub mask: Mask,
}

/// Everything about a batch that is not an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Token ids, `(rows)`.
    pub tokens: Vec<u32>,
    /// Rotary position of each row.
    pub positions: Vec<u32>,
    /// Slot of each row's key and value in the KV cache: page · [`PAGE`](super::PAGE) + offset.
    pub slots: Vec<u32>,
    /// The sequences, in row order.
    pub spans: Vec<Span>,
    /// Page tables of all sequences, concatenated.
    pub tables: Vec<u32>,
    /// RoPE frequencies, `(head_dim / 2)`: pair d of a row is rotated by position · frequency d.
    pub frequencies: Vec<f32>,
}

impl Layout {
    /// Returns the words that a GPU backend uploads: tokens, slots, then for each row and pair
    /// the bits of the angle's cosine and sine, `(rows, head_dim / 2, 2)`. The host computes them
    /// because a shader's sine is too imprecise for large angles.
    pub fn words(&self) -> Vec<u32> {
        let mut words = self.tokens.clone();
        words.extend(&self.slots);
        let angle = |position: f32, frequency: f32| {
            let (sine, cosine) = (frequency * position).sin_cos();
            [cosine.to_bits(), sine.to_bits()]
        };
        let pairs = self.positions.par_iter().with_min_len(64).flat_map_iter(|&position| {
            self.frequencies.iter().flat_map(move |&f| angle(position as f32, f))
        });
        words.par_extend(pairs);
        words
    }
}

/// Shape of the KV cache: per layer, keys and values of `(pages, kv_heads, PAGE, head_dim)` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Pages per layer.
    pub pages: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Format of the elements.
    pub dtype: Dtype,
}
