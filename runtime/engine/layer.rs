//! A layer of the model, which inference and training both run.
//!
//! [`Layer`] is anything that a layer has one of per matrix: weights on a device, the names of the
//! tensors that they are made of, gradients. [`Pass`] runs the two halves of a layer, each from the
//! residual stream and back into it. What training keeps besides, it takes through [`Keep`].

use gritlm_model::config::Config;
use gritlm_model::ops::{Attention, Expert, GateUp, LinearAdd, Ops, Qkv, RmsNorm, Route};
use pollster::block_on;
use std::convert::Infallible;

/// One value for each matrix of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer<M> {
    /// Norm in front of attention, `(dim)`.
    pub attention_norm: M,
    /// [Wq; Wk; Wv], `((heads + 2 · kv_heads) · head_dim, dim)`.
    pub qkv: M,
    /// Projection of attention's output, `(dim, heads · head_dim)`.
    pub output: M,
    /// Norm in front of the feed-forward, `(dim)`.
    pub ffn_norm: M,
    /// The feed-forward.
    pub ffn: FeedForward<M>,
}

/// One value for each matrix of a feed-forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedForward<M> {
    /// That of a dense model.
    Dense {
        /// [W1; W3], `(2 · hidden, dim)`.
        gate_up: M,
        /// W2, `(dim, hidden)`.
        down: M,
    },
    /// That of a mixture.
    Mixture {
        /// The router, `(experts, dim)`.
        router: M,
        /// [W1; W3] of each expert, `(experts · 2 · hidden, dim)`.
        gate_up: M,
        /// W2 of each expert, `(experts · dim, hidden)`.
        down: M,
    },
}

impl Layer<Vec<String>> {
    /// Returns the names of the tensors that each matrix of layer `l` stacks by rows.
    pub fn names(config: &Config, l: usize) -> Self {
        let name = |part: &str| format!("model.layers.{l}.{part}.weight");
        let one = |part: &str| vec![name(part)];
        let ffn = match config.experts {
            None => FeedForward::Dense {
                gate_up: vec![name("mlp.gate_proj"), name("mlp.up_proj")],
                down: one("mlp.down_proj"),
            },
            Some(experts) => {
                let expert = |e: usize, w: &str| name(&format!("block_sparse_moe.experts.{e}.{w}"));
                let all = 0..experts.count;
                FeedForward::Mixture {
                    router: one("block_sparse_moe.gate"),
                    gate_up: all.clone().flat_map(|e| [expert(e, "w1"), expert(e, "w3")]).collect(),
                    down: all.map(|e| expert(e, "w2")).collect(),
                }
            }
        };
        Self {
            attention_norm: one("input_layernorm"),
            qkv: ["q", "k", "v"].map(|p| name(&format!("self_attn.{p}_proj"))).into(),
            output: one("self_attn.o_proj"),
            ffn_norm: one("post_attention_layernorm"),
            ffn,
        }
    }
}

impl<M> Layer<M> {
    /// Makes another value of each.
    ///
    /// # Errors
    /// The first that `make` returns.
    pub fn try_map<N, E>(&self, mut make: impl FnMut(&M) -> Result<N, E>) -> Result<Layer<N>, E> {
        block_on(self.as_ref().try_turn(async |one| make(one)))
    }

    /// Makes another value of each.
    pub fn map<N>(self, mut make: impl FnMut(M) -> N) -> Layer<N> {
        match block_on(self.try_turn(async |one| Ok::<N, Infallible>(make(one)))) {
            Ok(layer) => layer,
            Err(never) => match never {},
        }
    }

    /// Returns references to the values.
    pub fn as_ref(&self) -> Layer<&M> {
        Layer {
            attention_norm: &self.attention_norm,
            qkv: &self.qkv,
            output: &self.output,
            ffn_norm: &self.ffn_norm,
            ffn: match &self.ffn {
                FeedForward::Dense { gate_up, down } => FeedForward::Dense { gate_up, down },
                FeedForward::Mixture { router, gate_up, down } => {
                    FeedForward::Mixture { router, gate_up, down }
                }
            },
        }
    }

    /// Returns references to the values.
    pub fn as_mut(&mut self) -> Layer<&mut M> {
        Layer {
            attention_norm: &mut self.attention_norm,
            qkv: &mut self.qkv,
            output: &mut self.output,
            ffn_norm: &mut self.ffn_norm,
            ffn: match &mut self.ffn {
                FeedForward::Dense { gate_up, down } => FeedForward::Dense { gate_up, down },
                FeedForward::Mixture { router, gate_up, down } => {
                    FeedForward::Mixture { router, gate_up, down }
                }
            },
        }
    }

