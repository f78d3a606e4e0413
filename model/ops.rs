//! The dozen fused operations of a forward pass, as a trait that every backend implements.
//!
//! There is no tensor library: the forward pass is written once, against [`Ops`], and each
//! operation is one that a good backend fuses into one or two launches. Most operations only
//! record work. `sample`, `search`, `export_pages` and the `read*` functions return results to
//! the host; they are futures, because a browser cannot block. [`Layout`] holds everything that
//! changes from batch to batch (positions, page tables, spans); a backend uploads it once per
//! step.
//!
//! Activations are f32 `(rows, columns)`. A backend may compute matrix products in a type of its
//! own, but accumulates in f32. A buffer may be longer than the rows that an operation names.

use crate::weights::Tensor;
use rayon::prelude::*;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

/// Tokens in one KV page.
pub const PAGE: usize = 128;

/// Entry of a page table for a page that the sliding window has freed.
pub const NO_PAGE: u32 = u32::MAX;

/// Error of a device: out of memory, a limit exceeded, or the device lost. The message is one
/// human-readable line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// Result of a call to a device.
pub type Result<T> = std::result::Result<T, DeviceError>;

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
    /// Slot of each row's key and value in the KV cache: page · [`PAGE`] + offset.
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
}

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

/// Vectors in memory or in a mapped file, shared by reference counting.
pub type SharedVectors = Arc<dyn AsRef<[f32]> + Send + Sync>;

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

/// Cost of one op on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Name of the op.
    pub op: &'static str,
    /// Launches.
    pub launches: u64,
    /// Time on the device, in nanoseconds.
    pub nanoseconds: f64,
    /// Lower bound of the bytes that the launches read and wrote.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
}

/// Counts of objects that a device has created since it was opened. Between two identical steps
/// only `submits` and `launches` grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// Buffers.
    pub buffers: u64,
    /// Bind groups.
    pub bind_groups: u64,
    /// Pipelines, or kernels looked up by name.
    pub pipelines: u64,
    /// Steps recorded for replay (CUDA graphs).
    pub graphs: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Launches submitted.
    pub launches: u64,
}

/// The operations that a backend implements. The formula of the same name in [`crate::reference`]
/// specifies what each computes.
pub trait Ops: Send {
    /// A weight matrix, possibly several stacked by rows; a vector is a matrix of one row.
    type Matrix: Send;
    /// Activations, f32, `(rows, columns)`.
    type Buffer: Send;
    /// Vectors to search, in place or uploaded to the device.
    type Corpus: Send + 'static;
    /// Keys and values of all layers.
    type Pages: Send;
    /// An uploaded [`Layout`].
    type Batch: Send;
    /// The experts of each row with their weights, and the rows sorted by expert.
    type Routing: Send;

    /// Returns a human-readable name of the device, such as "cpu (AVX-512, 2 threads)".
    fn device(&self) -> String;

    /// Returns the largest relative error that an op may have, given the number type it computes
    /// in. The default is for f32.
    fn bound(&self) -> f64 {
        1e-5
    }

    /// Runs a whole forward pass. A backend with a thread pool enters the pool here once instead
    /// of at each operation.
    fn enter<R: Send>(pass: impl FnOnce() -> R + Send) -> R {
        pass()
    }

