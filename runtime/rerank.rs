//! Reranking by a yes/no question, as the GRIT paper's code does it: one causal pass per passage,
//! and the score is the logit of "yes" as the answer's first token.

use crate::batch::{Output, Sequence, Want};
use crate::{Engine, Error, Result};
use gritlm_model::prompt;

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

impl Engine {
    /// Ranks passages by relevance to the query, most relevant first.
    ///
    /// # Errors
    /// When the vocabulary has no word for yes or no, or the KV pages do not suffice.
    pub fn rerank(&self, query: &str, passages: &[impl AsRef<str>]) -> Result<Vec<Ranked>> {
        let (yes, no) = (self.answer("yes")?, self.answer("no")?);
        let prompts = passages
            .iter()
            .map(|p| Ok(self.tokenizer().encode(&prompt::rerank(query, p.as_ref()))?))
            .collect::<Result<Vec<Vec<u32>>>>()?;
        let mut ranked = Vec::with_capacity(passages.len());
        let tokens: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        for batch in self.batches(&tokens) {
            let mut caches: Vec<_> = batch.iter().map(|_| self.cache()).collect();
            let mask = self.generation_mask();
            let mut sequences: Vec<Sequence<'_>> = batch
                .iter()
                .zip(&mut caches)
                .map(|(&i, cache)| Sequence { tokens: tokens[i], cache, mask, want: Want::Logits })
                .collect();
            for (&index, output) in batch.iter().zip(self.run(&mut sequences)?) {
                if let Output::Logits(logits) = output {
                    let (yes, no) = (logits[yes as usize], logits[no as usize]);
                    let probability = 1.0 / (1.0 + (no - yes).exp());
                    ranked.push(Ranked { index, score: yes, probability });
                }
            }
        }
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        Ok(ranked)
    }

    /// The token of a one-word answer after "Answer:": 5081 and 708 in Mistral's vocabulary.
    fn answer(&self, word: &str) -> Result<u32> {
        self.tokenizer().id(&format!("▁{word}")).ok_or_else(|| Error::Input {
            what: "rerank".into(),
            problem: format!("the vocabulary has no token for {word:?}, so it cannot answer"),
        })
    }
}