    /// Makes another value of each, one after the other.
    pub(crate) async fn try_turn<N, E>(
        self,
        mut make: impl AsyncFnMut(M) -> Result<N, E>,
    ) -> Result<Layer<N>, E> {
        Ok(Layer {
            attention_norm: make(self.attention_norm).await?,
            qkv: make(self.qkv).await?,
            output: make(self.output).await?,
            ffn_norm: make(self.ffn_norm).await?,
            ffn: match self.ffn {
                FeedForward::Dense { gate_up, down } => {
                    FeedForward::Dense { gate_up: make(gate_up).await?, down: make(down).await? }
                }
                FeedForward::Mixture { router, gate_up, down } => FeedForward::Mixture {
                    router: make(router).await?,
                    gate_up: make(gate_up).await?,
                    down: make(down).await?,
                },
            },
        })
    }

    /// Returns all values, in the order of the forward pass.
    pub fn all(&self) -> Vec<&M> {
        self.as_ref().into_all()
    }

    /// Returns all values, in the order of [`Layer::all`].
    pub fn all_mut(&mut self) -> Vec<&mut M> {
        self.as_mut().into_all()
    }

    fn into_all(self) -> Vec<M> {
        let mut all = vec![self.attention_norm, self.qkv, self.output, self.ffn_norm];
        match self.ffn {
            FeedForward::Dense { gate_up, down } => all.extend([gate_up, down]),
            FeedForward::Mixture { router, gate_up, down } => all.extend([router, gate_up, down]),
        }
        all
    }
}

impl<M, N> Layer<(M, N)> {
    /// Takes pairs apart.
    pub fn unzip(self) -> (Layer<M>, Layer<N>) {
        let Self { attention_norm, qkv, output, ffn_norm, ffn } = self;
        let (ffn, other_ffn) = match ffn {
            FeedForward::Dense { gate_up, down } => (
                FeedForward::Dense { gate_up: gate_up.0, down: down.0 },
                FeedForward::Dense { gate_up: gate_up.1, down: down.1 },
            ),
            FeedForward::Mixture { router, gate_up, down } => (
                FeedForward::Mixture { router: router.0, gate_up: gate_up.0, down: down.0 },
                FeedForward::Mixture { router: router.1, gate_up: gate_up.1, down: down.1 },
            ),
        };
        let other = Layer {
            attention_norm: attention_norm.1,
            qkv: qkv.1,
            output: output.1,
            ffn_norm: ffn_norm.1,
            ffn: other_ffn,
        };
        let (attention_norm, qkv, output) = (attention_norm.0, qkv.0, output.0);
        (Layer { attention_norm, qkv, output, ffn_norm: ffn_norm.0, ffn }, other)
    }
}

/// How the operations are computed whose intermediate values training keeps; inference keeps
/// nothing.
pub trait Keep<O: Ops> {
    /// Computes [`Ops::attention`].
    fn attention(
        &mut self,
        ops: &O,
        p: Attention,
        q: &O::Buffer,
        pages: &O::Pages,
        batch: &O::Batch,
        out: &mut O::Buffer,
    ) {
        ops.attention(p, q, pages, batch, out);
    }

    /// Computes [`Ops::gate_up`].
    fn gate_up(&mut self, ops: &O, p: GateUp, h: &O::Buffer, w: &O::Matrix, out: &mut O::Buffer) {
        ops.gate_up(p, h, w, out);
    }

    /// Computes [`Ops::expert_gate_up`].
    fn expert_gate_up(
        &mut self,
        ops: &O,
        p: Expert,
        h: &O::Buffer,
        w: &O::Matrix,
        routing: &O::Routing,
        out: &mut O::Buffer,
    ) {
        ops.expert_gate_up(p, h, w, routing, out);
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl<O: Ops> Keep<O> for Nothing {}

/// A batch that goes through the layers of a model.
pub struct Pass<'a, O: Ops> {
    /// The backend.
    pub ops: &'a O,
    /// Shape of the model.
    pub config: &'a Config,
    /// The batch.
    pub batch: &'a O::Batch,
    /// Its rows.
    pub rows: u32,
}

impl<O: Ops> Pass<'_, O> {
    /// Returns the parameters of a norm over all rows.
    pub fn norm(&self) -> RmsNorm {
        RmsNorm { rows: self.rows, dim: self.config.dim as u32, eps: self.config.norm_eps }
    }