    /// Submits the recorded work without waiting for it, where no read follows.
    ///
    /// # Errors
    /// When any operation has failed since the last read.
    fn submit(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until all recorded work is done.
    ///
    /// # Errors
    /// When any operation has failed since the last read.
    fn finish(&self) -> Result<()> {
        self.submit()
    }

    /// Returns the free bytes on the device, where the device reports them.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Returns whether the backend computes on a tensor's own bytes, without a copy.
    fn in_place(&self) -> bool {
        false
    }

    /// Returns the size of one cached key or value element in bytes.
    fn cached_bytes(&self) -> usize {
        4
    }

    /// Measures a copy of `bytes` bytes within the device. Returns bytes per second, reads and
    /// writes both counted, as the median of five runs.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn copy_rate(&self, bytes: u64) -> Result<f64>;

    /// Measures copies of `bytes` pinned bytes to the device, in bytes per second; `None` where
    /// the device does not support pinned memory.
    ///
    /// # Errors
    /// When memory runs out.
    fn pinned_rate(&self, bytes: u64) -> Result<Option<f64>> {
        let _ = bytes;
        Ok(None)
    }

    /// Flushes the device's caches by reading and writing `bytes` bytes, for cold timings.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn displace(&self, bytes: u64) -> Result<()>;

    /// Returns the kernels of the last submit with their launch shapes, if the device was opened
    /// for measuring.
    fn launched(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns the cost of each op since the last call, if the device was opened for measuring.
    fn profile(&self) -> Vec<OpTime> {
        Vec::new()
    }

    /// Returns how many objects the device has created so far.
    fn created(&self) -> Created {
        Created::default()
    }

    /// Loads matrices of equal width, stacked by rows.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn matrix(&self, parts: &[Tensor]) -> Result<Self::Matrix>;

    /// Allocates a buffer with undefined contents.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer>;

    /// Creates a buffer with these contents, `(rows, cols)`.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Buffer>;

    /// Prepares vectors, `(documents, dim)`, for any number of searches.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn corpus(&self, documents: usize, dim: usize, vectors: SharedVectors) -> Result<Self::Corpus>;

    /// Allocates the KV cache.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn pages(&self, shape: KvShape) -> Result<Self::Pages>;

    /// Uploads a batch's metadata.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn batch(&self, layout: &Layout) -> Result<Self::Batch>;

    /// Allocates memory for the routing of `rows` rows.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn routing(&self, rows: usize, experts: usize, top_k: usize) -> Result<Self::Routing>;

    /// Looks up the embeddings of the batch's tokens: `x (rows, dim)` from `table (vocab, dim)`.
    fn embed(&self, batch: &Self::Batch, table: &Self::Matrix, x: &mut Self::Buffer);

    /// See [`RmsNorm`]: `x (rows, dim)`, `weight (dim)` → `h (rows, dim)`.
    fn rmsnorm(&self, p: RmsNorm, x: &Self::Buffer, weight: &Self::Matrix, h: &mut Self::Buffer);

    /// See [`Qkv`]: `h (rows, dim)` → `q (rows, heads, head_dim)` and the KV cache.
    fn qkv(
        &self,
        p: Qkv,
        h: &Self::Buffer,
        w: &Self::Matrix,
        batch: &Self::Batch,
        q: &mut Self::Buffer,
        pages: &mut Self::Pages,
    );

    /// See [`Attention`]: `q`, `out (rows, heads, head_dim)`.
    fn attention(
        &self,
        p: Attention,
        q: &Self::Buffer,
        pages: &Self::Pages,
        batch: &Self::Batch,
        out: &mut Self::Buffer,
    );

    /// See [`LinearAdd`]: `a (rows, inner)`, `w (outer, inner)`, `x (rows, outer)`.
    fn linear_add(&self, p: LinearAdd, a: &Self::Buffer, w: &Self::Matrix, x: &mut Self::Buffer);

    /// See [`GateUp`]: `h (rows, dim)`, `w (2 · hidden, dim)` = [W1; W3] → `out (rows, hidden)`.
    fn gate_up(&self, p: GateUp, h: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer);

    /// See [`Route`]: `h (rows, dim)`, `w (experts, dim)` → the routing.
    fn route(&self, p: Route, h: &Self::Buffer, w: &Self::Matrix, routing: &mut Self::Routing);

    /// Computes [`GateUp`] for each row's experts: `h (rows, dim)`,
    /// `w (experts · 2 · hidden, dim)` → `out (rows · top_k, hidden)`, sorted by expert.
    fn expert_gate_up(
        &self,
        p: Expert,
        h: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        out: &mut Self::Buffer,
    );

    /// Adds `x[row] += weight · (a · W2ᵀ)` for each row's experts: `a (rows · top_k, hidden)`
    /// sorted by expert, `w (experts · dim, hidden)`, `x (rows, dim)`.
    fn expert_down_add(
        &self,
        p: Expert,
        a: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        x: &mut Self::Buffer,
    );

    /// Pools one vector per span: `h (rows, dim)` after the final norm → `out (spans, dim)`.
    fn pool(&self, dim: u32, spans: &[PoolingSpan], h: &Self::Buffer, out: &mut Self::Buffer);

    /// See [`Logits`]: `x (…, dim)` at `rows`, `norm (dim)`, `w (vocab, dim)` →
    /// `out (rows.len(), vocab)`.
    fn logits(
        &self,
        p: Logits,
        rows: &[u32],
        x: &Self::Buffer,
        norm: &Self::Matrix,
        w: &Self::Matrix,
        out: &mut Self::Buffer,
    );

    /// Samples one token from each of the first `draws.len()` rows of `logits (…, vocab)`.
    fn sample(
        &self,
        vocab: u32,
        draws: &[SampleParams],
        logits: &Self::Buffer,
    ) -> impl Future<Output = Result<Vec<SampledToken>>>;

    /// See [`Search`]: `queries (queries, dim)`, `corpus (documents, dim)` → per query the best
    /// documents as (index, inner product), best first; ties go to the lower index.
    fn search(
        &self,
        p: Search,
        queries: &Self::Buffer,
        corpus: &Self::Corpus,
    ) -> impl Future<Output = Result<Vec<Vec<(u32, f32)>>>>;

    /// Reads the first `len` values of a buffer.
    fn read(&self, buffer: &Self::Buffer, len: usize) -> impl Future<Output = Result<Vec<f32>>>;

    /// Reads the router logits, `(rows, experts)`, before the softmax.
    fn read_routing(
        &self,
        routing: &Self::Routing,
        rows: usize,
    ) -> impl Future<Output = Result<Vec<f32>>>;

    /// Reads the keys and values of the first `tokens` tokens of a page table, without padding:
    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    fn export_pages(
        &self,
        pages: &Self::Pages,
        table: &[u32],
        tokens: usize,
    ) -> impl Future<Output = Result<Vec<f32>>>;

    /// Writes what [`Ops::export_pages`] reads, or a part of it: whole planes
    /// `(kv_heads, tokens, head_dim)` from plane `first` on. Plane `first` holds keys (even) or
    /// values (odd) of layer `first / 2`. The table must have pages for all `tokens`.
    fn import_pages(
        &self,
        pages: &mut Self::Pages,
        table: &[u32],
        tokens: usize,
        first: usize,
        values: &[f32],
    );
}
