//! `bench model`: measures a whole model on a device through [`Engine::run`], the path of every
//! caller. Bytes and operations are lower bounds.

mod cost;

use super::record::{Limits, Record, Row, Step, StepOp};
use super::shape;
use super::time::repeated;
use crate::Result;
use cost::Cost;
use gritlm::Engine;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvCache;
use gritlm_model::config::Config;
use gritlm_model::ops::{PAGE, Pooling, SampleParams};
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// What to measure. Pairs hold the number of sequences and the tokens of each.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// Texts to embed in one pass.
    pub embed: Vec<(usize, usize)>,
    /// Prompts to prefill, up to the logits of their last token.
    pub prefill: Vec<(usize, usize)>,
    /// Tokens of the prompt for which the time to the first token of the answer is measured.
    pub first_token: usize,
    /// Decode steps: sequences, and tokens that each has in the KV cache before the step.
    pub decode: Vec<(usize, usize)>,
    /// The decode step and the embedding pass that [`steps`] breaks down by op.
    pub apart: [(usize, usize); 2],
    /// Repeats of each figure; fewer if they would take longer than `seconds`.
    pub repeats: u32,
    /// Only figures whose op and shape contain this.
    pub filter: String,
    /// Seconds per figure. A figure that would take longer even at the device's limits is left
    /// out.
    pub seconds: f64,
}

/// Lengths of texts to embed, in tokens.
const LENGTHS: [usize; 4] = [32, 128, 512, 2048];

/// Sequences that decode together, and tokens in the KV cache of each before the step.
const BATCHES: [usize; 4] = [1, 4, 16, 64];

const CONTEXTS: [usize; 3] = [128, 1024, 4096];

/// Decode steps before the timed ones: the device chooses its kernels in the first, and may
/// record the second to replay it.
const WARM: usize = 2;

impl ModelPlan {
    /// Returns the full plan, for an engine with `batch_tokens` tokens per pass.
    pub fn new(batch_tokens: usize, repeats: u32) -> Self {
        let fill = |tokens: usize| ((batch_tokens / tokens).max(1), tokens);
        let alone = LENGTHS.map(|tokens| (1, tokens));
        let mut embed: Vec<_> = alone.into_iter().chain(LENGTHS.map(fill)).collect();
        embed.sort_by_key(|&(texts, tokens)| (tokens, texts));
        embed.dedup();
        let decode = BATCHES.iter().flat_map(|&batch| CONTEXTS.map(|context| (batch, context)));
        Self {
            embed,
            prefill: vec![(1, 512), (1, 2048), (1, 4096), (4, 512)],
            first_token: 512,
            // Other programs measure decoding from an empty context.
            decode: [(1, 0)].into_iter().chain(decode).collect(),
            apart: [(1, 1024), fill(512)],
            repeats,
            filter: String::new(),
            seconds: 20.0,
        }
    }

    /// Returns a plan with few and small figures.
    pub fn quick(repeats: u32) -> Self {
        Self {
            embed: vec![(4, 32)],
            prefill: vec![(1, 64)],
            first_token: 32,
            decode: vec![(1, 16), (4, 16)],
            apart: [(1, 16), (4, 32)],
            repeats,
            filter: String::new(),
            seconds: 10.0,
        }
    }
}

/// Adds the figures of the plan to the record, and a line for each that cannot be measured.
/// `progress` receives the number of figures done and their total; an error that it returns ends
/// the measurement.
///
/// # Errors
/// The error of `progress`.
pub fn model(
    engine: &Engine,
    limits: &Limits,
    plan: &ModelPlan,
    record: &mut Record,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let bench = Bench::new(engine);
    let of = |op: &'static str, pairs: &[(usize, usize)]| {
        pairs.iter().map(|&pair| (op, pair)).collect::<Vec<_>>()
    };
    let first = [(1, plan.first_token)];
    let figures = [
        of("embed", &plan.embed),
        of("prefill", &plan.prefill),
        of("first token", &first),
        of("decode", &plan.decode),
    ];
    let mut figures = figures.concat();
    figures.retain(|&(op, (sequences, tokens))| {
        format!("{op} {}", named_shape(op, sequences, tokens, "")).contains(&plan.filter)
    });
    for (done, &(op, (sequences, tokens))) in (1..).zip(&figures) {
        match bench.row(op, sequences, tokens, limits, plan) {
            Ok(row) => record.rows.push(row),
            Err(problem) => {
                let shape = named_shape(op, sequences, tokens, &bench.name);
                record.missing.push(format!("{} {op} {shape}: {problem}", limits.device));
            }
        }
        progress(done, figures.len() as u64)?;
    }
    Ok(())
}

