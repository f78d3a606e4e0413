//! The loop of training: batches, steps, evaluation, checkpoints.

use crate::adapters::{Adapt, check};
use crate::batches::{Batches, Batching};
use crate::data::Data;
use crate::encode::{Encoder, Lengths};
use crate::evaluate::Evaluator;
use crate::memory::Plan;
use crate::merge::write_merged;
use crate::metrics::{Evaluation, Metrics, StepMetrics};
use crate::objective::Objective;
use crate::save::{Beside, Part, write_weights};
use crate::state::Output;
use crate::trainer::Trainer;
use crate::{Error, Result};
use gritlm::Checkpoint;
use gritlm_model::adapter::{Adapter, Lora};
use gritlm_model::format::Dtype;
use gritlm_model::ops::{AdamW, Backward};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a run does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// Steps; `None` for as many as see each pair once, or each text in a run without pairs.
    pub steps: Option<usize>,
    /// Samples of a batch and their order.
    pub batching: Batching,
    /// Passages of a query, the positive one included.
    pub group: usize,
    /// Limits of texts in tokens.
    pub lengths: Lengths,
    /// What is learned.
    pub objective: Objective,
    /// Learning rate at its highest.
    pub learning_rate: f64,
    /// Share of the steps in which the learning rate rises from 0; then it falls to 0.
    pub warmup: f64,
    /// Decay of both moments.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Weight decay of matrices.
    pub weight_decay: f32,
    /// Norm to which a longer gradient is clipped.
    pub max_gradient_norm: f64,
    /// How many times the usual norm (the median of the last 32 steps, of at least 16) a gradient
    /// may have; a step with a longer one is not taken, and the run ends. 0 for no limit.
    pub max_spike: f64,
    /// Tokens that go through the model at once.
    pub chunk_tokens: usize,
    /// Whether the activations of all layers are kept, or each layer runs again on the way back;
    /// `None` to keep them where they fit.
    pub keep_activations: Option<bool>,
    /// Steps between two saved states; 0 to save only when the run is stopped.
    pub save_every: usize,
    /// Data to evaluate on.
    pub evaluation: Option<PathBuf>,
    /// Steps between two evaluations; 0 for one at the end.
    pub evaluate_every: usize,
    /// Format of the trained weights.
    pub dtype: Dtype,
    /// The adapter that is trained in place of all weights.
    pub lora: Option<Lora>,
}

gritlm_model::setters!(Options {
    steps: Option<usize>,
    batching: Batching,
    group: usize,
    lengths: Lengths,
    objective: Objective,
    learning_rate: f64,
    warmup: f64,
    weight_decay: f32,
    max_gradient_norm: f64,
    max_spike: f64,
    chunk_tokens: usize,
    keep_activations: Option<bool>,
    save_every: usize,
    evaluation: Option<PathBuf>,
    evaluate_every: usize,
    dtype: Dtype,
    lora: Option<Lora>,
});

impl Default for Options {
    /// Returns the paper's hyper-parameters, with small batches.
    fn default() -> Self {
        Self {
            steps: None,
            batching: Batching::default(),
            group: 2,
            lengths: Lengths::default(),
            objective: Objective::default(),
            learning_rate: 2e-5,
            warmup: 0.03,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_gradient_norm: 1.0,
            max_spike: 100.0,
            chunk_tokens: 1024,
            keep_activations: None,
            save_every: 100,
            evaluation: None,
            evaluate_every: 0,
            dtype: Dtype::Bf16,
            lora: None,
        }
    }
}

/// What [`train`] tells while it runs.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Data was left out, and why.
    Note(String),
    /// The memory that the run will take.
    Plan(&'a Plan),
    /// The run begins after `step` of `steps`: 0, or the step of a saved state.
    Begin {
        /// The last step that is done.
        step: usize,
        /// All steps.
        steps: usize,
    },
    /// A step is done.
    Step(&'a StepMetrics),
    /// The state after this step is saved.
    Saved(usize),
}

/// What the watcher of a run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next step.
    Go,
    /// That the run saves its state and stops.
    Stop,
}

