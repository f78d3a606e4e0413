//! Evaluation on samples that are not learned: how well queries find their passages, and the loss
//! of answers.

use crate::Result;
use crate::data::Data;
use crate::encode::{Answer, Encoder, Text};
use crate::metrics::Evaluation;
use crate::trainer::Trainer;
use gritlm::dot;
use gritlm_model::ops::Backward;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// Queries, and the passages among which each should find one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Retrieval {
    /// The queries.
    pub queries: Vec<Text>,
    /// The first positive passages and all negative ones, each once.
    pub passages: Vec<Text>,
    /// The first positive passage of each query, among `passages`.
    wanted: Vec<usize>,
}

impl Retrieval {
    /// Reads and encodes all pairs of the data.
    ///
    /// # Errors
    /// When a file changed, or a text cannot be encoded.
    pub fn new(data: &Data, encoder: &Encoder<'_>) -> Result<Self> {
        let (mut queries, mut wanted, mut passages) = (Vec::new(), Vec::new(), Vec::new());
        let mut places = HashMap::new();
        for i in 0..data.pairs() {
            let pair = data.pair(i)?;
            queries.push(encoder.query(&pair.query)?);
            for (n, one) in pair.positives.iter().take(1).chain(&pair.negatives).enumerate() {
                let text = encoder.passage(one)?;
                let place = *places.entry(text.tokens.clone()).or_insert_with(|| {
                    passages.push(text);
                    passages.len() - 1
                });
                if n == 0 {
                    wanted.push(place);
                }
            }
        }
        Ok(Self { queries, passages, wanted })
    }

    /// Returns, for each query, how many passages are nearer to it than the one that it should find.
    /// `queries` and `passages (…, dim)` have length 1. Equal passages count as nearer, so that a
    /// model whose vectors are all the same finds nothing.
    pub fn ranks(&self, dim: usize, queries: &[f32], passages: &[f32]) -> Vec<usize> {
        let rank = |(query, &wanted): (&[f32], &usize)| {
            let own = dot(query, &passages[wanted * dim..][..dim]);
            let all = passages.chunks_exact(dim).enumerate();
            all.filter(|(i, passage)| *i != wanted && dot(query, passage) >= own).count()
        };
        queries.par_chunks_exact(dim).zip(&self.wanted).map(rank).collect()
    }
}

/// Encoded samples to evaluate on.
pub(crate) struct Evaluator {
    retrieval: Retrieval,
    answers: Vec<Answer>,
}

impl Evaluator {
    /// Reads and encodes all samples of a file or folder.
    ///
    /// # Errors
    /// As [`Data::open`], and when a text cannot be encoded.
    pub(crate) fn open(path: &Path, encoder: &Encoder<'_>) -> Result<Self> {
        let data = Data::open(path, encoder, 1)?;
        let answers = (0..data.generative()).map(|i| encoder.answer(&data.text(i)?));
        let answers = answers.collect::<Result<_>>()?;
        Ok(Self { retrieval: Retrieval::new(&data, encoder)?, answers })
    }

    /// Evaluates the model as it is.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn run<O: Backward>(&self, trainer: &mut Trainer<O>) -> Result<Evaluation> {
        let mut found = Evaluation::default();
        let Retrieval { queries, passages, .. } = &self.retrieval;
        if !queries.is_empty() {
            let (queries, passages) = (trainer.embed(queries)?, trainer.embed(passages)?);
            let ranks = self.retrieval.ranks(trainer.config().dim, &queries, &passages);
            let mean = |of: &dyn Fn(usize) -> f64| {
                Some(ranks.iter().map(|&rank| of(rank)).sum::<f64>() / ranks.len() as f64)
            };
            found.recall_at_1 = mean(&|rank| f64::from(u8::from(rank < 1)));
            found.recall_at_10 = mean(&|rank| f64::from(u8::from(rank < 10)));
            let gain = |rank: usize| if rank < 10 { 1.0 / (rank as f64 + 2.0).log2() } else { 0.0 };
            found.ndcg_at_10 = mean(&gain);
        }
        found.loss = trainer.loss(&self.answers)?;
        Ok(found)
    }
}
