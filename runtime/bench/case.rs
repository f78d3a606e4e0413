//! A test and benchmark case: one op with its shape, its name, and lower bounds of its cost.
//!
//! Tests compare a backend's result ([`Case::run`]) with the f64 reference formulas; benchmarks
//! time the op. The inputs are generated from a seed. Everything that an op must not read is
//! poisoned with NaN: rows of a buffer beyond those that the op names, unused pages, the padding
//! of a sequence's last page. The expected values follow from the weights as the backend receives
//! them: rounded, or quantised.

mod inputs;
mod ready;

use gritlm_model::ops::{
    Attention, Expert, GateUp, LinearAdd, Logits, Mask, PAGE, PoolingSpan, Qkv, RmsNorm,
    SampleParams, Search,
};
use gritlm_model::reference::pooled_rows;
use gritlm_model::weights::Dtype;
use std::ops::Range;

pub use inputs::{Chosen, LAYERS, Weight, cached, stored_bytes};
pub use ready::{BEFORE, Ready, Step, drawn_values, found_values};
pub(crate) use ready::{SPARE, poison_unused};

/// One op with its shape, the storage type of its weights, and a seed for its inputs. The op is one
/// of the forward pass, or of [`crate::backward`].
#[derive(Clone, Debug)]
pub struct Case<T = Op> {
    /// Unique name; begins with the name of the op.
    pub name: String,
    /// The op, with its shape.
    pub op: T,
    /// Storage type of the weights, if the op has any.
    pub dtype: Dtype,
    /// Factor on the activations, whose mean square is 1 without it.
    pub scale: f32,
    /// Rounds activations, weights, keys and values to bf16, for a backend that computes in bf16.
    /// The measured error is then the backend's own and not that of the input rounding, which no
    /// op can undo (it changes e^score by half for a score of 100).
    pub bf16: bool,
    /// Type of the KV pages, which the values that are in them before the op have been rounded to;
    /// `None` for the backend's own, unrounded.
    pub pages: Option<Dtype>,
    /// Seed of the inputs.
    pub seed: u64,
}

/// An op and its shape. `Qkv` and `Attention` also carry the sequences of the batch.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the parameters in `gritlm_model::ops`")]
pub enum Op {
    Embed {
        rows: u32,
        vocab: u32,
        dim: u32,
    },
    RmsNorm(RmsNorm),
    Qkv(Qkv, Vec<Seq>),
    Attention(Attention, Vec<Seq>),
    LinearAdd(LinearAdd),
    GateUp(GateUp),
    /// `route`, `expert_gate_up` and `expert_down_add` together, because the order of the data
    /// between them is unspecified.
    Expert(Expert),
    Pool {
        dim: u32,
        spans: Vec<PoolingSpan>,
    },
    Logits {
        p: Logits,
        rows: Vec<u32>,
    },
    /// `step`: logits are rounded to multiples of it, so that many are equal; 0 leaves them as
    /// they are.
    Sample {
        vocab: u32,
        draws: Vec<SampleParams>,
        step: f32,
    },
    Search(Search),
}

/// A sequence of a batch: its cached tokens, its tokens of this pass, and their mask.
#[derive(Clone, Copy, Debug)]
pub struct Seq {
    /// Tokens already in the KV cache.
    pub past: u32,
    /// Tokens of this pass.
    pub rows: u32,
    /// Which keys the tokens of this pass see.
    pub mask: Mask,
}

impl<T> Case<T> {
    /// Returns a case that takes its seed from its name.
    pub(crate) fn named(name: String, op: T, dtype: Dtype, scale: f32) -> Self {
        // The seed is the FNV-1a hash of the name, so a case keeps its inputs when the table
        // grows.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { name, op, dtype, scale, bf16: false, pages: None, seed }
    }
}

impl Case {
    /// Returns a case with activations of mean square 1.
    pub fn new(op: Op, dtype: Dtype) -> Self {
        Self::scaled(op, dtype, 1.0)
    }

    /// Returns a case with activations of mean square `scale`².
    pub fn scaled(op: Op, dtype: Dtype, scale: f32) -> Self {
        let mut name = op.name();
        if op.has_weights() {
            name += &format!(" {}", dtype.to_string().to_lowercase());
        }
        if scale != 1.0 {
            name += &format!(" times {scale}");
        }
        Self::named(name, op, dtype, scale)
    }

