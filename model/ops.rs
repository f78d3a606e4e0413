//! The dozen fused operations of a forward pass, as a trait that every backend implements.
//!
//! There is no tensor library: the forward pass is written once, against [`Ops`], and each
//! operation is what a good backend fuses into one or two launches. Operations record work; only
//! the `read_*` functions bring results to the host, and they are futures, because a browser cannot
//! block. Everything that changes from batch to batch (positions, page tables, spans) is in
//! [`Layout`], which a backend uploads once per step.
//!
//! Activations are f32 `(rows, columns)`; a backend may compute matrix products in its own type and
//! accumulates in f32. A buffer may be longer than the rows that an operation names.

use crate::weights::Tensor;
use rayon::prelude::*;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

/// Tokens in one KV page.
pub const PAGE: usize = 128;

/// A page table's entry for a page that a sliding window has freed.
pub const NO_PAGE: u32 = u32::MAX;

/// What a device refuses: no memory, a limit, a lost device. One line, for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// The result of asking a device for something.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// Which keys a query may see. An argument of the call, per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Key j for query i where j ≤ i, and with a window w where i − w < j: w keys, itself included.
    Causal {
        /// Window in tokens.
        window: Option<u32>,
    },
    /// Every key, and with a window w those where |i − j| < w.
    Bidirectional {
        /// Window in tokens, both ways.
        window: Option<u32>,
    },
}

impl Mask {
    /// Keys that query `i` of a sequence of `total` tokens sees.
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
    /// Tokens already in its pages; its first row stands at this position.
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
    /// Where each row's key and value go: page · [`PAGE`] + offset.
    pub slots: Vec<u32>,
    /// The sequences, in row order.
    pub spans: Vec<Span>,
    /// Page tables of all sequences, one after the other.
    pub tables: Vec<u32>,
    /// Rotary frequencies, `(head_dim / 2)`: pair d of a row turns by position · frequency d.
    pub frequencies: Vec<f32>,
}

impl Layout {
    /// What a GPU gets of it: tokens, slots, then for each row and pair the bits of the angle's cosine
    /// and sine, `(rows, head_dim / 2, 2)`. Angles here, because a shader's sine is too coarse for
    /// large ones.
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

/// Shape of the KV pools: per layer keys and values of `(pages, kv_heads, PAGE, head_dim)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
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

/// `[q; k; v] = h · [Wq; Wk; Wv]ᵀ`, rotary embedding on q and k, k and v into the pages.
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
    /// Whose pages.
    pub layer: u32,
}

/// `out = softmax(q kᵀ / √head_dim + mask) v` over the pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Whose pages.
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
    /// Columns of `out`; the stacked matrix has twice as many rows.
    pub hidden: u32,
}

/// Router: logits → softmax over all experts → the `top_k` largest, renormalised to sum 1.
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

/// The two halves of the expert feed-forward, grouped by expert.
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
    /// The sequence's first row, whatever the span.
    Cls,
    /// The span's last row.
    LastToken,
}

/// One vector to pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpan {
    /// The sequence's first row.
    pub row: u32,
    /// Rows of the sequence.
    pub rows: u32,
    /// Leading rows (the instruction) that do not count; fewer than `rows`.
    pub skip: u32,
    /// How.
    pub pooling: Pooling,
    /// Whether the result is divided by its length.
    pub normalize: bool,
}

/// Final norm and `lm_head` of chosen rows.
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

/// How one row's next token is drawn. The filters apply in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Ids seen so far (each once): logits > 0 are divided by `penalty`, others multiplied.
    pub seen: Vec<u32>,
    /// Repetition penalty; 1 for none.
    pub penalty: f32,
    /// Divides the logits; 0 takes the largest, the lowest id where several are.
    pub temperature: f32,
    /// Keep the k most likely; 0 for all.
    pub top_k: u32,
    /// Keep the fewest most likely that reach this probability; 1 for all.
    pub top_p: f32,
    /// Keep those at least this share of the most likely one's probability; 0 for all.
    pub min_p: f32,
    /// Uniform in [0, 1): which of the kept is drawn.
    pub uniform: f32,
    /// How many of the most likely tokens to report.
    pub logprobs: u32,
    /// Takes this token instead of drawing one, to learn its log-probability.
    pub given: Option<u32>,
}

