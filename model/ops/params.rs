//! Parameters of each operation: its sizes, and the constants of its formula.
//!
//! The formulas in [`crate::reference`] take the same structs.

use std::cmp::Ordering;

/// `h = x · weight / √(mean(x²) + eps)`, row by row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub dim: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `[q; k; v] = h · [Wq; Wk; Wv]ᵀ`, with RoPE applied to q and k; k and v are written to the KV
/// cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Qkv {
    /// Rows.
    pub rows: u32,
    /// Columns of `h`.
    pub dim: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Layer whose keys and values are used.
    pub layer: u32,
}

/// `out = softmax(q kᵀ / √head_dim + mask) v` over the paged KV cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Layer whose keys and values are used.
    pub layer: u32,
}

/// `x += a · Wᵀ`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearAdd {
    /// Rows of `a` and `x`.
    pub rows: u32,
    /// Columns of `a` and of `W`.
    pub inner: u32,
    /// Columns of `x`, rows of `W`.
    pub outer: u32,
}

/// `out = silu(h · W1ᵀ) ⊙ (h · W3ᵀ)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateUp {
    /// Rows.
    pub rows: u32,
    /// Columns of `h`.
    pub dim: u32,
    /// Columns of `out`; the stacked matrix `[W1; W3]` has twice as many rows.
    pub hidden: u32,
}

/// Router: a softmax of the logits over all experts, of which the `top_k` largest are kept and
/// renormalised to sum to 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Rows.
    pub rows: u32,
    /// Columns of `h`.
    pub dim: u32,
    /// Experts.
    pub experts: u32,
    /// Experts per row.
    pub top_k: u32,
}

/// Both halves of the mixture's feed-forward, with rows grouped by expert.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expert {
    /// Rows.
    pub rows: u32,
    /// Columns of the residual stream.
    pub dim: u32,
    /// Width of one expert.
    pub hidden: u32,
    /// Experts.
    pub experts: u32,
    /// Experts per row.
    pub top_k: u32,
}

/// How a sequence of hidden states becomes one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over the span.
    Mean,
    /// Mean with weights 1, 2, 3, … over the span.
    WeightedMean,
    /// The sequence's first row, even where `skip` excludes it.
    Cls,
    /// The span's last row.
    LastToken,
}

/// Rows that are pooled into one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolingSpan {
    /// The sequence's first row.
    pub row: u32,
    /// Rows of the sequence.
    pub rows: u32,
    /// Leading rows (the instruction) that are left out of the mean; fewer than `rows`.
    pub skip: u32,
    /// Pooling method.
    pub pooling: Pooling,
    /// Whether the vector is L2-normalised.
    pub normalize: bool,
}

/// Final norm and `lm_head`, for selected rows only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// Columns of the residual stream.
    pub dim: u32,
    /// Rows of `lm_head`.
    pub vocab: u32,
    /// Added to the mean square in the norm.
    pub eps: f32,
}

/// How the next token of one row is sampled. The filters apply in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleParams {
    /// Ids seen so far, each once: their logits are divided by `penalty` if positive, else
    /// multiplied by it.
    pub seen: Vec<u32>,
    /// Repetition penalty; 1 for none.
    pub penalty: f32,
    /// Divisor of the logits; 0 selects the largest logit, with ties going to the lowest id.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Uniform number in [0, 1) that selects one of the kept tokens.
    pub uniform: f32,
    /// Number of most likely tokens to report with their log-probabilities.
    pub logprobs: u32,
    /// Token to take instead of sampling one, to learn its log-probability.
    pub given: Option<u32>,
}

impl SampleParams {
    /// Returns parameters that select the most likely token and report no others.
    pub fn greedy() -> Self {
        Self {
            seen: Vec::new(),
            penalty: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            uniform: 0.0,
            logprobs: 0,
            given: None,
        }
    }
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: u32,
    /// Its log-probability under the model, before penalty, temperature and filters.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// A vector that a search has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Its index in the corpus.
    pub index: u32,
    /// Its inner product with the query.
    pub score: f32,
}

impl Match {
    /// Orders matches by score, largest first; ties go to the lower index.
    pub fn best_first(a: &Self, b: &Self) -> Ordering {
        b.score.total_cmp(&a.score).then(a.index.cmp(&b.index))
    }
}

/// Exact search: scores queries against a corpus and keeps the best documents of each query.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Queries.
    pub queries: u32,
    /// Vectors in the corpus.
    pub documents: u32,
    /// Columns of both.
    pub dim: u32,
    /// Results per query, at most.
    pub top_k: u32,
}
