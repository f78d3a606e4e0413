//! The case table of training: every operation of [`Backward`](gritlm_model::ops::Backward), with
//! its inputs, its expected outputs and its cost.
//!
//! Cases take their inputs as those of the forward pass do ([`crate::case`]): from a seed, with NaN
//! in everything that an op must not read. A buffer that an op adds to begins with known values, one
//! that it writes with NaN. Weights in f32 are parameters, which get a gradient; weights in any
//! other format are frozen.

mod cases;
mod expected;
mod inputs;
mod ready;

use crate::case::{self, Seq, count, expert_sizes, names, qkv_widths};
use gritlm_model::ops::{
    AdamW, Attention, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd, PoolingSpan,
    Qkv, RmsNorm,
};
use gritlm_model::reference::pooled_rows;
use gritlm_model::weights::Dtype;

pub use cases::cases;
pub use expected::Output;

/// A case of training.
pub type Case = case::Case<Op>;

/// An op of training and its shape.
///
/// A sequence with a past continues the sequence before it: its past are all rows since the last
/// sequence without one.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the parameters in `gritlm_model::ops`")]
pub enum Op {
    /// `parameters`, `read_parameters`, `clear`, `copy` and `squares`.
    Buffers {
        rows: u32,
        cols: u32,
    },
    Embed {
        rows: u32,
        vocab: u32,
        dim: u32,
    },
    RmsNorm(RmsNorm),
    Qkv(Qkv, Vec<Seq>),
    /// `attention_kept`, then `attention_backward`.
    Attention(Attention, Vec<Seq>),
    LinearAdd(LinearAdd),
    /// `gate_up_kept`, then `gate_up_backward`.
    GateUp(GateUp),
    /// `route` and `expert_gate_up_kept`, then the gradients of the whole mixture, because the
    /// order of the data between them is unspecified.
    Expert(Expert),
    Pool {
        dim: u32,
        spans: Vec<PoolingSpan>,
    },
    /// Every third row has a scale of zero.
    CrossEntropy {
        p: CrossEntropy,
        rows: Vec<u32>,
    },
    Contrastive(Contrastive, Vec<Contrast>),
    AdamW {
        p: AdamW,
        cols: u32,
    },
}

impl Op {
    fn has_weights(&self) -> bool {
        matches!(
            self,
            Self::RmsNorm(_)
                | Self::Qkv(..)
                | Self::LinearAdd(_)
                | Self::GateUp(_)
                | Self::Expert(_)
                | Self::CrossEntropy { .. }
        )
    }

    fn name(&self) -> String {
        match self {
            Self::Buffers { rows, cols } => format!("buffers {rows}x{cols}"),
            Self::Embed { rows, vocab, dim } => format!("embed_backward {rows} of {vocab}x{dim}"),
            Self::RmsNorm(p) => format!("rmsnorm_backward {}x{}", p.rows, p.dim),
            Self::Qkv(p, s) => {
                let Qkv { dim, heads, kv_heads, head_dim, .. } = p;
                format!("qkv_backward {dim} to {heads}:{kv_heads}x{head_dim}, {}", names(s))
            }
            Self::Attention(p, s) => {
                let Attention { heads, kv_heads, head_dim, .. } = p;
                format!("attention_backward {heads}:{kv_heads}x{head_dim}, {}", names(s))
            }
            Self::LinearAdd(p) => {
                format!("linear_add_backward {}x{}x{}", p.rows, p.inner, p.outer)
            }
            Self::GateUp(p) => format!("gate_up_backward {}x{}x{}", p.rows, p.dim, p.hidden),
            Self::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                format!("expert_backward {rows}x{dim}x{hidden}, {top_k} of {experts}")
            }
            Self::Pool { dim, spans } => format!("pool_backward {} to {dim}", spans.len()),
            Self::CrossEntropy { p, rows } => {
                format!("cross_entropy {}x{}x{}", rows.len(), p.dim, p.vocab)
            }
            Self::Contrastive(p, wanted) => {
                let Contrastive { queries, passages, dim, used, temperature, .. } = p;
                let candidates = wanted.iter().map(|wanted| wanted.count).max().unwrap_or(0);
                format!(
                    "contrastive {queries}x{used} of {dim}, {candidates} of {passages}, \
                    {temperature}"
                )
            }
            Self::AdamW { p, cols } => format!("adamw {}x{cols}, step {}", p.len / cols, p.step),
        }
    }
}

impl Case {
    /// Returns a case with activations and gradients of mean square 1. Weights in f32 are trained,
    /// weights in another format are frozen.
    pub fn of(op: Op, dtype: Dtype) -> Self {
        let mut name = op.name();
        if op.has_weights() && dtype != Dtype::F32 {
            name += &format!(" frozen {}", dtype.to_string().to_lowercase());
        }
        Self::named(name, op, dtype, 1.0)
    }