/// Adds to the record how the time of a decode step and of an embedding pass is divided among the
/// ops; nothing on the CPU. The engine must have been opened with
/// [`profile`](gritlm::Options::profile), and is therefore not suited to measuring speed with
/// [`model`].
///
/// # Errors
/// When a pass fails.
pub fn steps(engine: &Engine, device: &str, plan: &ModelPlan, record: &mut Record) -> Result<()> {
    let bench = Bench::new(engine);
    let [(batch, context), (texts, tokens)] = plan.apart;
    let mut decoding = Decoding::new(&bench, batch, context)?;
    engine.profile();
    decoding.step(&bench)?;
    record.steps.extend(step(engine, device, "decode", &bench, batch, context));
    drop(decoding);

    let text = Prompts::new(&bench, texts, tokens);
    bench.embed(&text)?;
    engine.profile();
    bench.embed(&text)?;
    record.steps.extend(step(engine, device, "embed", &bench, texts, tokens));
    Ok(())
}

/// Returns what the device has measured since the last call; `None` if it measures nothing.
fn step(
    engine: &Engine,
    device: &str,
    op: &'static str,
    bench: &Bench<'_>,
    sequences: usize,
    tokens: usize,
) -> Option<Step> {
    let ops = engine.profile().into_iter().map(|time| StepOp {
        op: time.op.into(),
        launches: time.launches,
        us: time.nanoseconds / 1e3,
        bytes: time.bytes as f64,
        flops: time.flops as f64,
    });
    let ops: Vec<StepOp> = ops.collect();
    let step = format!("{op}, {}", named_shape(op, sequences, tokens, &bench.name));
    (!ops.is_empty()).then(|| Step { device: device.into(), step, ops })
}

fn named_shape(op: &str, sequences: usize, tokens: usize, model: &str) -> String {
    let [sequences, tokens] = [sequences, tokens].map(|n| n as u64);
    let shape = match op {
        "decode" => shape::decode(sequences, tokens),
        "embed" => shape::embed(sequences, tokens),
        _ => shape::prefill(sequences, tokens),
    };
    shape::of(&shape, model)
}

/// Returns the model's name in shapes: `gritlm-7b` for `GritLM/GritLM-7B` and for
/// `/models/GritLM-7B`.
pub(super) fn short_name(model: &str) -> String {
    let last = Path::new(model).file_name().map(|name| name.to_string_lossy().to_lowercase());
    last.unwrap_or_else(|| model.to_lowercase())
}

/// An engine, and what is needed to compute the cost of its passes.
pub(super) struct Bench<'a> {
    engine: &'a Engine,
    config: &'a Config,
    pub(super) name: String,
    /// Bytes of one weight (`weight`), and of one token's keys and values (`cached`).
    weight: f64,
    cached: f64,
}

/// Prompts of random ids, and the passes that run them: ranges of sequences and of their tokens.
struct Prompts {
    ids: Vec<Vec<u32>>,
    passes: Vec<(Range<usize>, Range<usize>)>,
}

