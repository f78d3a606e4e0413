//! A chunk of sequences through the model and back.
//!
//! [`Tape::forward`] runs the layers and keeps what the way back needs, and [`Tape::backward`] adds
//! the gradients of all weights. Of each layer the residual stream is kept; the rest of a layer's
//! activations is kept for all layers, or, with activation checkpointing, for one: the way back
//! then runs each layer forward again, which costs a third more time and saves all but
//! 1 / layers of that memory.

use crate::Result;
use crate::pack::{Run, layout, pages};
use crate::parameters::{Parameters, WithGradient};
use crate::router::Routers;
use gritlm::layer::{FeedForward, Keep, Layer, Nothing, Pass};
use gritlm_model::config::Config;
use gritlm_model::format::Dtype;
use gritlm_model::ops::{
    Attention, Backward, CrossEntropy, Expert, GateUp, KvShape, Ops, PoolingSpan,
};
use pollster::block_on;

/// What one layer leaves behind, for its gradients.
struct Kept<O: Ops> {
    /// The residual stream between the halves.
    middle: O::Buffer,
    h: O::Buffer,
    q: O::Buffer,
    mixed: O::Buffer,
    lse: O::Buffer,
    ffn_h: O::Buffer,
    inner: O::Buffer,
    /// Both products of the feed-forward's first half.
    products: O::Buffer,
    routing: O::Routing,
}

/// Buffers of a chunk of at most `rows` rows, whose keys and values take `held` pages.
struct Room<O: Ops> {
    rows: usize,
    held: usize,
    pages: O::Pages,
    /// The residual stream, and its gradient.
    x: O::Buffer,
    dx: O::Buffer,
    /// After the final norm, and its gradient.
    hidden: O::Buffer,
    dhidden: O::Buffer,
    /// The residual stream as it enters each layer.
    inputs: Vec<O::Buffer>,
    kept: Vec<Kept<O>>,
    /// Gradients of the normalised stream, of q, k, v, of what attention mixed, of what is between
    /// the halves of the feed-forward, and of the weights of experts.
    dh: O::Buffer,
    dq: O::Buffer,
    dk: O::Buffer,
    dv: O::Buffer,
    dmixed: O::Buffer,
    dinner: O::Buffer,
    dweights: O::Buffer,
}

impl<O: Ops> Room<O> {
    /// Makes the buffers, with activations of `kept_layers` layers.
    fn new(ops: &O, c: &Config, kept_layers: usize, rows: usize, pages: usize) -> Result<Self> {
        let (experts, top_k) = c.experts.map_or((1, 1), |e| (e.count, e.top_k));
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let buffer = |width: usize| ops.buffer(rows, width);
        // A row for each expert of a row: a backend may pad rows.
        let chosen = |width: usize| ops.buffer(top_k * rows, width);
        let kept = || -> Result<Kept<O>> {
            Ok(Kept {
                middle: buffer(c.dim)?,
                h: buffer(c.dim)?,
                q: buffer(q)?,
                mixed: buffer(q)?,
                lse: buffer(c.heads)?,
                ffn_h: buffer(c.dim)?,
                inner: chosen(c.hidden)?,
                products: chosen(2 * c.hidden)?,
                routing: ops.routing(rows, experts, top_k)?,
            })
        };
        let (kv_heads, head_dim) = (c.kv_heads, c.head_dim);
        let shape = KvShape { layers: kept_layers, pages, kv_heads, head_dim, dtype: Dtype::F32 };
        Ok(Self {
            rows,
            held: pages,
            pages: ops.pages(shape)?,
            x: buffer(c.dim)?,
            dx: buffer(c.dim)?,
            hidden: buffer(c.dim)?,
            dhidden: buffer(c.dim)?,
            inputs: (0..c.layers).map(|_| buffer(c.dim)).collect::<Result<_, _>>()?,
            kept: (0..kept_layers).map(|_| kept()).collect::<Result<_>>()?,
            dh: buffer(c.dim)?,
            dq: buffer(q)?,
            dk: buffer(kv)?,
            dv: buffer(kv)?,
            dmixed: buffer(q)?,
            dinner: chosen(c.hidden)?,
            dweights: ops.buffer(1, top_k * rows)?,
        })
    }
}