impl Draw {
    /// The most likely token, and nothing told of others.
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

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Its log-probability under the model, before penalty, temperature and filters.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Numbers that stay where they are, in memory or in a mapped file, while somebody needs them.
pub type SharedVectors = Arc<dyn AsRef<[f32]> + Send + Sync>;

/// Scores of queries against a corpus, and the best of each.
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

/// What one op took on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Its stem.
    pub op: &'static str,
    /// Launches.
    pub launches: u64,
    /// Time on the device, in nanoseconds.
    pub nanoseconds: f64,
    /// Bytes that they read and wrote, at least.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
}

/// What a device has been asked to make since it was opened. Between two steps alike only `submits`
/// and `launches` grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// Buffers.
    pub buffers: u64,
    /// Bind groups.
    pub bind_groups: u64,
    /// Pipelines, or kernels looked up.
    pub pipelines: u64,
    /// Steps recorded, to be replayed (CUDA graphs).
    pub graphs: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Launches submitted.
    pub launches: u64,
}

/// The operations that a backend offers. What each computes is said by the formula of the same name
/// in [`crate::reference`].
pub trait Ops: Send {
    /// One weight matrix, possibly several stacked; or a vector, as one row.
    type Matrix: Send;
    /// Activations, f32, `(rows, columns)`.
    type Buffer: Send;
    /// Vectors to search: where they are, or on the device.
    type Corpus: Send + 'static;
    /// Keys and values of all layers.
    type Pages: Send;
    /// An uploaded [`Layout`].
    type Batch: Send;
    /// Which experts each row goes through, with what weight; and the rows sorted by expert.
    type Routing: Send;

    /// The device, for people: "cpu (AVX-512, 2 threads)".
    fn device(&self) -> String;

    /// The largest relative error of an op, by the numbers that it computes with: f32 here.
    fn bound(&self) -> f64 {
        1e-5
    }

    /// Runs a whole pass. A backend whose threads are a pool enters the pool here, once, instead of
    /// at each operation.
    fn enter<R: Send>(pass: impl FnOnce() -> R + Send) -> R {
        pass()
    }