impl Prompts {
    /// Divides the prompts into passes of the engine's size: several short ones together, long
    /// ones in parts.
    fn new(bench: &Bench<'_>, sequences: usize, tokens: usize) -> Self {
        let ids = |n: usize| random(tokens, n as u64, bench.config.vocab);
        let budget = bench.engine.options().batch_tokens;
        let (together, part) = ((budget / tokens.max(1)).max(1), budget.min(tokens).max(1));
        let cut = |all: usize, by: usize| {
            (0..all).step_by(by).map(move |start| start..(start + by).min(all))
        };
        let passes =
            cut(sequences, together).flat_map(|s| cut(tokens, part).map(move |t| (s.clone(), t)));
        Self { ids: (0..sequences).map(ids).collect(), passes: passes.collect() }
    }
}

impl<'a> Bench<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        let config = engine.config();
        Self {
            engine,
            config,
            name: short_name(engine.name()),
            weight: engine.loading().bytes as f64 / config.parameters() as f64,
            cached: engine.kv_bytes_per_token() as f64,
        }
    }

    /// Measures one figure, or returns why it cannot be measured.
    fn row(
        &self,
        op: &'static str,
        sequences: usize,
        tokens: usize,
        limits: &Limits,
        plan: &ModelPlan,
    ) -> Result<Row, String> {
        let more = if op == "decode" { WARM + plan.repeats as usize } else { 0 };
        let needed = sequences * (tokens + more).next_multiple_of(PAGE);
        let room = self.engine.options().kv_tokens.next_multiple_of(PAGE);
        if needed > room {
            return Err(format!("{needed} tokens of KV pages, `kv_tokens` has {room}"));
        }
        let prompts = Prompts::new(self, sequences, tokens);
        let (before, cost) = match op {
            "embed" => (Cost::default(), self.embed_cost(sequences, tokens)),
            "decode" => (self.prompts_cost(&prompts), self.decode_cost(sequences, tokens)),
            _ => (Cost::default(), self.prompts_cost(&prompts)),
        };
        // This is the time at the device's limits; a rate that was not measured sets no bound.
        let least = |cost: Cost| limits.share(cost.bytes, cost.flops, 1e6).1;
        let least = least(before) + least(cost);
        if least.is_finite() && least > plan.seconds {
            return Err(format!(
                "{least:.0} s at the device's limits, more than {:.0}",
                plan.seconds
            ));
        }

        let said = |problem: crate::Error| problem.to_string();
        let mut run: Box<dyn FnMut() -> Result<()>> = match op {
            "embed" => Box::new(|| self.embed(&prompts)),
            "prefill" => Box::new(|| {
                self.prompt(&prompts, &mut self.caches(sequences), &Want::Logits).map(drop)
            }),
            "decode" => {
                let mut decoding = Decoding::new(self, sequences, tokens).map_err(said)?;
                Box::new(move || decoding.step(self))
            }
            _ => Box::new(|| {
                self.prompt(
                    &prompts,
                    &mut self.caches(sequences),
                    &Want::Token(SampleParams::greedy()),
                )
                .map(drop)
            }),
        };
        // `Decoding::new` has run its warm-up steps; another would be one token further.
        let warm = u32::from(op != "decode");
        let times = repeated(plan.repeats, warm, plan.seconds, || {
            let start = Instant::now();
            run()?;
            Ok(start.elapsed().as_secs_f64())
        });
        let times = times.map_err(said)?;
        let us = times.median();
        let (limit, share) = limits.share(cost.bytes, cost.flops, us);
        let made = match op {
            "decode" => Some(sequences),
            "first token" => None,
            _ => Some(sequences * tokens),
        };
        Ok(Row {
            device: limits.device.clone(),
            suite: "model".into(),
            op: op.into(),
            shape: named_shape(op, sequences, tokens, &self.name),
            us,
            spread: times.spread(),
            repeats: times.count(),
            bytes: cost.bytes,
            flops: cost.flops,
            limit,
            share,
            tokens_s: made.map(|tokens| tokens as f64 / us * 1e6),
            ..Row::default()
        })
    }

    fn caches(&self, sequences: usize) -> Vec<KvCache> {
        (0..sequences).map(|_| self.engine.cache()).collect()
    }

    /// Embeds the texts in one pass, whatever its size.
    fn embed(&self, texts: &Prompts) -> Result<()> {
        let mask = self.engine.embedding_mask(self.engine.options().attn);
        let want = Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true };
        let mut caches = self.caches(texts.ids.len());
        let sequences = texts.ids.iter().zip(&mut caches);
        let mut sequences: Vec<Sequence<'_>> = sequences
            .map(|(tokens, cache)| Sequence { tokens, cache, mask, want: want.clone() })
            .collect();
        Ok(self.engine.run(&mut sequences).map(drop)?)
    }

    /// Runs prompts into caches and returns the requested output of their last tokens.
    fn prompt(
        &self,
        prompts: &Prompts,
        caches: &mut [KvCache],
        want: &Want,
    ) -> Result<Vec<Output>> {
        let (mask, mut outputs) = (self.engine.generation_mask(), Vec::new());
        for (sequences, tokens) in &prompts.passes {
            let ids = &prompts.ids[sequences.clone()];
            let last = ids.iter().any(|ids| ids.len() == tokens.end);
            let want = if last { want } else { &Want::Nothing };
            let pairs = ids.iter().zip(&mut caches[sequences.clone()]);
            let mut pass: Vec<Sequence<'_>> = pairs
                .map(|(ids, cache)| {
                    let (tokens, want) = (&ids[tokens.clone()], want.clone());
                    Sequence { tokens, cache, mask, want }
                })
                .collect();
            let found = self.engine.run(&mut pass)?;
            if last {
                outputs.extend(found);
            }
        }
        Ok(outputs)
    }
}