    /// Returns a lower bound of the bytes that the op reads and writes: weights, keys and values as
    /// stored, activations in f32, each once.
    pub fn bytes(&self) -> u64 {
        let weights = |values: usize| self.dtype.bytes(values);
        let cached = |values: usize| self.pages.unwrap_or(Dtype::F32).bytes(values);
        let bytes = match &self.op {
            &Op::Embed { rows, dim, .. } => {
                let values = rows as usize * dim as usize;
                values * 4 + weights(values) + rows as usize * 4
            }
            &Op::RmsNorm(RmsNorm { rows, dim, .. }) => {
                2 * 4 * rows as usize * dim as usize + weights(dim as usize)
            }
            Op::Qkv(p, _) => {
                let (rows, dim, [q, kv]) = (p.rows as usize, p.dim as usize, qkv_widths(p));
                4 * rows * (dim + q) + cached(2 * rows * kv) + weights(dim * (q + 2 * kv))
            }
            Op::Attention(p, sequences) => {
                let (q, kv) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
                let rows: u32 = sequences.iter().map(|s| s.rows).sum();
                let seen: usize = sequences.iter().map(Seq::seen).sum();
                2 * 4 * rows as usize * q as usize + cached(2 * seen * kv as usize)
            }
            &Op::LinearAdd(LinearAdd { rows, inner, outer }) => {
                let (inner, outer) = (inner as usize, outer as usize);
                4 * rows as usize * (inner + 2 * outer) + weights(inner * outer)
            }
            &Op::GateUp(GateUp { rows, dim, hidden }) => {
                let (dim, hidden) = (dim as usize, hidden as usize);
                4 * rows as usize * (dim + hidden) + weights(2 * dim * hidden)
            }
            Op::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                let mut used: Vec<usize> =
                    self.routed(p).2.iter().flatten().map(|&(e, _)| e).collect();
                used.sort_unstable();
                used.dedup();
                4 * rows * (3 * dim + 2 * top_k * hidden)
                    + weights(experts * dim + 3 * used.len() * dim * hidden)
            }
            Op::Pool { dim, spans } => {
                let rows: usize = spans.iter().map(|s| pooled_rows(s).len() + 1).sum();
                4 * rows * *dim as usize
            }
            Op::Logits { p, rows } => {
                let (dim, vocab) = (p.dim as usize, p.vocab as usize);
                4 * rows.len() * (dim + vocab) + weights(dim * vocab + dim)
            }
            Op::Sample { vocab, draws, .. } => 4 * draws.len() * *vocab as usize,
            Op::Search(p) => {
                let vectors = (p.queries + p.documents) as usize;
                4 * vectors * p.dim as usize + 8 * (p.queries * p.top_k) as usize
            }
        };
        bytes as u64
    }

    /// Returns the additions and multiplications of the formula, without those that are
    /// negligible (exponentials, rotations, norms before a product).
    pub fn flops(&self) -> u64 {
        let product =
            |rows: u32, inner: u32, outer: u32| 2 * rows as u64 * inner as u64 * outer as u64;
        match &self.op {
            Op::Embed { .. } => 0,
            Op::RmsNorm(p) => product(p.rows, p.dim, 2),
            Op::Qkv(p, _) => product(p.rows, p.dim, (p.heads + 2 * p.kv_heads) * p.head_dim),
            Op::Attention(p, sequences) => {
                let pairs: usize =
                    sequences.iter().flat_map(Seq::ranges).map(|keys| keys.len()).sum();
                2 * product(p.heads, p.head_dim, 1) * pairs as u64
            }
            Op::LinearAdd(p) => product(p.rows, p.inner, p.outer),
            Op::GateUp(p) => product(p.rows, p.dim, 2 * p.hidden),
            Op::Expert(p) => {
                product(p.rows, p.dim, p.experts) + product(p.rows * p.top_k, p.dim, 3 * p.hidden)
            }
            Op::Pool { dim, spans } => {
                spans.iter().map(|s| product(pooled_rows(s).len() as u32, *dim, 1)).sum()
            }
            Op::Logits { p, rows } => product(rows.len() as u32, p.dim, p.vocab),
            Op::Sample { vocab, draws, .. } => product(draws.len() as u32, *vocab, 1),
            Op::Search(p) => product(p.queries, p.documents, p.dim),
        }
    }

    /// Returns how many leading values of the result are ids, which must be equal and not just
    /// close.
    pub fn exact(&self) -> usize {
        match &self.op {
            Op::Sample { vocab, draws, .. } => {
                draws.iter().map(|d| 1 + d.logprobs.min(*vocab) as usize).sum()
            }
            Op::Search(p) => p.queries as usize * p.top_k.min(p.documents) as usize,
            _ => 0,
        }
    }
}

impl Op {
    fn has_weights(&self) -> bool {
        !matches!(
            self,
            Self::Attention(..) | Self::Pool { .. } | Self::Sample { .. } | Self::Search(_)
        )
    }

