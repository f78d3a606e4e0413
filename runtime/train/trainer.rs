//! One step of training: losses, gradients, an update.
//!
//! A batch of embeddings larger than a chunk goes forward chunk by chunk without keeping anything
//! but its vectors; the loss gives their gradients; then each chunk goes forward again and back
//! (GradCache, Gao et al. 2021). Conversations go forward and back chunk by chunk. So the memory
//! does not grow with the batch, and gradients are those of the whole batch.

use crate::adapters::{Adapt, Adapters};
use crate::objective::Objective;
use crate::pack::{Run, chunks};
use crate::parameters::Parameters;
use crate::pass::{Learned, Tape};
use crate::save::write_adapter;
use crate::{Answer, Error, Result, Text};
use gritlm::Checkpoint;
use gritlm_model::config::Config;
use gritlm_model::ops::{AdamW, Backward, Contrastive};
use pollster::block_on;
use std::path::Path;

/// Losses of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// L_rep, without its weight; `None` without queries.
    pub rep: Option<f64>,
    /// L_gen, without its weight; `None` without learned tokens.
    pub generative: Option<f64>,
    /// The router's auxiliary loss, without its weight, where it is learned.
    pub router: Option<f64>,
    /// Tokens of the batch.
    pub tokens: usize,
}

/// A model that is trained, on one device.
pub struct Trainer<O: Backward> {
    ops: O,
    config: Config,
    objective: Objective,
    /// Tokens of one chunk.
    chunk: usize,
    parameters: Parameters<O>,
    tape: Tape<O>,
}

impl<O: Backward> Trainer<O> {
    /// Loads a checkpoint's weights in f32. `chunk` is the number of tokens that go through the
    /// model at once; `keep_all` keeps their activations for all layers instead of running each
    /// layer again on the way back.
    ///
    /// # Errors
    /// When the objective is invalid, the checkpoint has no head, or the device is out of memory.
    pub fn new(
        ops: O,
        checkpoint: &Checkpoint,
        objective: Objective,
        chunk: usize,
        keep_all: bool,
    ) -> Result<Self> {
        Self::make(ops, checkpoint, objective, chunk, keep_all, |ops| {
            Parameters::load(ops, &checkpoint.config, &checkpoint.weights, None)
        })
    }

    /// Takes a checkpoint's weights as they are and makes a new adapter, which alone is trained. The
    /// rest as in [`Trainer::new`].
    ///
    /// # Errors
    /// As [`Trainer::new`]; when the adapter's shape is invalid, or the weights are quantised.
    pub fn lora(
        ops: O,
        checkpoint: &Checkpoint,
        objective: Objective,
        chunk: usize,
        keep_all: bool,
        adapt: &Adapt<'_>,
    ) -> Result<Self> {
        let Checkpoint { config, weights, .. } = checkpoint;
        Self::make(ops, checkpoint, objective, chunk, keep_all, |ops| {
            Parameters::frozen(ops, config, weights, Adapters::new(ops, config, adapt)?)
        })
    }

    /// Takes the parameters that `parameters` makes.
    ///
    /// # Errors
    /// As [`Trainer::new`], and what `parameters` returns.
    pub(crate) fn make(
        ops: O,
        checkpoint: &Checkpoint,
        objective: Objective,
        chunk: usize,
        keep_all: bool,
        parameters: impl FnOnce(&O) -> Result<Parameters<O>>,
    ) -> Result<Self> {
        let config = checkpoint.config.clone();
        objective.check(&config)?;
        if !checkpoint.weights.has_head(&config) {
            return Err(gritlm::Error::NoHead.into());
        }
        let parameters = parameters(&ops)?;
        let tape = Tape::new(&ops, &config, keep_all)?;
        Ok(Self { ops, config, objective, chunk: chunk.max(1), parameters, tape })
    }

    /// Writes the adapter of [`Trainer::lora`] to a folder in PEFT's format, in f32. The folder is
    /// whole or not there; one that exists is replaced.
    ///
    /// # Errors
    /// When there is no adapter, the device fails, or the folder cannot be written.
    pub fn save_adapter(&self, folder: &Path) -> Result<()> {
        if self.parameters.adapters().is_none() {
            let expected = "a model that is trained with an adapter".into();
            return Err(Error::Option { option: "lora", expected, found: "none".into() });
        }
        write_adapter(&self.ops, &self.parameters, folder)
    }

