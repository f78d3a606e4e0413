//! Reranking by a yes/no question, as in the GRIT paper's code. Each passage takes one causal
//! pass, and its score is the logit of "yes" as the answer's first token.

use crate::batch::{Output, Want};
use crate::{Engine, Error, Result};
use gritlm_model::prompt;
use rayon::prelude::*;

/// The relevance of a passage.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ranked {
    /// Index of the passage, from 0.
    pub index: usize,
    /// Logit of "yes".
    pub score: f32,
    /// Probability of "yes" against "no".
    pub probability: f32,
}

impl Ranked {
    /// Sorts by `value`, the highest first; ties keep the order of the passages.
    pub fn sort_by(all: &mut [Self], value: impl Fn(&Self) -> f32) {
        all.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.index.cmp(&b.index)));
    }
}

/// The token ids of the two answers, "yes" and "no".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    yes: u32,
    no: u32,
}

impl Judge {
    /// Looks up the tokens as they follow "Answer:"; 5081 and 708 in Mistral's vocabulary.
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

    /// Returns the relevance of passage `index` from the [`Want::Logits`] of its prompt.
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
    /// When the model has no `lm_head`, its vocabulary has no token for "yes" or "no", or the KV
    /// pages do not suffice.
    pub fn rerank(&self, query: &str, passages: &[impl AsRef<str> + Sync]) -> Result<Vec<Ranked>> {
        self.rerank_watched(query, passages, &mut |_| Ok(()))
    }

    /// Ranks as [`Engine::rerank`] does, and calls `done` after each pass with the number of
    /// passages in it. An error from `done` ends the work.
    ///
    /// # Errors
    /// As [`Engine::rerank`], and the errors that `done` returns.
    pub fn rerank_watched(
        &self,
        query: &str,
        passages: &[impl AsRef<str> + Sync],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Ranked>> {
        let prompts = self.encode_passages(query, passages)?;
        self.rank_encoded(&prompts, done)
    }

    /// Ranks as [`Engine::rerank_watched`] does, from prompts that [`Engine::encode_passages`]
    /// returned.
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

    /// Returns the token ids of the prompts that [`Engine::rerank`] runs, one per passage. The
    /// query and the passages are cut at 600 characters, as in the paper's code.
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
