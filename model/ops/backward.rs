//! The trait of gradients, which training uses and inference does not see.

use super::{
    AdamW, Attention, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd, Merge, Ops,
    PoolingSpan, Qkv, Result, RmsNorm, Route,
};
use std::future::Future;

/// The gradients of the fused operations, as a trait beside [`Ops`] that only training uses.
///
/// Each operation `f` of the forward pass that has inputs to differentiate has a twin `f_backward`,
/// specified by the formula of that name in [`crate::reference`]. `d` in front of a name means the
/// gradient of the loss with respect to it.
///
/// * **Written or added.** Gradients of weights (`dw`) are added to what the buffer holds, so that
///   a step may come in any number of batches. So is `dx`, the gradient of the residual stream,
///   because each half of a layer adds to the stream. All other gradients are written.
/// * **Frozen weights.** Where `dw` is `None`, its product is not computed.
/// * **Order.** A gradient of a weight is a sum over rows in their order, in f32: the same step
///   has the same bits.
/// * **Spans.** Keys and values of a span's past are those of the `past` rows right before its
///   first row: a causal answer may follow a bidirectional document of the same batch, and the
///   document's rows get the gradient of its keys and values.
/// * **Weights** are matrices of one f32 part ([`Backward::parameters`]) that an optimiser writes;
///   a frozen matrix may have any format that [`Ops::takes`].
/// * **Vectors** (`losses`, `dweight`, `dweights`) are one row.
/// * **Lengths** of [`Backward::clear`], [`Backward::copy`] and [`Backward::squares`] are whole rows.
/// * **Adapters.** [`Backward::merge`] makes a layer's matrices of frozen ones and adapters before the
///   layer runs, and [`Backward::merge_backward`] takes the adapters' gradients from those of the
///   matrices: all other operations know nothing of them.
/// * **Pages** are f32 and not shared between layers that are differentiated later.
pub trait Backward: Ops {
    /// Creates a matrix `(rows, cols)` in f32 that can be written.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn parameters(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Matrix>;

    /// Reads the values of a matrix that [`Backward::parameters`] made.
    fn read_parameters(&self, w: &Self::Matrix) -> impl Future<Output = Result<Vec<f32>>>;

    /// Sets the first `len` values of a buffer to zero.
    fn clear(&self, buffer: &mut Self::Buffer, len: usize);

    /// Copies the first `len` values of a buffer.
    fn copy(&self, from: &Self::Buffer, len: usize, to: &mut Self::Buffer);

    /// Returns the sum of the squares of the first `len` values, added in f64 or as precisely.
    fn squares(&self, buffer: &Self::Buffer, len: usize) -> impl Future<Output = Result<f64>>;

    /// Computes [`Ops::attention`] and keeps, for each row and head, the logarithm of the sum of
    /// the exponentials of its scores: `lse (rows, heads)`.
    fn attention_kept(
        &self,
        p: Attention,
        q: &Self::Buffer,
        pages: &Self::Pages,
        batch: &Self::Batch,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );

    /// Computes [`Ops::gate_up`] and keeps both products: `kept (rows, 2 · hidden)` =
    /// `[h · W1ᵀ; h · W3ᵀ]`.
    fn gate_up_kept(
        &self,
        p: GateUp,
        h: &Self::Buffer,
        w: &Self::Matrix,
        out: &mut Self::Buffer,
        kept: &mut Self::Buffer,
    );

    /// Computes [`Ops::expert_gate_up`] and keeps both products, `kept (rows · top_k, 2 · hidden)`,
    /// sorted by expert.
    fn expert_gate_up_kept(
        &self,
        p: Expert,
        h: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        out: &mut Self::Buffer,
        kept: &mut Self::Buffer,
    );

    /// Adds the rows of `dx (rows, dim)` to the tokens' rows of `dtable (vocab, dim)`.
    fn embed_backward(
        &self,
        dim: u32,
        batch: &Self::Batch,
        dx: &Self::Buffer,
        dtable: &mut Self::Buffer,
    );

    /// `x`, `dh (rows, dim)`, `weight`, `dweight (dim)`; adds to `dx (rows, dim)`.
    fn rmsnorm_backward(
        &self,
        p: RmsNorm,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        dh: &Self::Buffer,
        dx: &mut Self::Buffer,
        dweight: Option<&mut Self::Buffer>,
    );

