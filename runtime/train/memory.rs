//! The plan of memory: what training will take, before it takes it.

use crate::adapters::sizes;
use gritlm_model::adapter::Lora;
use gritlm_model::config::Config;
use gritlm_model::ops::PAGE;
use std::fmt;

/// Bytes that a run takes at most, besides what the program itself and the system need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Weights: in f32 or, with an adapter, those of the base model as they are stored, one layer and
    /// the adapter in f32.
    pub weights: u64,
    /// Gradients in f32; with an adapter, of one layer and of the adapter.
    pub gradients: u64,
    /// Both moments of the optimiser in f32.
    pub moments: u64,
    /// Activations of a chunk, kept for the way back or needed at a time.
    pub activations: u64,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// Whether the activations of all layers are kept.
    pub keep_all: bool,
    /// Free bytes on the device, where it reports them.
    pub free: Option<u64>,
}

impl Plan {
    /// Plans full training with chunks of `chunk` tokens.
    pub fn new(config: &Config, chunk: usize, keep_all: bool, free: Option<u64>) -> Self {
        let parameters = 4 * config.parameters();
        Self {
            weights: parameters,
            gradients: parameters,
            moments: 2 * parameters,
            activations: activations(config, chunk, keep_all),
            chunk,
            keep_all,
            free,
        }
    }

    /// Plans the training of an adapter beside `base` bytes of frozen weights instead.
    #[must_use]
    pub fn with_lora(mut self, config: &Config, lora: &Lora, base: u64) -> Self {
        let [adapter, layer] = sizes(lora, config);
        self.weights = base + layer + adapter;
        self.gradients = layer + adapter;
        self.moments = 2 * adapter;
        self
    }

    /// Returns all bytes together.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.moments + self.activations
    }

    /// Returns whether the run fits into the free memory, as far as it is known.
    pub fn fits(&self) -> bool {
        self.free.is_none_or(|free| self.total() <= free)
    }
}

/// Returns the bytes of a chunk's activations: those of `pass.rs`, of the logits of a block of rows
/// and of their gradients.
fn activations(config: &Config, chunk: usize, keep_all: bool) -> u64 {
    let c = config;
    let top_k = c.experts.map_or(1, |e| e.top_k);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let layer = 3 * c.dim + 2 * q + c.heads + top_k * 3 * c.hidden;
    let kept = if keep_all { c.layers } else { 1 };
    // Residual stream, hidden states, their gradients, and the inputs of all layers; gradients of a
    // layer, and what its products copy.
    let shared = (5 + c.layers) * c.dim + 3 * q + 4 * kv + top_k * 2 * c.hidden;
    let rows = (shared + kept * layer) * chunk;
    // A page for each sequence, of which there is at most one for each 32 tokens.
    let pages = kept * 2 * kv * PAGE * (chunk.div_ceil(32) + chunk.div_ceil(PAGE));
    let logits = (1 << 24).max(16 * c.vocab);
    4 * (rows + pages + logits) as u64
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let kept = if self.keep_all { "all layers" } else { "one layer at a time" };
        write!(
            f,
            "memory: {:.2} GB (weights {:.2}, gradients {:.2}, moments {:.2}, activations of {} \
             tokens and {kept} {:.2})",
            gb(self.total()),
            gb(self.weights),
            gb(self.gradients),
            gb(self.moments),
            self.chunk,
            gb(self.activations),
        )?;
        match self.free {
            Some(free) => write!(f, "; {:.2} GB are free", gb(free)),
            None => Ok(()),
        }
    }
}