    /// Returns whether the weights get no gradient.
    pub fn frozen(&self) -> bool {
        self.dtype != Dtype::F32
    }

    /// Returns a lower bound of the bytes that the ops read and write: weights as stored,
    /// everything else in f32, each once, and twice what is added to.
    pub fn bytes(&self) -> u64 {
        // A matrix is read, and its gradient read and written.
        let trained = |values: usize| {
            self.dtype.bytes(values) + if self.frozen() { 0 } else { 2 * 4 * values }
        };
        let bytes = match &self.op {
            &Op::Buffers { rows, cols } => 4 * 4 * rows as usize * cols as usize,
            &Op::Embed { rows, dim, .. } => 3 * 4 * rows as usize * dim as usize,
            &Op::RmsNorm(RmsNorm { rows, dim, .. }) => {
                4 * 4 * rows as usize * dim as usize + trained(dim as usize)
            }
            Op::Qkv(p, _) => {
                let (dim, [q, kv]) = (p.dim as usize, qkv_widths(p));
                4 * p.rows as usize * (2 * dim + q + 2 * kv) + trained(dim * (q + 2 * kv))
            }
            Op::Attention(p, sequences) => {
                let rows = sequences.iter().map(|s| s.rows).sum::<u32>() * p.head_dim;
                // q, out, dout, dq; keys and values, and their gradients.
                4 * rows as usize * (4 * p.heads + 4 * p.kv_heads) as usize
            }
            &Op::LinearAdd(LinearAdd { rows, inner, outer }) => {
                let (inner, outer) = (inner as usize, outer as usize);
                4 * rows as usize * (2 * inner + outer) + trained(inner * outer)
            }
            &Op::GateUp(GateUp { rows, dim, hidden }) => {
                let (dim, hidden) = (dim as usize, hidden as usize);
                4 * rows as usize * (2 * dim + 6 * hidden) + trained(2 * dim * hidden)
            }
            Op::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                let chosen = self.routed(p).2;
                let mut used: Vec<usize> = chosen.iter().flatten().map(|&(e, _)| e).collect();
                used.sort_unstable();
                used.dedup();
                4 * rows * (4 * dim + 7 * top_k * hidden)
                    + trained(experts * dim + 3 * used.len() * dim * hidden)
            }
            Op::Pool { dim, spans } => {
                let rows: usize = spans.iter().map(|s| 2 * pooled_rows(s).len() + 1).sum();
                4 * rows * *dim as usize
            }
            Op::CrossEntropy { p, rows } => {
                let dim = p.dim as usize;
                4 * rows.len() * (3 * dim + 1) + trained(dim * p.vocab as usize)
            }
            Op::Contrastive(p, _) => 3 * 4 * ((p.queries + p.passages) * p.used) as usize,
            Op::AdamW { p, .. } => 7 * 4 * p.len as usize,
        };
        bytes as u64
    }

    /// Returns the additions and multiplications of the formulas, without those that are
    /// negligible, for `attention` with the scores computed again.
    pub fn flops(&self) -> u64 {
        let product =
            |rows: u32, inner: u32, outer: u32| 2 * rows as u64 * inner as u64 * outer as u64;
        // Products of a backward pass for one of the forward pass.
        let back = if self.frozen() { 1 } else { 2 };
        match &self.op {
            Op::Buffers { rows, cols } => product(*rows, *cols, 1),
            Op::Embed { rows, dim, .. } => product(*rows, *dim, 1) / 2,
            Op::RmsNorm(p) => product(p.rows, p.dim, 5),
            Op::Qkv(p, _) => back * product(p.rows, p.dim, (p.heads + 2 * p.kv_heads) * p.head_dim),
            Op::Attention(p, sequences) => {
                let pairs: usize =
                    sequences.iter().flat_map(Seq::ranges).map(|keys| keys.len()).sum();
                // Two products forward and five back: p, dp, dq, dk, dv.
                7 * product(p.heads, p.head_dim, 1) * pairs as u64
            }
            Op::LinearAdd(p) => back * product(p.rows, p.inner, p.outer),
            Op::GateUp(p) => (1 + back) * product(p.rows, p.dim, 2 * p.hidden),
            Op::Expert(p) => {
                let rows = p.rows * p.top_k;
                (1 + back) * product(p.rows, p.dim, p.experts)
                    + (1 + back) * product(rows, p.dim, 2 * p.hidden)
                    + back * product(rows, p.dim, p.hidden)
            }
            Op::Pool { dim, spans } => {
                spans.iter().map(|s| product(pooled_rows(s).len() as u32, *dim, 1)).sum()
            }
            Op::CrossEntropy { p, rows } => (1 + back) * product(count(rows), p.dim, p.vocab),
            Op::Contrastive(p, wanted) => {
                wanted.iter().map(|wanted| product(wanted.count, p.used, 3)).sum()
            }
            Op::AdamW { p, .. } => product(p.len, 8, 1),
        }
    }
}
