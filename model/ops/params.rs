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

/// Next-token loss: `loss = ln Σ_v exp(h · Wᵀ)_v − (h · Wᵀ)_target`, row by row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Columns of `h`.
    pub dim: u32,
    /// Rows of `W`, the `lm_head`.
    pub vocab: u32,
}

/// InfoNCE: `loss = ln Σ_j exp(s_j) − s_target` over a query's candidates j, where
/// `s_j = cos(query, passage j) / temperature` over the first `used` columns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrastive {
    /// Queries.
    pub queries: u32,
    /// Passages.
    pub passages: u32,
    /// Columns of both.
    pub dim: u32,
    /// Leading columns that are compared: all, or fewer for Matryoshka embeddings.
    pub used: u32,
    /// Divisor of the cosines; the GRIT paper's is 0.02.
    pub temperature: f32,
    /// Weight of each query's loss in the gradients.
    pub scale: f32,
}

/// The passage that a query should find, among candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contrast {
    /// Index of the positive passage; one of the candidates.
    pub target: u32,
    /// First candidate.
    pub first: u32,
    /// Candidates: all passages of a batch, or only the query's own.
    pub count: u32,
}

/// A low-rank adapter in rows of a matrix: `W + scale · B · A · diag(mask)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// First row of `W`.
    pub first: u32,
    /// Rows of `B`.
    pub rows: u32,
    /// Columns of `W` and `A`.
    pub cols: u32,
    /// Columns of `B`, rows of `A`; 0 where the rows of `W` have no adapter.
    pub rank: u32,
    /// Factor of the product.
    pub scale: f32,
}

/// A step of AdamW (Loshchilov and Hutter 2019): `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `w ← w − rate · (m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + decay · w)`, where `g` is `scale`
/// times the gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Elements.
    pub len: u32,
    /// Number of this step, t, from 1.
    pub step: u32,
    /// Learning rate.
    pub rate: f32,
    /// Decay of the first moment, β₁.
    pub beta1: f32,
    /// Decay of the second moment, β₂.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Weight decay.
    pub decay: f32,
    /// Factor of the gradient, by which it is clipped.
    pub scale: f32,
}