/// How a run has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// All steps are done, and the output is a checkpoint.
    Done {
        /// What the last evaluation has found, if there was one.
        evaluation: Option<Evaluation>,
    },
    /// The watcher has stopped it after this step; a run with the same output goes on.
    Stopped(usize),
}

/// Trains the model of a checkpoint on the texts in `data` and writes to `output`, a new folder or
/// one in which a run with the same options began: `metrics.jsonl` and event files of TensorBoard as
/// it goes, and at the end the trained checkpoint. With [`Options::lora`] the checkpoint has the
/// adapter merged into it, and the folder `adapter` in it has the adapter in PEFT's format.
///
/// # Errors
/// When an option or the data is invalid, the run does not fit the memory, the output belongs to
/// another run or cannot be written, or a loss or the gradient is not finite.
pub fn train<O: Backward>(
    ops: O,
    model: &str,
    checkpoint: &Checkpoint,
    [data, output]: [&Path; 2],
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>) -> Next,
) -> Result<Ended> {
    options.check()?;
    options.objective.check(&checkpoint.config)?;
    if let Some(lora) = &options.lora {
        check(lora, &checkpoint.config)?;
        if let Some(other) = &checkpoint.adapter {
            let expected = "none while an adapter is trained, because the new one would be of the \
                            merged model; merge it first"
                .into();
            let found = other.path().display().to_string();
            return Err(Error::Option { option: "adapter", expected, found });
        }
    }
    let Checkpoint { config, tokenizer, .. } = checkpoint;
    let lengths = options.lengths.within(config);
    let encoder = Encoder::new(tokenizer, config, lengths)?;
    let data = Data::open(data, &encoder, options.group)?;
    data.notes().for_each(|note| {
        watch(Event::Note(note));
    });
    let batches = Batches::new(&data, options.batching)?;
    let steps = options.steps.unwrap_or_else(|| {
        let texts = || data.generative().div_ceil(batches.options().generative.max(1));
        batches.epoch().unwrap_or_else(texts)
    });
    let mut evaluator = match &options.evaluation {
        None => None,
        Some(path) => Some(Evaluator::open(path, &encoder)?),
    };

    let plan = plan(&ops, options, checkpoint)?;
    watch(Event::Plan(&plan));
    let mut about = options.describe(model, &data, steps);
    if let Some(adapter) = &checkpoint.adapter {
        about.insert("adapter".into(), format!("{:032x}", adapter.fingerprint()).into());
    }
    let (output, done) = Output::open(output, &about)?;
    if output.is_finished(steps) {
        return Ok(Ended::Done { evaluation: None });
    }
    let adapt = options.lora.clone().map(|lora| {
        let seed = options.batching.seed;
        Adapt { lora, seed, base: model }
    });
    let (objective, chunk, keep_all) = (options.objective.clone(), plan.chunk, plan.keep_all);
    let mut trainer = match (done, &adapt) {
        (0, None) => Trainer::new(ops, checkpoint, objective, chunk, keep_all)?,
        (0, Some(adapt)) => Trainer::lora(ops, checkpoint, objective, chunk, keep_all, adapt)?,
        _ => Trainer::make(ops, checkpoint, objective, chunk, keep_all, |ops| {
            output.load(ops, checkpoint, adapt.as_ref(), done)
        })?,
    };
    output.keep_only((done > 0).then_some(done))?;
    let mut metrics = Metrics::open(output.path(), done)?;
    let mut next = watch(Event::Begin { step: done, steps });
    let (mut evaluation, mut saved) = (None, done);
    for step in done + 1..=steps {
        if next == Next::Stop {
            if saved < step - 1 {
                output.save(trainer.ops(), trainer.parameters(), step - 1)?;
                watch(Event::Saved(step - 1));
            }
            return Ok(Ended::Stopped(step - 1));
        }
        let start = Instant::now();
        let batch = batches.batch(step - 1)?;
        let name = |e: Error| e.in_batch(step, &batch);
        let encoded = encoder.batch(&batch)?;
        let losses = trainer
            .gradients(&encoded.queries, &encoded.passages, &encoded.answers)
            .map_err(name)?;
        let norm = trainer.gradient_norm()?;
        if !norm.is_finite() {
            return Err(name(Error::NotFinite { what: "gradient_norm".into(), found: norm }));
        }
        if let Some(usual) = metrics.usual_norm().filter(|usual| options.is_spike(norm, *usual)) {
            return Err(name(Error::Spike { what: "gradient_norm".into(), found: norm, usual }));
        }
        let p = options.step(step, steps, norm);
        trainer.update(p)?;
        let seconds = start.elapsed().as_secs_f64();
        let last = step == steps;
        let due = options.evaluate_every > 0 && step % options.evaluate_every == 0;
        let found = match &mut evaluator {
            Some(evaluator) if last || due => Some(evaluator.run(&mut trainer)?),
            _ => None,
        };
        evaluation = found.or(evaluation);
        let line = StepMetrics {
            step,
            loss_rep: losses.rep,
            loss_gen: losses.generative,
            loss_router: losses.router,
            gradient_norm: norm,
            learning_rate: f64::from(p.rate),
            tokens: losses.tokens,
            tokens_per_second: losses.tokens as f64 / seconds,
            evaluation: found,
        };
        metrics.write(&line)?;
        next = watch(Event::Step(&line));
        if options.save_every > 0 && step % options.save_every == 0 && !last {
            output.save(trainer.ops(), trainer.parameters(), step)?;
            saved = step;
            watch(Event::Saved(step));
        }
    }
    write_checkpoint(&trainer, checkpoint, options.dtype, output.path())?;
    output.finish(steps)?;
    Ok(Ended::Done { evaluation })
}