/// Runs chunks forward and back, in buffers that it keeps.
pub(crate) struct Tape<O: Ops> {
    config: Config,
    frequencies: Vec<f32>,
    /// Layers whose activations are kept: all, or one.
    kept_layers: usize,
    room: Room<O>,
}

/// A chunk that has gone forward.
pub(crate) struct Chunk<O: Ops> {
    batch: O::Batch,
    pub(crate) rows: usize,
    /// What the routers did, where a mixture's were asked.
    pub(crate) routers: Option<Routers>,
}

/// Tokens that are learned: the rows that predict them, and the weight of each in the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Learned {
    pub(crate) rows: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) scales: Vec<f32>,
}

impl<O: Backward> Tape<O> {
    /// Makes a tape whose buffers grow with the chunks; `keep_all` keeps the activations of all
    /// layers.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn new(ops: &O, config: &Config, keep_all: bool) -> Result<Self> {
        let kept_layers = if keep_all { config.layers } else { 1 };
        Ok(Self {
            config: config.clone(),
            frequencies: config.rope_frequencies(),
            kept_layers,
            room: Room::new(ops, config, kept_layers, 1, 1)?,
        })
    }

    pub(crate) fn set_frequencies(&mut self, frequencies: Vec<f32>) {
        self.frequencies = frequencies;
    }

    /// Makes room for a chunk.
    fn reserve(&mut self, ops: &O, rows: usize, pages: usize) -> Result<()> {
        let (most_rows, most_pages) = (rows.max(self.room.rows), pages.max(self.room.held));
        if (most_rows, most_pages) != (self.room.rows, self.room.held) {
            // The old buffers go first: both would not fit where one fills the memory.
            self.room = Room::new(ops, &self.config, self.kept_layers, 1, 1)?;
            self.room = Room::new(ops, &self.config, self.kept_layers, most_rows, most_pages)?;
        }
        Ok(())
    }

    /// Runs a chunk to the hidden states after the final norm, on which nothing depends yet. With
    /// `keep` a [`Tape::backward`] may follow; with `ask_routers` the chunk says what a mixture's
    /// routers did.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn forward(
        &mut self,
        ops: &O,
        weights: &mut Parameters<O>,
        runs: &[Run<'_>],
        keep: bool,
        ask_routers: bool,
    ) -> Result<Chunk<O>> {
        let layout = layout(runs, &self.frequencies);
        let rows = layout.tokens.len();
        self.reserve(ops, rows, pages(runs))?;
        let routers = self.config.experts.filter(|_| ask_routers).map(Routers::new);
        let mut chunk = Chunk { batch: ops.batch(&layout)?, rows, routers };
        let room = &mut self.room;
        let pass = Pass { ops, config: &self.config, batch: &chunk.batch, rows: rows as u32 };
        ops.embed(&chunk.batch, weights.table().0, &mut room.x);
        for l in 0..self.config.layers {
            weights.hold(ops, l);
            let w = &weights.layer(l).map(|(matrix, _)| matrix);
            let held = l % room.kept.len();
            let (kept, pages) = (&mut room.kept[held], &mut room.pages);
            if keep {
                ops.copy(&room.x, rows * self.config.dim, &mut room.inputs[l]);
                run_layer(&pass, held as u32, w, &mut room.x, kept, pages);
            } else {
                let buffers = [&mut kept.h, &mut kept.q, &mut kept.mixed];
                pass.attend(held as u32, w, &mut room.x, buffers, pages, &mut Nothing);
                let buffers = [&mut kept.ffn_h, &mut kept.inner];
                pass.feed_forward(w, &mut room.x, buffers, &mut kept.routing, &mut Nothing);
            }
            if let Some(routers) = &mut chunk.routers {
                routers.add(&block_on(ops.read_routing(&kept.routing, rows))?);
            }
        }
        ops.rmsnorm(pass.norm(), &room.x, weights.norm().0, &mut room.hidden);
        ops.clear(&mut room.dhidden, rows * self.config.dim);
        Ok(chunk)
    }

    /// Returns the pooled vectors of a chunk, `(spans, dim)`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn pool(&self, ops: &O, spans: &[PoolingSpan]) -> Result<Vec<f32>> {
        let dim = self.config.dim;
        let mut out = ops.buffer(spans.len(), dim)?;
        ops.pool(dim as u32, spans, &self.room.hidden, &mut out);
        Ok(block_on(ops.read(&out, spans.len() * dim))?)
    }

    /// Adds the gradients of pooled vectors, `(spans, dim)`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn pool_backward(
        &mut self,
        ops: &O,
        spans: &[PoolingSpan],
        dvectors: &[f32],
    ) -> Result<()> {
        let dvectors = ops.upload(spans.len(), self.config.dim, dvectors)?;
        ops.pool_backward(self.config.dim as u32, spans, &dvectors, &mut self.room.dhidden);
        Ok(())
    }

    /// Adds the gradients of the next tokens' losses times `weight`, and returns these losses, without
    /// scales or weight.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn cross_entropy(
        &mut self,
        ops: &O,
        weights: &mut Parameters<O>,
        learned: &Learned,
        weight: f32,
        learn: bool,
    ) -> Result<Vec<f32>> {
        let p = CrossEntropy { dim: self.config.dim as u32, vocab: self.config.vocab as u32 };
        let mut losses = ops.buffer(1, learned.rows.len())?;
        let scales: Vec<f32> = learned.scales.iter().map(|scale| scale * weight).collect();
        let (head, gradient) = weights.head();
        ops.cross_entropy(
            p,
            &learned.rows,
            &learned.targets,
            &scales,
            &self.room.hidden,
            head,
            &mut losses,
            &mut self.room.dhidden,
            gradient.filter(|_| learn),
        );
        Ok(block_on(ops.read(&losses, learned.rows.len()))?)
    }

    /// Adds the gradients of all weights, from those of the hidden states of the last chunk that
    /// went forward. `balance (experts)` is that of [`Backward::route_backward`], zeros without.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn backward(
        &mut self,
        ops: &O,
        weights: &mut Parameters<O>,
        chunk: &Chunk<O>,
        balance: Option<&[f32]>,
    ) -> Result<()> {
        let (rows, c, room) = (chunk.rows, &self.config, &mut self.room);
        let pass = Pass { ops, config: c, batch: &chunk.batch, rows: rows as u32 };
        let zeros = vec![0.0; c.experts.map_or(0, |e| e.count)];
        let balance = balance.unwrap_or(&zeros);
        ops.clear(&mut room.dx, rows * c.dim);
        let (norm, dnorm) = weights.norm();
        ops.rmsnorm_backward(pass.norm(), &room.x, norm, &room.dhidden, &mut room.dx, dnorm);
        for l in (0..c.layers).rev() {
            weights.hold(ops, l);
            weights.begin_layer(ops);
            let layer = weights.layer(l);
            let held = l % room.kept.len();
            if room.kept.len() == 1 && l + 1 < c.layers {
                let w = &layer.as_ref().map(|(matrix, _)| *matrix);
                let (kept, pages) = (&mut room.kept[held], &mut room.pages);
                ops.copy(&room.inputs[l], rows * c.dim, &mut room.x);
                run_layer(&pass, held as u32, w, &mut room.x, kept, pages);
            }
            let Layer { attention_norm, qkv, output, ffn_norm, ffn } = layer;
            feed_forward_backward(&pass, ffn_norm, ffn, room, held, balance);
            attend_backward(&pass, [attention_norm, qkv, output], room, held, l);
            weights.end_layer(ops, l);
        }
        if let (_, Some(dtable)) = weights.table() {
            ops.embed_backward(c.dim as u32, &chunk.batch, &room.dx, dtable);
        }
        // What the next chunk uploads would reach the device before the work that is recorded here,
        // and may be put into a buffer that this work still reads.
        Ok(ops.submit()?)
    }
}

