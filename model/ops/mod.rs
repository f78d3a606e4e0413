//! The dozen fused operations of a forward pass, as a trait that every backend implements.
//!
//! There is no tensor library: the forward pass is written once, against [`Ops`], and each
//! operation is one that a good backend fuses into one or two launches. Most operations only
//! record work. `finish`, `sample`, `search`, `export_pages` and the `read*` functions wait for
//! the device; they are futures, because a browser cannot block. [`Layout`] holds everything that
//! changes from batch to batch (positions, page tables, spans); a backend uploads it once per
//! step.
//!
//! Activations are f32 `(rows, columns)`. A backend may compute matrix products in a type of its
//! own, but accumulates in f32. A buffer may be longer than the rows that an operation names.

mod backward;
mod compute;
mod layout;
mod params;

pub use backward::Backward;
pub use compute::{Compute, Products};
pub use layout::{KvShape, Layout, Mask, Span};
pub use params::{
    AdamW, Attention, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd, Logits,
    Match, Merge, Pooling, PoolingSpan, Qkv, RmsNorm, Route, SampleParams, SampledToken, Search,
};

use crate::weights::{Dtype, Tensor};
use std::future::Future;
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

/// Vectors in memory or in a mapped file, shared by reference counting.
pub type SharedVectors = Arc<dyn AsRef<[f32]> + Send + Sync>;

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

    /// Whether operations run on rayon's threads. Who calls many of them from another thread then
    /// enters the pool once, because each parallel loop that starts outside wakes it and sleeps.
    const THREADS: bool = false;

    /// Returns a human-readable name of the device, such as "cpu (AVX-512, 2 threads)".
    fn device(&self) -> String;

    /// Returns in which numbers matrix products are computed.
    fn compute(&self) -> Compute {
        Compute::F32
    }

    /// Returns whether [`Ops::matrix`] takes weights of this format. Every backend takes plain
    /// elements.
    fn takes(&self, dtype: Dtype) -> bool {
        !dtype.is_quantized()
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
    fn finish(&self) -> impl Future<Output = Result<()>> {
        std::future::ready(self.submit())
    }

    /// Returns the free bytes on the device, where the device reports them.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Returns whether the device is lost, as after a reset by its driver: every call fails, until it is
    /// opened again.
    fn is_lost(&self) -> bool {
        false
    }

    /// Returns whether the backend computes on a tensor's own bytes, without a copy.
    fn in_place(&self) -> bool {
        false
    }

    /// Returns the formats that [`Ops::pages`] can have, the one it has by default first.
    fn page_dtypes(&self) -> &'static [Dtype] {
        &[Dtype::F32]
    }

    /// Loads matrices of equal width, stacked by rows.
    ///
    /// # Errors
    /// When the device is out of memory, or does not take the format of a part
    /// ([`Ops::takes`]).
    fn matrix(&self, parts: &[Tensor]) -> Result<Self::Matrix>;

    /// Returns in which numbers [`Ops::matrix_in`] has matrices multiplied where `asked` is asked for,
    /// or, with `None`, the fastest; `quantized` says whether all of their parts are. `None` if this
    /// backend has not those numbers.
    fn products(&self, asked: Option<Compute>, quantized: bool) -> Option<Products> {
        let _ = quantized;
        let all = Products::all(self.compute());
        asked.is_none_or(|asked| asked == self.compute()).then_some(all)
    }

    /// Loads matrices like [`Ops::matrix`], to be multiplied in numbers from [`Ops::products`].
    ///
    /// # Errors
    /// As [`Ops::matrix`].
    fn matrix_in(&self, _products: Products, parts: &[Tensor]) -> Result<Self::Matrix> {
        self.matrix(parts)
    }

    /// Loads matrices like [`Ops::matrix_in`], of tensors that may have to be read first
    /// ([`Tensor::is_away`]). A backend that copies them may read them in pieces.
    ///
    /// # Errors
    /// As [`Ops::matrix`], and when a tensor cannot be read.
    fn matrix_read<E: From<DeviceError> + From<crate::Error>>(
        &self,
        products: Products,
        parts: &[Tensor],
    ) -> impl Future<Output = std::result::Result<Self::Matrix, E>> {
        async move {
            let mut read = Vec::with_capacity(parts.len());
            for part in parts {
                read.push(part.read().await?);
            }
            Ok(self.matrix_in(products, &read)?)
        }
    }

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

    /// Allocates the KV cache, in one of [`Ops::page_dtypes`].
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
    /// documents, best first; ties go to the lower index.
    fn search(
        &self,
        p: Search,
        queries: &Self::Buffer,
        corpus: &Self::Corpus,
    ) -> impl Future<Output = Result<Vec<Vec<Match>>>>;

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