/// Writes a model as a checkpoint in the published layout into `folder`, which exists. `checkpoint` is
/// the one that it was loaded from: its tokenizer goes along. An adapter that was trained is merged into
/// the weights, and in PEFT's format in the folder `adapter` in it.
///
/// # Errors
/// When the device fails, or a file cannot be written.
pub fn write_checkpoint<O: Backward>(
    trainer: &Trainer<O>,
    checkpoint: &Checkpoint,
    dtype: Dtype,
    folder: &Path,
) -> Result<()> {
    match trainer.parameters().adapters() {
        None => write_weights(trainer.ops(), trainer.parameters(), Part::Weights, dtype, folder)?,
        Some(_) => {
            let apart = folder.join("adapter");
            trainer.save_adapter(&apart)?;
            let adapter = Adapter::open(&apart, &checkpoint.config)?;
            write_merged(checkpoint, &adapter, Some(dtype), folder, &mut |_, _| Ok(()))?;
        }
    }
    Beside::of(checkpoint, dtype)?.write(folder)
}

/// Chooses what is kept, and checks that it fits.
fn plan<O: Backward>(ops: &O, options: &Options, checkpoint: &Checkpoint) -> Result<Plan> {
    let plan = |chunk, keep| {
        let plan = Plan::new(&checkpoint.config, chunk, keep, ops.free_memory());
        match &options.lora {
            None => plan,
            Some(lora) => plan.with_lora(&checkpoint.config, lora, checkpoint.weights.bytes()),
        }
    };
    // Room for the system and for reading the data.
    let roomy = |plan: &Plan| plan.free.is_none_or(|free| plan.total() < free / 10 * 9);
    let chosen = match options.keep_activations {
        Some(keep) => plan(options.chunk_tokens, keep),
        None => Some(plan(options.chunk_tokens, true))
            .filter(roomy)
            .unwrap_or_else(|| plan(options.chunk_tokens, false)),
    };
    if chosen.fits() {
        return Ok(chosen);
    }
    let halves = std::iter::successors(Some(options.chunk_tokens), |chunk| Some(chunk / 2));
    let smaller = halves.take_while(|&chunk| chunk > 0).map(|chunk| plan(chunk, false));
    let fitting = smaller.into_iter().find(Plan::fits);
    Err(Error::NoRoom {
        plan: chosen,
        advice: match fitting {
            Some(fits) => {
                format!("with `chunk_tokens` {} and without kept activations it fits", fits.chunk)
            }
            None => "the weights with gradients and moments alone do not fit".into(),
        },
    })
}