    /// Returns the parameters of the projection to queries, keys and values; `layer` is the index
    /// of its keys and values in the pages.
    pub fn qkv(&self, layer: u32) -> Qkv {
        let Attention { heads, kv_heads, head_dim, layer } = self.attention(layer);
        Qkv { rows: self.rows, dim: self.config.dim as u32, heads, kv_heads, head_dim, layer }
    }

    /// Returns the parameters of attention.
    pub fn attention(&self, layer: u32) -> Attention {
        let c = self.config;
        Attention {
            heads: c.heads as u32,
            kv_heads: c.kv_heads as u32,
            head_dim: c.head_dim as u32,
            layer,
        }
    }

    /// Returns the parameters of the projection of attention's output.
    pub fn output(&self) -> LinearAdd {
        let c = self.config;
        LinearAdd { rows: self.rows, inner: (c.heads * c.head_dim) as u32, outer: c.dim as u32 }
    }

    /// Returns the parameters of a dense feed-forward's first half.
    pub fn gate_up(&self) -> GateUp {
        let c = self.config;
        GateUp { rows: self.rows, dim: c.dim as u32, hidden: c.hidden as u32 }
    }

    /// Returns the parameters of a dense feed-forward's second half.
    pub fn down(&self) -> LinearAdd {
        let c = self.config;
        LinearAdd { rows: self.rows, inner: c.hidden as u32, outer: c.dim as u32 }
    }

    /// Returns the parameters of a mixture's feed-forward; of one with a single expert if the model
    /// is dense.
    pub fn expert(&self) -> Expert {
        let c = self.config;
        let (experts, top_k) = c.experts.map_or((1, 1), |e| (e.count as u32, e.top_k as u32));
        Expert { rows: self.rows, dim: c.dim as u32, hidden: c.hidden as u32, experts, top_k }
    }

    /// Returns the parameters of the router.
    pub fn route(&self) -> Route {
        let Expert { rows, dim, experts, top_k, .. } = self.expert();
        Route { rows, dim, experts, top_k }
    }

    /// Runs the first half of a layer: adds attention over the keys and values of `pages` to
    /// `x (rows, dim)`. `h (rows, dim)`, `q` and `mixed (rows, heads, head_dim)` keep the normalised
    /// stream, the queries and what attention mixed.
    pub fn attend(
        &self,
        layer: u32,
        w: &Layer<&O::Matrix>,
        x: &mut O::Buffer,
        [h, q, mixed]: [&mut O::Buffer; 3],
        pages: &mut O::Pages,
        keep: &mut impl Keep<O>,
    ) {
        let ops = self.ops;
        ops.rmsnorm(self.norm(), x, w.attention_norm, h);
        ops.qkv(self.qkv(layer), h, w.qkv, self.batch, q, pages);
        keep.attention(ops, self.attention(layer), q, pages, self.batch, mixed);
        ops.linear_add(self.output(), mixed, w.output, x);
    }

    /// Runs the second half of a layer: adds the feed-forward to `x (rows, dim)`. `h (rows, dim)`,
    /// `inner (rows · top_k, hidden)` and `routing` keep the normalised stream, what is between the
    /// feed-forward's halves and, in a mixture, the experts of each row.
    pub fn feed_forward(
        &self,
        w: &Layer<&O::Matrix>,
        x: &mut O::Buffer,
        [h, inner]: [&mut O::Buffer; 2],
        routing: &mut O::Routing,
        keep: &mut impl Keep<O>,
    ) {
        let ops = self.ops;
        ops.rmsnorm(self.norm(), x, w.ffn_norm, h);
        match &w.ffn {
            FeedForward::Dense { gate_up, down } => {
                keep.gate_up(ops, self.gate_up(), h, gate_up, inner);
                ops.linear_add(self.down(), inner, down, x);
            }
            FeedForward::Mixture { router, gate_up, down } => {
                ops.route(self.route(), h, router, routing);
                keep.expert_gate_up(ops, self.expert(), h, gate_up, routing, inner);
                ops.expert_down_add(self.expert(), inner, down, routing, x);
            }
        }
    }
}
