//! How tokens are sampled, from keyword arguments.

use crate::error::{raise, unknown};
use gritlm::{Engine, Grammar, Sampling};
use pyo3::prelude::*;
use serde_json::Value;

/// Keyword arguments of sampling; the package's Python files always give all of them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    max_tokens: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    stop: Vec<String>,
    logprobs: u32,
    prompt_logprobs: Option<u32>,
    ignore_eos: bool,
    verbatim: bool,
    /// A JSON schema as text.
    schema: Option<String>,
}

impl Options {
    pub(crate) fn sampling(self, py: Python<'_>, engine: &Engine) -> PyResult<Sampling> {
        let grammar = self.schema.map(|schema| {
            let schema: Value = serde_json::from_str(&schema)
                .map_err(|e| unknown("schema", "a JSON schema", &e.to_string()))?;
            py.detach(|| Grammar::json_schema(engine, &schema)).map_err(raise)
        });
        let sampling = Sampling::default()
            .max_tokens(self.max_tokens)
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .min_p(self.min_p)
            .repetition_penalty(self.repetition_penalty)
            .seed(self.seed)
            .stop(self.stop)
            .logprobs(self.logprobs)
            .prompt_logprobs(self.prompt_logprobs)
            .ignore_eos(self.ignore_eos)
            .verbatim(self.verbatim)
            .grammar(grammar.transpose()?);
        sampling.check().map_err(raise)?;
        Ok(sampling)
    }
}