    /// Sends what has been recorded on its way, where nothing will be read.
    ///
    /// # Errors
    /// With what has gone wrong since the last read.
    fn submit(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until everything recorded is done.
    ///
    /// # Errors
    /// With what has gone wrong since the last read.
    fn finish(&self) -> Result<()> {
        self.submit()
    }

    /// Bytes that are free on the device, where it tells.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Whether it computes on a tensor's own bytes, of which it makes no copy.
    fn in_place(&self) -> bool {
        false
    }

    /// Size of one cached key or value element, in bytes.
    fn cached_bytes(&self) -> usize {
        4
    }

    /// Bytes per second, read and written, of the device's own copy of `bytes` bytes: the median of
    /// five.
    ///
    /// # Errors
    /// When the device has no room.
    fn copy_rate(&self, bytes: u64) -> Result<f64>;

    /// Bytes per second of copies to the device from so many pinned bytes, where it takes such.
    ///
    /// # Errors
    /// When there is no room.
    fn pinned_rate(&self, bytes: u64) -> Result<Option<f64>> {
        let _ = bytes;
        Ok(None)
    }

    /// Flushes the device's caches by reading and writing so many bytes, for cold timings.
    ///
    /// # Errors
    /// When the device has no room.
    fn displace(&self, bytes: u64) -> Result<()>;

    /// The kernels of the last submit with the shapes of their launches, where the device was opened
    /// to measure.
    fn launched(&self) -> Vec<String> {
        Vec::new()
    }

    /// What each op took since the last call, where the device was opened to measure it.
    fn profile(&self) -> Vec<OpTime> {
        Vec::new()
    }

    /// What the device has made so far.
    fn created(&self) -> Created {
        Created::default()
    }

    /// Takes matrices of equal width, stacked by rows.
    ///
    /// # Errors
    /// When the device has no room.
    fn matrix(&self, parts: &[Tensor]) -> Result<Self::Matrix>;

    /// A buffer with undefined contents.
    ///
    /// # Errors
    /// When the device has no room.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer>;

    /// A buffer with these contents, `(rows, cols)`.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Buffer>;

    /// Vectors `(documents, dim)`, ready for any number of searches.
    ///
    /// # Errors
    /// When the device has no room.
    fn corpus(&self, documents: usize, dim: usize, vectors: SharedVectors) -> Result<Self::Corpus>;

    /// The KV pools.
    ///
    /// # Errors
    /// When the device has no room.
    fn pages(&self, shape: PoolShape) -> Result<Self::Pages>;

    /// Uploads a batch's metadata.
    ///
    /// # Errors
    /// When the device has no room.
    fn batch(&self, layout: &Layout) -> Result<Self::Batch>;

    /// Room for the routing of `rows` rows.
    ///
    /// # Errors
    /// When the device has no room.
    fn routing(&self, rows: usize, experts: usize, top_k: usize) -> Result<Self::Routing>;

    /// `x (rows, dim)` = rows of `table (vocab, dim)` named by the batch's tokens.
    fn embed(&self, batch: &Self::Batch, table: &Self::Matrix, x: &mut Self::Buffer);

    /// See [`RmsNorm`]: `x (rows, dim)`, `weight (dim)` → `h (rows, dim)`.
    fn rmsnorm(&self, p: RmsNorm, x: &Self::Buffer, weight: &Self::Matrix, h: &mut Self::Buffer);

    /// See [`Qkv`]: `h (rows, dim)` → `q (rows, heads, head_dim)` and the pages.
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

    /// [`GateUp`] for each row's experts: `h (rows, dim)`, `w (experts · 2 · hidden, dim)` →
    /// `out (rows · top_k, hidden)`, sorted by expert.
    fn expert_gate_up(
        &self,
        p: Expert,
        h: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        out: &mut Self::Buffer,
    );

    /// `x[row] += weight · (a · W2ᵀ)` for each row's experts: `a (rows · top_k, hidden)` sorted by
    /// expert, `w (experts · dim, hidden)`, `x (rows, dim)`.
    fn expert_down_add(
        &self,
        p: Expert,
        a: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        x: &mut Self::Buffer,
    );

    /// One vector per span: `h (rows, dim)` after the final norm → `out (spans, dim)`.
    fn pool(&self, dim: u32, spans: &[PoolSpan], h: &Self::Buffer, out: &mut Self::Buffer);

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

    /// Draws one token from each of the first `draws.len()` rows of `logits (…, vocab)`.
    fn sample(
        &self,
        vocab: u32,
        draws: &[Draw],
        logits: &Self::Buffer,
    ) -> impl Future<Output = Result<Vec<Drawn>>>;

    /// See [`Search`]: `queries (queries, dim)`, `corpus (documents, dim)` → per query the best
    /// documents' (index, inner product), best first, lower index first where equal.
    fn search(
        &self,
        p: Search,
        queries: &Self::Buffer,
        corpus: &Self::Corpus,
    ) -> impl Future<Output = Result<Vec<Vec<(u32, f32)>>>>;

    /// The first `len` values of a buffer.
    fn read(&self, buffer: &Self::Buffer, len: usize) -> impl Future<Output = Result<Vec<f32>>>;

    /// Router logits `(rows, experts)`, before the softmax.
    fn read_routing(
        &self,
        routing: &Self::Routing,
        rows: usize,
    ) -> impl Future<Output = Result<Vec<f32>>>;

    /// Keys and values of the first `tokens` tokens of a page table, without padding:
    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    fn export_pages(
        &self,
        pages: &Self::Pages,
        table: &[u32],
        tokens: usize,
    ) -> impl Future<Output = Result<Vec<f32>>>;

    /// Writes what [`Ops::export_pages`] reads, or a part of it: whole planes `(kv_heads, tokens,
    /// head_dim)` from plane `first` on, which is keys or values of layer `first / 2`. The table has
    /// pages for all `tokens`.
    fn import_pages(
        &self,
        pages: &mut Self::Pages,
        table: &[u32],
        tokens: usize,
        first: usize,
        values: &[f32],
    );
}
