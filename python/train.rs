//! GRIT training.

use crate::embed::pooling;
use crate::engine::Opening;
use crate::error::{GritLMError, raise, unknown};
use gritlm::Checkpoint;
use gritlm::backend::{VisitTraining, open_training};
use gritlm::model::adapter::Lora;
use gritlm::model::ops::Backward;
use gritlm_train::{
    Batching, Ended, Error, Event, GenerativeLoss, Lengths, Next, Objective, Options,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::json;
use std::path::PathBuf;

/// Keyword arguments of training; the package's Python files always give all of them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Training {
    steps: Option<usize>,
    batch: usize,
    generative_batch: usize,
    group_size: usize,
    seed: u64,
    query_max_len: usize,
    passage_max_len: usize,
    generative_max_len: usize,
    learning_rate: f64,
    warmup: f64,
    weight_decay: f32,
    max_gradient_norm: f64,
    max_spike: f64,
    temperature: f32,
    embedding_weight: f32,
    generative_weight: f32,
    generative_loss: String,
    generative_group: usize,
    router_weight: f32,
    hard_negatives_only: bool,
    dimensions: Vec<usize>,
    pooling: String,
    parts: String,
    chunk_tokens: usize,
    recompute: bool,
    save_every: usize,
    eval_data: Option<PathBuf>,
    eval_every: usize,
    lora: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: f64,
    lora_targets: Vec<String>,
}

/// What is wrong with options or data is a `ValueError`, all else a `GritLMError`.
fn raise_train(error: Error) -> PyErr {
    match error {
        Error::Engine(error) => raise(error),
        Error::Data { .. } | Error::NoData { .. } => PyValueError::new_err(error.to_string()),
        other => GritLMError::new_err(other.to_string()),
    }
}

impl Training {
    fn options(&self) -> PyResult<Options> {
        let generative = match self.generative_loss.as_str() {
            "mixed" => GenerativeLoss::Mixed { group: self.generative_group },
            "token" => GenerativeLoss::Token,
            found => return Err(unknown("generative_loss", "mixed or token", found)),
        };
        let objective = Objective::default()
            .temperature(self.temperature)
            .embedding_weight(self.embedding_weight)
            .generative(generative)
            .generative_weight(self.generative_weight)
            .router_weight(self.router_weight)
            .hard_negatives_only(self.hard_negatives_only)
            .dimensions(self.dimensions.clone())
            .pooling(pooling(&self.pooling)?)
            .attention(self.parts.parse().map_err(raise_train)?);
        let lengths = Lengths::default()
            .query_max_len(self.query_max_len)
            .passage_max_len(self.passage_max_len)
            .generative_max_len(self.generative_max_len);
        let batching =
            Batching::default().pairs(self.batch).generative(self.generative_batch).seed(self.seed);
        let lora = self.lora.map(|rank| {
            let lora = Lora::new(rank).dropout(self.lora_dropout);
            let alpha = self.lora_alpha.unwrap_or(lora.alpha);
            let lora = lora.alpha(alpha);
            match self.lora_targets.is_empty() {
                true => lora,
                false => lora.targets(self.lora_targets.clone()),
            }
        });
        Ok(Options::default()
            .steps(self.steps)
            .batching(batching)
            .group(self.group_size)
            .lengths(lengths)
            .objective(objective)
            .learning_rate(self.learning_rate)
            .warmup(self.warmup)
            .weight_decay(self.weight_decay)
            .max_gradient_norm(self.max_gradient_norm)
            .max_spike(self.max_spike)
            .chunk_tokens(self.chunk_tokens)
            .keep_activations(self.recompute.then_some(false))
            .save_every(self.save_every)
            .evaluation(self.eval_data.clone())
            .evaluate_every(self.eval_every)
            .lora(lora))
    }
}

/// A run, and who watches it.
struct Run<'a> {
    model: &'a str,
    checkpoint: &'a Checkpoint,
    paths: [PathBuf; 2],
    options: &'a Options,
    progress: Option<&'a Py<PyAny>>,
    raised: &'a mut Option<PyErr>,
}

/// An event as JSON.
fn told(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Note(text) => json!({ "event": "note", "text": text }).to_string(),
        Event::Plan(plan) => json!({ "event": "plan", "text": plan.to_string() }).to_string(),
        Event::Begin { step, steps } => {
            json!({ "event": "begin", "step": step, "steps": steps }).to_string()
        }
        Event::Step(step) => {
            let mut all = serde_json::to_value(step).ok()?;
            all["event"] = "step".into();
            all.to_string()
        }
        Event::Saved(step) => json!({ "event": "saved", "step": step }).to_string(),
        _ => return None,
    })
}

impl VisitTraining for Run<'_> {
    type Out = Ended;
    type Error = Error;

    fn visit<O: Backward>(self, ops: O) -> Result<Ended, Error> {
        let Self { model, checkpoint, paths: [data, output], options, progress, raised } = self;
        gritlm_train::train(ops, model, checkpoint, [&data, &output], options, &mut |event| {
            let called = Python::attach(|py| {
                py.check_signals()?;
                match (progress, told(&event)) {
                    (Some(progress), Some(told)) => progress.call1(py, (told,)).map(drop),
                    _ => Ok(()),
                }
            });
            match called {
                Ok(()) => Next::Go,
                Err(error) => {
                    *raised = Some(error);
                    Next::Stop
                }
            }
        })
    }
}

/// Trains a model; returns how the run has ended as JSON. An exception of `progress`, and Ctrl-C,
/// let it save its state and stop; the same call goes on from there.
#[pyfunction]
pub(crate) fn train(
    py: Python<'_>,
    model: &str,
    data: PathBuf,
    output: PathBuf,
    opening: Opening,
    training: Training,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let options = training.options()?;
    let device = opening.options()?;
    let mut raised = None;
    let ended = py.detach(|| {
        let checkpoint = Checkpoint::open(model, device.progress)?;
        let checkpoint = checkpoint.with_adapter(device.adapter.as_deref())?;
        let run = Run {
            model,
            checkpoint: &checkpoint,
            paths: [data, output],
            options: &options,
            progress: progress.as_ref(),
            raised: &mut raised,
        };
        open_training(&device, run)
    });
    match (raised, ended.map_err(raise_train)?) {
        (Some(raised), _) => Err(raised),
        (None, Ended::Stopped(step)) => Ok(json!({ "stopped": step }).to_string()),
        (None, Ended::Done { evaluation }) => Ok(json!({ "evaluation": evaluation }).to_string()),
    }
}

/// Merges an adapter into a checkpoint's weights and writes the result to a new folder. Returns how
/// many tensors it has, and how many of them are merged.
#[pyfunction]
pub(crate) fn merge(
    py: Python<'_>,
    model: &str,
    adapter: PathBuf,
    output: PathBuf,
) -> PyResult<(usize, usize)> {
    let made = py.detach(|| {
        gritlm_train::merge(model, &adapter, &output, &mut |_, _| {
            Python::attach(|py| py.check_signals()).map_err(|_| gritlm::Error::Cancelled.into())
        })
    });
    let made = made.map_err(raise_train)?;
    Ok((made.tensors, made.merged))
}
