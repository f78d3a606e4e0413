//! What is told of each step: `OUTPUT/metrics.jsonl`, a line a step, and an event file of
//! TensorBoard.

use crate::save::replace;
use crate::tensorboard::Events;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Numbers of one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: usize,
    /// Contrastive loss, without its weight; absent in runs without pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_rep: Option<f64>,
    /// Next-token loss, without its weight; absent in runs without texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_gen: Option<f64>,
    /// Auxiliary loss of a mixture's routers, without its weight; absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_router: Option<f64>,
    /// Euclidean norm of the gradient, before it was clipped.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Tokens of the batch by the seconds of the whole step.
    pub tokens_per_second: f64,
    /// What an evaluation after this step has found.
    #[serde(flatten)]
    pub evaluation: Option<Evaluation>,
}

/// What a model does on samples that are not learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Share of queries whose positive passage is the nearest of all.
    #[serde(rename = "eval_recall_at_1", skip_serializing_if = "Option::is_none")]
    pub recall_at_1: Option<f64>,
    /// Share of queries whose positive passage is among the nearest ten.
    #[serde(rename = "eval_recall_at_10", skip_serializing_if = "Option::is_none")]
    pub recall_at_10: Option<f64>,
    /// Mean of 1 / log2(1 + rank) of the positive passage where it is among the nearest ten, else 0.
    #[serde(rename = "eval_ndcg_at_10", skip_serializing_if = "Option::is_none")]
    pub ndcg_at_10: Option<f64>,
    /// Mean loss of the learned tokens.
    #[serde(rename = "eval_loss", skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// Steps whose gradients say what is usual, at least and at most.
const USUAL: [usize; 2] = [16, 32];

/// Writes the metrics of a run.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    events: Events,
    /// Norms of the last steps' gradients.
    norms: Vec<f64>,
}

impl Metrics {
    /// Opens the files in `folder` for the steps after `step`. Lines of later steps, which a run
    /// that was killed may have left, are removed.
    pub(crate) fn open(folder: &Path, step: usize) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let before = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let mut norms = Vec::new();
        let done = |line: &&[u8]| {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            let done = line["step"].as_u64().is_some_and(|number| number <= step as u64);
            norms.extend(line["gradient_norm"].as_f64().filter(|_| done));
            done
        };
        let kept: Vec<&[u8]> = before.split(|&b| b == b'\n').filter(done).collect();
        let mut text = kept.join(&b'\n');
        if !text.is_empty() {
            text.push(b'\n');
        }
        replace(&path, &text)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        let events = Events::create(folder, step).map_err(Error::io(folder))?;
        Ok(Self { path, file, events, norms })
    }

    /// Returns the median norm of the last steps' gradients, if there are enough of them.
    pub(crate) fn usual_norm(&self) -> Option<f64> {
        let last = self.norms.iter().rev().take(USUAL[1]);
        let mut norms: Vec<f64> = last.copied().collect();
        norms.sort_by(f64::total_cmp);
        norms.get(norms.len() / 2).copied().filter(|_| norms.len() >= USUAL[0])
    }

    /// Writes the line of a step.
    pub(crate) fn write(&mut self, of: &StepMetrics) -> Result<()> {
        self.norms.push(of.gradient_norm);
        let value = serde_json::to_value(of).unwrap_or_default();
        self.file.write_all(format!("{value}\n").as_bytes()).map_err(Error::io(&self.path))?;
        let scalars: Vec<(&str, f64)> = match &value {
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| *name != "step")
                .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
                .collect(),
            _ => Vec::new(),
        };
        self.events.scalars(of.step, &scalars).map_err(Error::io(&self.path))
    }
}
