//! Reranking by a yes/no question, as the GRIT paper's code does it: one causal pass per passage,
//! and the score is the logit of "yes" as the answer's first token.

use crate::batch::{Output, Want};
use crate::{Engine, Error, Result};
use gritlm_model::prompt;
use rayon::prelude::*;

/// A passage's relevance.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ranked {
    /// Which passage, from 0.
    pub index: usize,
    /// Logit of "yes".
    pub score: f32,
    /// Probability of "yes" against "no".
    pub probability: f32,
}

impl Ranked {
    /// Highest `value` first; equal ones as they came.
    pub fn sort_by(all: &mut [Self], value: impl Fn(&Self) -> f32) {
        all.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.index.cmp(&b.index)));
    }
}

/// The tokens of the two answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    yes: u32,
    no: u32,
}

impl Judge {
    /// 5081 and 708 in Mistral's vocabulary, as they follow "Answer:".
    pub(crate) fn new(engine: &Engine) -> Result<Self> {
        engine.check_generates()?;
        let answer = |word| {
            engine.tokenizer().id(&format!("▁{word}")).ok_or_else(|| Error::Input {
                what: "rerank".into(),
                problem: format!("the vocabulary has no token for {word:?}, so it cannot answer"),
            })
        };
        Ok(Self { yes: answer("yes")?, no: answer("no")? })
    }

    /// Passage `index`'s relevance from its prompt's [`Want::Logits`].
    pub(crate) fn ranked(self, index: usize, logits: &[f32]) -> Result<Ranked> {
        let logit = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NAN);
        let (yes, no) = (logit(self.yes), logit(self.no));
        if !yes.is_finite() || !no.is_finite() {
            return Err(Error::NotFinite { what: format!("passage {index}") });
        }
        Ok(Ranked { index, score: yes, probability: 1.0 / (1.0 + (no - yes).exp()) })
    }
}

impl Engine {
    /// Ranks passages by relevance to the query, most relevant first.
    ///
    /// # Errors
    /// When the model has no head or its vocabulary no word for yes or no, or the KV pages do not
    /// suffice.
    pub fn rerank(&self, query: &str, passages: &[impl AsRef<str> + Sync]) -> Result<Vec<Ranked>> {
        self.rerank_watched(query, passages, &mut |_| Ok(()))
    }

    /// [`Engine::rerank`], calling `done` with the number of passages after each pass; its error
    /// ends the work.
    ///
    /// # Errors
    /// As [`Engine::rerank`], and what `done` returns.
    pub fn rerank_watched(
        &self,
        query: &str,
        passages: &[impl AsRef<str> + Sync],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Ranked>> {
        let prompts = self.encode_passages(query, passages)?;
        self.rank_encoded(&prompts, done)
    }

    /// [`Engine::rerank_watched`] of prompts that [`Engine::encode_passages`] has made.
    ///
    /// # Errors
    /// As [`Engine::rerank_watched`].
    pub fn rank_encoded(
        &self,
        prompts: &[Vec<u32>],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Ranked>> {
        let judge = Judge::new(self)?;
        let mut ranked = Vec::with_capacity(prompts.len());
        let tokens: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        self.run_all(&tokens, self.generation_mask(), |_| Want::Logits, &mut |pass| {
            let passages = pass.len();
            for (index, output, _) in pass {
                if let Output::Logits(logits) = output {
                    ranked.push(judge.ranked(index, &logits)?);
                }
            }
            done(passages)
        })?;
        Ranked::sort_by(&mut ranked, |r| r.score);
        Ok(ranked)
    }

    /// The ids of the prompts that [`Engine::rerank`] runs, one a passage. Query and passages are
    /// cut at 600 characters, as in the paper's code.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of a text.
    pub fn encode_passages(
        &self,
        query: &str,
        passages: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<Vec<u32>>> {
        let encode =
            |p: &_| Ok(self.tokenizer().encode(&prompt::rerank(query, AsRef::as_ref(p)))?);
        passages.par_iter().map(encode).collect()
    }
}