impl Options {
    /// Checks what the data and the model do not decide.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |option, expected: &str, found: String| {
            Err(Error::Option { option, expected: expected.into(), found })
        };
        if self.steps == Some(0) {
            return wrong("steps", "1 or more", "0".into());
        }
        if self.chunk_tokens == 0 {
            return wrong("chunk_tokens", "1 or more tokens", "0".into());
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return wrong("learning_rate", "a number above 0", self.learning_rate.to_string());
        }
        if !(0.0..=1.0).contains(&self.warmup) {
            return wrong("warmup", "a share from 0 to 1", self.warmup.to_string());
        }
        if !(self.max_gradient_norm.is_finite() && self.max_gradient_norm > 0.0) {
            let found = self.max_gradient_norm.to_string();
            return wrong("max_gradient_norm", "a number above 0", found);
        }
        if !(self.max_spike.is_finite() && self.max_spike >= 0.0) {
            return wrong("max_spike", "a number from 0 on", self.max_spike.to_string());
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return wrong("weight_decay", "a number from 0 on", self.weight_decay.to_string());
        }
        if self.dtype.is_quantized() {
            return wrong("dtype", "f32, f16 or bf16", self.dtype.to_string());
        }
        Ok(())
    }

    /// Returns whether a gradient is so long that a step along it would do harm.
    fn is_spike(&self, norm: f64, usual: f64) -> bool {
        self.max_spike > 0.0 && norm > self.max_spike * usual
    }

    /// Returns the optimiser's step for a gradient of this norm.
    fn step(&self, step: usize, steps: usize, norm: f64) -> AdamW {
        AdamW {
            len: 0,
            step: step as u32,
            rate: (self.learning_rate * self.schedule(step, steps)) as f32,
            beta1: self.betas[0],
            beta2: self.betas[1],
            epsilon: self.epsilon,
            decay: self.weight_decay,
            scale: (self.max_gradient_norm / norm.max(self.max_gradient_norm)) as f32,
        }
    }

    /// Returns the share of the learning rate at a step, from 1 to `steps`: as in transformers, it
    /// rises linearly, and then falls linearly to reach 0 after the last step.
    fn schedule(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup * steps as f64).ceil();
        // transformers counts steps from 0; its first one would learn nothing.
        let step = step as f64;
        if step <= warmup {
            step / warmup
        } else {
            (steps as f64 + 1.0 - step) / (steps as f64 - warmup).max(1.0)
        }
    }

    /// Returns everything that decides what the steps of a run do.
    fn describe(&self, model: &str, data: &Data, steps: usize) -> Map<String, Value> {
        let o = &self.objective;
        // Numbers in f32 are text, because JSON's are f64 and some do not come back.
        let all = json!({
            "model": model,
            "data": format!("{:032x}", data.fingerprint()),
            "steps": steps,
            "batch": self.batching.pairs,
            "generative_batch": self.batching.generative,
            "seed": self.batching.seed,
            "group": self.group,
            "query_max_len": self.lengths.query_max_len,
            "passage_max_len": self.lengths.passage_max_len,
            "generative_max_len": self.lengths.generative_max_len,
            "temperature": o.temperature.to_string(),
            "embedding_weight": o.embedding_weight.to_string(),
            "generative_weight": o.generative_weight.to_string(),
            "generative_loss": format!("{:?}", o.generative),
            "hard_negatives_only": o.hard_negatives_only,
            "dimensions": o.dimensions,
            "pooling": format!("{:?}", o.pooling),
            "attn": o.attention.to_string(),
            "router_weight": o.router_weight.to_string(),
            "learning_rate": self.learning_rate,
            "warmup": self.warmup,
            "betas": self.betas.map(|beta| beta.to_string()),
            "epsilon": self.epsilon.to_string(),
            "weight_decay": self.weight_decay.to_string(),
            "max_gradient_norm": self.max_gradient_norm,
            // The order of a sum over a batch depends on where it is cut.
            "chunk_tokens": self.chunk_tokens,
        });
        let mut fields = match all {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        if let Some(lora) = &self.lora {
            let (rank, alpha, dropout) = (lora.rank, lora.alpha, lora.dropout);
            let about = json!({ "rank": rank, "alpha": alpha, "dropout": dropout,
                "rslora": lora.rslora, "targets": lora.targets });
            fields.insert("lora".into(), about);
        }
        fields
    }
}