/// Sequences that decode together.
pub(super) struct Decoding {
    caches: Vec<KvCache>,
    /// The next input token of each sequence.
    tokens: Vec<u32>,
}

impl Decoding {
    /// Fills the KV caches to `context` tokens, warm-up steps included: the next step is the first
    /// to be timed.
    fn new(bench: &Bench<'_>, batch: usize, context: usize) -> Result<Self> {
        let start = |tokens: usize| -> Result<Self> {
            let mut caches = bench.caches(batch);
            bench.prompt(&Prompts::new(bench, batch, tokens), &mut caches, &Want::Nothing)?;
            Ok(Self { caches, tokens: random(batch, 0, bench.config.vocab) })
        };
        // A context too short to contain the warm-up steps leaves them to other sequences.
        let warm = if context < WARM { 0 } else { WARM };
        let mut decoding = start(context - warm)?;
        let mut other = if warm == 0 { Some(start(context)?) } else { None };
        for _ in 0..WARM {
            other.as_mut().unwrap_or(&mut decoding).step(bench)?;
        }
        Ok(decoding)
    }

    /// Starts one sequence from nothing, without warm-up.
    pub(super) fn fresh(bench: &Bench<'_>) -> Self {
        Self { caches: bench.caches(1), tokens: vec![bench.config.bos] }
    }

    pub(super) fn step(&mut self, bench: &Bench<'_>) -> Result<()> {
        let mask = bench.engine.generation_mask();
        let pairs = self.tokens.chunks(1).zip(&mut self.caches);
        let mut sequences: Vec<Sequence<'_>> = pairs
            .map(|(tokens, cache)| Sequence {
                tokens,
                cache,
                mask,
                want: Want::Token(SampleParams::greedy()),
            })
            .collect();
        let outputs = bench.engine.run(&mut sequences)?;
        for (token, output) in self.tokens.iter_mut().zip(outputs) {
            if let Output::Token(drawn) = output {
                *token = drawn.token;
            }
        }
        Ok(())
    }
}

/// Returns random ids, the same in each run; no tokenizer would produce such a sequence.
fn random(n: usize, seed: u64, vocab: usize) -> Vec<u32> {
    let mut x = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % vocab as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn names_are_those_of_peers() {
        for model in ["gritlm-7b", "GritLM/GritLM-7B", "/models/GritLM-7B/"] {
            assert_eq!(short_name(model), "gritlm-7b");
        }
        assert_eq!(short_name(".."), "..");
    }
}