/// Runs a layer and keeps what its gradients need.
fn run_layer<O: Backward>(
    pass: &Pass<'_, O>,
    held: u32,
    w: &Layer<&O::Matrix>,
    x: &mut O::Buffer,
    kept: &mut Kept<O>,
    pages: &mut O::Pages,
) {
    let dim = pass.config.dim;
    let mut keep = Saved { lse: &mut kept.lse, products: &mut kept.products };
    let buffers = [&mut kept.h, &mut kept.q, &mut kept.mixed];
    pass.attend(held, w, x, buffers, pages, &mut keep);
    pass.ops.copy(x, pass.rows as usize * dim, &mut kept.middle);
    pass.feed_forward(w, x, [&mut kept.ffn_h, &mut kept.inner], &mut kept.routing, &mut keep);
}

/// Computes the operations whose intermediate values are kept.
struct Saved<'a, O: Ops> {
    lse: &'a mut O::Buffer,
    products: &'a mut O::Buffer,
}

impl<O: Backward> Keep<O> for Saved<'_, O> {
    fn attention(
        &mut self,
        ops: &O,
        p: Attention,
        q: &O::Buffer,
        pages: &O::Pages,
        batch: &O::Batch,
        out: &mut O::Buffer,
    ) {
        ops.attention_kept(p, q, pages, batch, out, self.lse);
    }

    fn gate_up(&mut self, ops: &O, p: GateUp, h: &O::Buffer, w: &O::Matrix, out: &mut O::Buffer) {
        ops.gate_up_kept(p, h, w, out, self.products);
    }

    fn expert_gate_up(
        &mut self,
        ops: &O,
        p: Expert,
        h: &O::Buffer,
        w: &O::Matrix,
        routing: &O::Routing,
        out: &mut O::Buffer,
    ) {
        ops.expert_gate_up_kept(p, h, w, routing, out, self.products);
    }
}