    fn name(&self) -> String {
        match self {
            Self::Embed { rows, vocab, dim } => format!("embed {rows} of {vocab}x{dim}"),
            Self::RmsNorm(p) => format!("rmsnorm {}x{}", p.rows, p.dim),
            Self::Qkv(p, s) => {
                let Qkv { dim, heads, kv_heads, head_dim, .. } = p;
                format!("qkv {dim} to {heads}:{kv_heads}x{head_dim}, {}", names(s))
            }
            Self::Attention(p, s) => {
                format!("attention {}:{}x{}, {}", p.heads, p.kv_heads, p.head_dim, names(s))
            }
            Self::LinearAdd(p) => format!("linear_add {}x{}x{}", p.rows, p.inner, p.outer),
            Self::GateUp(p) => format!("gate_up {}x{}x{}", p.rows, p.dim, p.hidden),
            Self::Expert(p) => {
                let [rows, dim, hidden, experts, top_k] = expert_sizes(p);
                format!("expert {rows}x{dim}x{hidden}, {top_k} of {experts}")
            }
            Self::Pool { dim, spans } => {
                let kind = if spans.iter().any(|s| s.normalize) { " normalized" } else { "" };
                format!("pool {} to {dim}{kind}", spans.len())
            }
            Self::Logits { p, rows } => format!("logits {}x{}x{}", rows.len(), p.dim, p.vocab),
            Self::Sample { vocab, draws, step } => {
                format!("sample {} of {vocab} step {step}", draws.len())
            }
            Self::Search(p) => {
                format!("search {} of {} for {}x{}", p.top_k, p.documents, p.queries, p.dim)
            }
        }
    }
}

/// Names the sequences by mask with window, past and new tokens, as in "causal-12 7+9".
pub(crate) fn names(sequences: &[Seq]) -> String {
    let window = |w: Option<u32>| w.map_or(String::new(), |w| format!("-{w}"));
    let name = |s: &Seq| {
        let mask = match s.mask {
            Mask::Causal { window: w } => format!("causal{}", window(w)),
            Mask::Bidirectional { window: w } => format!("both{}", window(w)),
        };
        format!("{mask} {}+{}", s.past, s.rows)
    };
    sequences.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl Seq {
    /// Returns the keys that each row sees. This is the definition of the masks, pair by pair.
    pub fn keys(&self) -> impl Iterator<Item = Vec<usize>> {
        let (mask, total) = (self.mask, (self.past + self.rows) as usize);
        let sees = move |i: i64, j: i64| match mask {
            Mask::Causal { window } => j <= i && window.is_none_or(|w| i - i64::from(w) < j),
            Mask::Bidirectional { window } => window.is_none_or(|w| (i - j).abs() < i64::from(w)),
        };
        (self.past as usize..total)
            .map(move |i| (0..total).filter(|&j| sees(i as i64, j as i64)).collect())
    }

    /// Returns [`Seq::keys`], which are adjacent, as ranges, without testing each pair.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let (mask, total) = (self.mask, (self.past + self.rows) as usize);
        (self.past as usize..total).map(move |i| {
            let (window, end) = match mask {
                Mask::Causal { window } => (window, i + 1),
                Mask::Bidirectional { window } => {
                    (window, window.map_or(total, |w| total.min(i + w as usize)))
                }
            };
            window.map_or(0, |w| (i + 1).saturating_sub(w as usize))..end
        })
    }

    /// Returns how many keys at least one row sees.
    fn seen(&self) -> usize {
        let ends = |all: Range<usize>, keys: Range<usize>| {
            all.start.min(keys.start)..all.end.max(keys.end)
        };
        self.ranges().reduce(ends).map_or(0, |keys| keys.len())
    }

    /// Returns the logical pages that exist; those behind a causal window have been freed.
    fn live_pages(&self) -> Range<usize> {
        let first = match self.mask {
            Mask::Causal { window: Some(w) } => (self.past + 1).saturating_sub(w) as usize / PAGE,
            _ => 0,
        };
        first..((self.past + self.rows) as usize).div_ceil(PAGE)
    }
}

/// Returns the columns of all query heads and of all key heads.
pub fn qkv_widths(p: &Qkv) -> [usize; 2] {
    [p.heads, p.kv_heads].map(|heads| heads as usize * p.head_dim as usize)
}

/// Returns rows, dim, hidden, experts and top_k.
pub fn expert_sizes(p: &Expert) -> [usize; 5] {
    [p.rows, p.dim, p.hidden, p.experts, p.top_k].map(|n| n as usize)
}

pub(crate) fn count<T>(of: &[T]) -> u32 {
    of.len() as u32
}