    /// Returns the config of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn ops(&self) -> &O {
        &self.ops
    }

    pub(crate) fn parameters(&self) -> &Parameters<O> {
        &self.parameters
    }

    /// Takes other rotary frequencies than the config's, `(head_dim / 2)`.
    #[must_use]
    pub fn with_frequencies(mut self, frequencies: Vec<f32>) -> Self {
        self.tape.set_frequencies(frequencies);
        self
    }

    /// Adds the gradients of a batch: of queries, of `group` passages for each, the positive one
    /// first, and of conversations. Any of them may be absent.
    ///
    /// # Errors
    /// When the device is out of memory or fails, or a loss is not finite.
    pub fn gradients(
        &mut self,
        queries: &[Text],
        passages: &[Text],
        answers: &[Answer],
    ) -> Result<Losses> {
        self.parameters.set_dropout(&self.ops, true)?;
        let mut losses = self.generative(answers, true)?;
        if !queries.is_empty() {
            let texts: Vec<&Text> = queries.iter().chain(passages).collect();
            losses.tokens += texts.iter().map(|text| text.tokens.len()).sum::<usize>();
            losses.rep = Some(self.embedding(&texts, queries.len())?);
        }
        for (name, loss) in [("loss_rep", losses.rep), ("loss_gen", losses.generative)] {
            if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
                return Err(Error::NotFinite { what: name.into(), found: loss });
            }
        }
        Ok(losses)
    }

    /// Returns the vectors of texts, `(texts, dim)`, of length 1.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub fn embed(&mut self, texts: &[Text]) -> Result<Vec<f32>> {
        self.parameters.set_dropout(&self.ops, false)?;
        let texts: Vec<&Text> = texts.iter().collect();
        let run = |text| self.objective.embedding_run(text, &self.config);
        let runs: Vec<Run<'_>> = texts.iter().copied().map(run).collect();
        let mut vectors = Vec::new();
        for part in chunks(&runs, self.chunk) {
            let (ops, parameters, runs) = (&self.ops, &mut self.parameters, &runs[part.clone()]);
            self.tape.forward(ops, parameters, runs, false, false)?;
            vectors.extend(self.tape.pool(ops, &self.objective.spans(&texts[part], true))?);
        }
        Ok(vectors)
    }

    /// Returns L_gen of conversations and changes nothing; `None` if they have no learned token.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub fn loss(&mut self, answers: &[Answer]) -> Result<Option<f64>> {
        self.parameters.set_dropout(&self.ops, false)?;
        Ok(self.generative(answers, false)?.generative)
    }

    /// Computes L_rep of texts, of which the first `queries` are queries, and adds its gradients.
    fn embedding(&mut self, texts: &[&Text], queries: usize) -> Result<f64> {
        let dim = self.config.dim;
        let run = |text| self.objective.embedding_run(text, &self.config);
        let runs: Vec<Run<'_>> = texts.iter().copied().map(run).collect();
        let parts = chunks(&runs, self.chunk);
        // A batch of one chunk keeps its activations at once; others run again.
        let direct = parts.len() == 1;
        let mut vectors = Vec::with_capacity(texts.len() * dim);
        let mut last = None;
        for part in &parts {
            let (ops, parameters, runs) = (&self.ops, &mut self.parameters, &runs[part.clone()]);
            last = Some(self.tape.forward(ops, parameters, runs, direct, false)?);
            let spans = self.objective.spans(&texts[part.clone()], false);
            vectors.extend(self.tape.pool(ops, &spans)?);
        }
        let (loss, dvectors) = self.contrast(&vectors, queries)?;
        for part in &parts {
            let (ops, parameters, runs) = (&self.ops, &mut self.parameters, &runs[part.clone()]);
            let chunk = match last.take().filter(|_| direct) {
                Some(chunk) => chunk,
                None => self.tape.forward(ops, parameters, runs, true, false)?,
            };
            let spans = self.objective.spans(&texts[part.clone()], false);
            self.tape.pool_backward(ops, &spans, &dvectors[part.start * dim..part.end * dim])?;
            self.tape.backward(ops, parameters, &chunk, None)?;
        }
        Ok(loss)
    }

    /// Returns L_rep of vectors, of which the first `queries` are queries, and the gradients of its
    /// weighted value.
    fn contrast(&self, vectors: &[f32], queries: usize) -> Result<(f64, Vec<f32>)> {
        let (ops, dim) = (&self.ops, self.config.dim);
        let passages = vectors.len() / dim - queries;
        let wanted = self.objective.wanted(queries, passages / queries);
        let (q, p) = vectors.split_at(queries * dim);
        let q_buffer = ops.upload(queries, dim, q)?;
        let p_buffer = ops.upload(passages, dim, p)?;
        let (mut dq, mut dp) = (ops.buffer(queries, dim)?, ops.buffer(passages, dim)?);
        ops.clear(&mut dq, queries * dim);
        ops.clear(&mut dp, passages * dim);
        let used = self.objective.used(dim);
        let (mut loss, mut losses) = (0.0, ops.buffer(1, queries)?);
        for &columns in &used {
            let p = Contrastive {
                queries: queries as u32,
                passages: passages as u32,
                dim: dim as u32,
                used: columns as u32,
                temperature: self.objective.temperature,
                scale: self.objective.embedding_weight / (queries * used.len()) as f32,
            };
            ops.contrastive(p, &wanted, &q_buffer, &p_buffer, &mut losses, &mut dq, &mut dp);
            let losses = block_on(ops.read(&losses, queries))?;
            loss += losses.iter().copied().map(f64::from).sum::<f64>();
        }
        let mut gradients = block_on(ops.read(&dq, queries * dim))?;
        gradients.extend(block_on(ops.read(&dp, passages * dim))?);
        Ok((loss / (queries * used.len()) as f64, gradients))
    }

    /// Computes L_gen and the router's loss, and adds their gradients if they are to be learned.
    fn generative(&mut self, answers: &[Answer], learn: bool) -> Result<Losses> {
        let run = |answer| self.objective.generative_run(answer, &self.config);
        let runs: Vec<Run<'_>> = answers.iter().map(run).collect();
        let tokens: usize = runs.iter().map(Run::len).sum();
        let mut losses = Losses { tokens, ..Losses::default() };
        let counts: Vec<usize> = answers.iter().map(Answer::learned).collect();
        if counts.iter().all(|&count| count == 0) {
            return Ok(losses);
        }
        let weights = self.objective.token_weights(&counts);
        let ask = learn && self.objective.router_weight > 0.0;
        let mut sum = 0.0;
        for part in chunks(&runs, self.chunk) {
            let learned = learned(&answers[part.clone()], &weights[part.clone()]);
            let (ops, parameters) = (&self.ops, &mut self.parameters);
            let chunk = self.tape.forward(ops, parameters, &runs[part], learn, ask)?;
            let weight = self.objective.generative_weight;
            let terms = self.tape.cross_entropy(ops, parameters, &learned, weight, learn)?;
            let terms = terms.iter().zip(&learned.scales);
            sum += terms.map(|(loss, scale)| f64::from(*loss) * f64::from(*scale)).sum::<f64>();
            if learn {
                let share = chunk.rows as f64 / tokens as f64;
                let balance = chunk.routers.as_ref().map(|routers| {
                    *losses.router.get_or_insert(0.0) += share * routers.loss();
                    routers.balance(share * f64::from(self.objective.router_weight))
                });
                self.tape.backward(ops, parameters, &chunk, balance.as_deref())?;
            }
        }
        losses.generative = Some(sum);
        Ok(losses)
    }

    /// Returns the Euclidean norm of all gradients.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradient_norm(&self) -> Result<f64> {
        self.parameters.gradient_norm(&self.ops)
    }

    /// Returns the gradient of a tensor, by its name in the published layout or, of an adapter, in
    /// PEFT's files.
    ///
    /// # Errors
    /// When the model has no such tensor, or the device fails.
    pub fn gradient(&self, name: &str) -> Result<Vec<f32>> {
        let mut all = self.parameters.trained();
        let found = all.find_map(|(_, slot)| Some((slot, slot.range(name)?)));
        let Some((slot, range)) = found else {
            let expected = "the name of a tensor that is trained".into();
            return Err(Error::Option { option: "name", expected, found: name.into() });
        };
        Ok(block_on(self.ops.read(&slot.gradient, slot.len))?[range].to_vec())
    }

    /// Takes a step of the optimiser with the gradients, and clears them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, p: AdamW) -> Result<()> {
        self.parameters.update(&self.ops, p);
        Ok(self.ops.submit()?)
    }
}

/// Returns the rows of a chunk that predict a learned token.
fn learned(answers: &[Answer], weights: &[f32]) -> Learned {
    let (mut learned, mut row) = (Learned::default(), 0);
    for (answer, weight) in answers.iter().zip(weights) {
        row += answer.document.as_ref().map_or(0, |document| document.tokens.len() as u32);
        for (i, (token, target)) in answer.tokens.iter().zip(&answer.targets).enumerate() {
            if *target {
                learned.rows.push(row + i as u32 - 1);
                learned.targets.push(*token);
                learned.scales.push(*weight);
            }
        }
        row += answer.tokens.len() as u32;
    }
    learned
}