    /// `dq (rows, heads, head_dim)`, `dk`, `dv (rows, kv_heads, head_dim)` → `dh (rows, dim)`,
    /// and adds to `dw ((heads + 2 · kv_heads) · head_dim, dim)`. `dq` and `dk` are those after
    /// RoPE.
    #[expect(clippy::too_many_arguments, reason = "what the projection is of")]
    fn qkv_backward(
        &self,
        p: Qkv,
        h: &Self::Buffer,
        w: &Self::Matrix,
        batch: &Self::Batch,
        dqkv: [&Self::Buffer; 3],
        dh: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// `q`, `out`, `dout (rows, heads, head_dim)` and `lse (rows, heads)` as
    /// [`Backward::attention_kept`] left them → `[dq, dk, dv]`, see [`Backward::qkv_backward`].
    #[expect(clippy::too_many_arguments, reason = "attention's, and what is kept")]
    fn attention_backward(
        &self,
        p: Attention,
        q: &Self::Buffer,
        pages: &Self::Pages,
        batch: &Self::Batch,
        out: &Self::Buffer,
        lse: &Self::Buffer,
        dout: &Self::Buffer,
        dqkv: [&mut Self::Buffer; 3],
    );

    /// `a (rows, inner)`, `w (outer, inner)`, `dx (rows, outer)` → `da (rows, inner)`, and adds to
    /// `dw (outer, inner)`.
    fn linear_add_backward(
        &self,
        p: LinearAdd,
        a: &Self::Buffer,
        w: &Self::Matrix,
        dx: &Self::Buffer,
        da: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// `h (rows, dim)`, `w (2 · hidden, dim)`, `dout (rows, hidden)`, and what
    /// [`Backward::gate_up_kept`] kept → `dh (rows, dim)`, and adds to `dw (2 · hidden, dim)`.
    /// `kept` holds its own gradient afterwards.
    #[expect(clippy::too_many_arguments, reason = "gate_up's, and what is kept")]
    fn gate_up_backward(
        &self,
        p: GateUp,
        h: &Self::Buffer,
        w: &Self::Matrix,
        kept: &mut Self::Buffer,
        dout: &Self::Buffer,
        dh: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// `a (rows · top_k, hidden)` sorted by expert, `w (experts · dim, hidden)`, `dx (rows, dim)` →
    /// `da`, shaped as `a`, and the gradient of the weights of the chosen experts,
    /// `dweights (rows · top_k)`, in the order of `a`; adds to `dw`.
    #[expect(clippy::too_many_arguments, reason = "expert_down_add's, and three gradients")]
    fn expert_down_add_backward(
        &self,
        p: Expert,
        a: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        dx: &Self::Buffer,
        da: &mut Self::Buffer,
        dweights: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// `h (rows, dim)`, `w (experts, dim)`, `dweights` of [`Backward::expert_down_add_backward`] →
    /// `dh (rows, dim)`, and adds to `dw (experts, dim)`. `balance (experts)` is the gradient of
    /// the loss with respect to each row's probability of each expert, the same for all rows: that
    /// of the router's auxiliary loss.
    #[expect(clippy::too_many_arguments, reason = "route's, and what flows into it")]
    fn route_backward(
        &self,
        p: Route,
        h: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        dweights: &Self::Buffer,
        balance: &[f32],
        dh: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// As [`Backward::gate_up_backward`] for each row's experts, but **adds** to `dh (rows, dim)`.
    #[expect(clippy::too_many_arguments, reason = "expert_gate_up's, and what is kept")]
    fn expert_gate_up_backward(
        &self,
        p: Expert,
        h: &Self::Buffer,
        w: &Self::Matrix,
        routing: &Self::Routing,
        kept: &mut Self::Buffer,
        dout: &Self::Buffer,
        dh: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// Adds the gradients of pooled vectors, `dout (spans, dim)`, to those of the hidden states,
    /// `dh (rows, dim)`. No row is in two spans. The vectors are not normalised:
    /// [`Backward::contrastive`] does that.
    fn pool_backward(
        &self,
        dim: u32,
        spans: &[PoolingSpan],
        dout: &Self::Buffer,
        dh: &mut Self::Buffer,
    );

    /// See [`CrossEntropy`]. `h (…, dim)` is after the final norm; `rows` are those that predict,
    /// none twice, `targets` the tokens that follow them, and `scales` the weight of each in the
    /// loss. Writes `losses (rows.len())`, without the weights, and adds the gradients of the
    /// weighted sum to `dh (…, dim)` and `dw (vocab, dim)`. The logits of a few rows exist at a
    /// time.
    #[expect(clippy::too_many_arguments, reason = "logits', and two gradients")]
    fn cross_entropy(
        &self,
        p: CrossEntropy,
        rows: &[u32],
        targets: &[u32],
        scales: &[f32],
        h: &Self::Buffer,
        w: &Self::Matrix,
        losses: &mut Self::Buffer,
        dh: &mut Self::Buffer,
        dw: Option<&mut Self::Buffer>,
    );

    /// See [`Contrastive`]: `queries (queries, dim)` and `passages (passages, dim)`, not
    /// normalised. Writes `losses (queries)`, without `scale`, and adds the gradients of `scale`
    /// times their sum to `dqueries` and `dpassages`.
    #[expect(clippy::too_many_arguments, reason = "two inputs with their gradients")]
    fn contrastive(
        &self,
        p: Contrastive,
        wanted: &[Contrast],
        queries: &Self::Buffer,
        passages: &Self::Buffer,
        losses: &mut Self::Buffer,
        dqueries: &mut Self::Buffer,
        dpassages: &mut Self::Buffer,
    );

    /// See [`Merge`]: writes rows of `out`, a matrix of [`Backward::parameters`] shaped as `w`. `ba` are
    /// `B (rows, rank)` and `A (rank, cols)`, also of [`Backward::parameters`]; without them the rows
    /// become those of `w`, which may be in any plain format. `mask (cols)` is 1 throughout if absent.
    fn merge(
        &self,
        p: Merge,
        w: &Self::Matrix,
        ba: Option<[&Self::Matrix; 2]>,
        mask: Option<&Self::Buffer>,
        out: &mut Self::Matrix,
    );

    /// `dw`, shaped as `w` of [`Backward::merge`], and adds to `[dB, dA]`.
    fn merge_backward(
        &self,
        p: Merge,
        dw: &Self::Buffer,
        ba: [&Self::Matrix; 2],
        mask: Option<&Self::Buffer>,
        dba: [&mut Self::Buffer; 2],
    );

    /// See [`AdamW`], whose `1 − βᵗ` are computed in f64: writes `w`, a matrix of
    /// [`Backward::parameters`], and the two moments, which are shaped as it.
    fn adamw(
        &self,
        p: AdamW,
        gradient: &Self::Buffer,
        moments: [&mut Self::Buffer; 2],
        w: &mut Self::Matrix,
    );
}