/// Adds the gradients of a layer's second half; `dx` becomes that of its input.
fn feed_forward_backward<O: Backward>(
    pass: &Pass<'_, O>,
    (norm, dnorm): WithGradient<'_, O>,
    ffn: FeedForward<WithGradient<'_, O>>,
    room: &mut Room<O>,
    held: usize,
    balance: &[f32],
) {
    let ops = pass.ops;
    let Room { kept, dx, dh, dinner, dweights, .. } = room;
    let Kept { middle, ffn_h: h, inner, products, routing, .. } = &mut kept[held];
    match ffn {
        FeedForward::Dense { gate_up: (gate_up, dgate_up), down: (down, ddown) } => {
            ops.linear_add_backward(pass.down(), inner, down, dx, dinner, ddown);
            ops.gate_up_backward(pass.gate_up(), h, gate_up, products, dinner, dh, dgate_up);
        }
        FeedForward::Mixture {
            router: (router, drouter),
            gate_up: (gate_up, dgate_up),
            down: (down, ddown),
        } => {
            let p = pass.expert();
            ops.expert_down_add_backward(p, inner, down, routing, dx, dinner, dweights, ddown);
            ops.route_backward(pass.route(), h, router, routing, dweights, balance, dh, drouter);
            ops.expert_gate_up_backward(p, h, gate_up, routing, products, dinner, dh, dgate_up);
        }
    }
    ops.rmsnorm_backward(pass.norm(), middle, norm, dh, dx, dnorm);
}

/// Adds the gradients of the first half of layer `l`, of its norm, qkv and output; `dx` becomes
/// that of the layer's input.
fn attend_backward<O: Backward>(
    pass: &Pass<'_, O>,
    [(norm, dnorm), (qkv, dqkv), (output, doutput)]: [WithGradient<'_, O>; 3],
    room: &mut Room<O>,
    held: usize,
    l: usize,
) {
    let (ops, batch, layer) = (pass.ops, pass.batch, held as u32);
    let Room { inputs, kept, pages, dx, dh, dq, dk, dv, dmixed, .. } = room;
    let Kept { h, q, mixed, lse, .. } = &kept[held];
    ops.linear_add_backward(pass.output(), mixed, output, dx, dmixed, doutput);
    let p = pass.attention(layer);
    ops.attention_backward(p, q, pages, batch, mixed, lse, dmixed, [dq, dk, dv]);
    ops.qkv_backward(pass.qkv(layer), h, qkv, batch, [dq, dk, dv], dh, dqkv);
    ops.rmsnorm_backward(pass.norm(), &inputs[l], norm, dh, dx, dnorm);
}
