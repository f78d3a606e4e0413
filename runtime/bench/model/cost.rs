//! Lower bounds of the cost of a pass, from the formulas.
//!
//! A pass reads its weights once: the matrices and norms of the layers, its tokens' rows of the
//! embedding table, and the head if logits are requested. If n tokens are each routed to k of E
//! experts, the pass reads E · (1 − (1 − k/E)ⁿ) experts, the expected number of distinct ones
//! under even routing. Keys and values are written once, and read once by every sequence that
//! sees them.

use super::{Bench, Prompts};
use gritlm_model::ops::Mask;
use std::ops::Range;

/// Lower bounds of the cost of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) bytes: f64,
    pub(crate) flops: f64,
}

impl Bench<'_> {
    pub(super) fn embed_cost(&self, texts: usize, tokens: usize) -> Cost {
        let mask = self.engine.embedding_mask(self.engine.options().attn);
        self.pass_cost(mask, texts, 0, tokens, 0)
    }

    pub(crate) fn decode_cost(&self, batch: usize, context: usize) -> Cost {
        self.pass_cost(self.engine.generation_mask(), batch, context, 1, batch)
    }

    pub(super) fn prompts_cost(&self, prompts: &Prompts) -> Cost {
        let mask = self.engine.generation_mask();
        let costs = prompts.passes.iter().map(|(sequences, tokens)| {
            let last = tokens.end == prompts.ids[0].len();
            let wanted = if last { sequences.len() } else { 0 };
            self.pass_cost(mask, sequences.len(), tokens.start, tokens.len(), wanted)
        });
        costs.fold(Cost::default(), |sum, cost| Cost {
            bytes: sum.bytes + cost.bytes,
            flops: sum.flops + cost.flops,
        })
    }

    /// Returns the cost of a pass over `rows` tokens of each of `sequences` sequences, all with
    /// `past` tokens before them, that returns the logits of `wanted` tokens.
    fn pass_cost(
        &self,
        mask: Mask,
        sequences: usize,
        past: usize,
        rows: usize,
        wanted: usize,
    ) -> Cost {
        let c = self.config;
        let all_rows = (sequences * rows) as f64;
        let [dim, hidden, vocab, heads, qkv] =
            [c.dim, c.hidden, c.vocab, c.heads * c.head_dim, c.qkv_rows()].map(|n| n as f64);
        let (attention, one) = (dim * (qkv + heads), 3.0 * dim * hidden);
        // `read` is what a pass reads of the feed-forward, `through` what each row is multiplied
        // by, in parameters.
        let (read, through) = match c.experts {
            None => (one, one),
            Some(e) => {
                let (count, top_k) = (e.count as f64, e.top_k as f64);
                let used = count * (1.0 - (1.0 - top_k / count).powf(all_rows));
                (count * dim + used * one, count * dim + top_k * one)
            }
        };
        let head = if wanted > 0 { vocab * dim } else { 0.0 };
        let layers = c.layers as f64;
        let weights = layers * (attention + read + 2.0 * dim) + head + dim + all_rows * dim;

        let keys: Vec<Range<usize>> =
            (past..past + rows).map(|position| mask.keys(position, past + rows)).collect();
        let pairs: usize = keys.iter().map(Range::len).sum();
        let first = keys.iter().map(|k| k.start).min().unwrap_or(0);
        let seen = keys.iter().map(|k| k.end).max().unwrap_or(0) - first;
        let cached = (sequences * (seen + rows)) as f64;
        let products = 2.0 * all_rows * (attention + through);
        let scores = 4.0 * heads * (sequences * pairs) as f64;
        Cost {
            bytes: weights * self.weight + cached * self.cached,
            flops: layers * (products + scores) + 2.0 * wanted as f64 * head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gritlm::{Device, Engine, Options};

    fn engine(like: &str) -> Engine {
        let options = Options::default().device(Device::Cpu).batch_tokens(64);
        Engine::random(like, Some(2), &options).unwrap()
    }

    #[test]
    fn a_step_reads_what_the_model_has() {
        let engine = engine("tiny");
        let bench = Bench::new(&engine);
        let c = engine.config();
        assert_eq!(bench.weight, 2.0);
        // A step reads everything but the embedding table, of which it reads one row; and it
        // writes one token's keys and values.
        let parameters = c.parameters() as f64 - (c.vocab * c.dim) as f64 + c.dim as f64;
        let kv = (2 * c.layers * c.kv_heads * c.head_dim * 4) as f64;
        let cost = bench.decode_cost(1, 99);
        assert_eq!(cost.bytes, parameters * 2.0 + 101.0 * kv);
        let norms = ((2 * c.layers + 1) * c.dim) as f64;
        let products = 2.0 * (parameters - norms - c.dim as f64);
        let scores = (4 * c.heads * c.head_dim * 100 * c.layers) as f64;
        assert_eq!(cost.flops, products + scores);
    }

    #[test]
    fn experts_are_counted_as_often_as_they_differ() {
        let engine = engine("tiny-moe");
        let bench = Bench::new(&engine);
        let c = engine.config();
        let one = (3 * c.dim * c.hidden * c.layers) as f64 * 2.0;
        let experts = |rows: usize| {
            let pass = |rows| bench.pass_cost(engine.generation_mask(), rows, 0, 1, 0).bytes;
            let others = (rows - 1) as f64 * (c.dim as f64 * 2.0 + 2.0 * bench.cached);
            (pass(rows) - pass(1) - others) / one + 2.0
        };
        assert!((experts(2) - 3.5).abs() < 1e-9, "{}", experts(2));
        assert!((experts(400) - 8.0).abs() < 1e-9, "{}", experts(400));
    }

    #[test]
    fn a_prompt_in_parts_computes_the_same_and_reads_more() {
        let engine = engine("tiny");
        let bench = Bench::new(&engine);
        let parts = bench.prompts_cost(&Prompts::new(&bench, 1, 200));
        let whole = bench.pass_cost(engine.generation_mask(), 1, 0, 200, 1);
        assert_eq!(parts.flops, whole.flops);
        assert!(parts.bytes > 2.0 * whole.bytes, "{parts:?} {whole:?}");
        let passes = Prompts::new(&bench, 5, 30).passes;
        assert_eq!(passes, [(0..2, 0..30), (2..4, 0..30), (4..5, 0..30)]);
        let passes = Prompts::new(&bench, 2, 100).passes;
        assert_eq!(passes, [(0..1, 0..64), (0..1, 64..100), (1..2, 0..64), (1..2, 64..100)]);
    }
}
