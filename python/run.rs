//! One pass over sequences of token ids, each with a mask and a wish of its own.

use crate::cache::Cache;
use crate::embed::pooling;
use crate::error::{raise, unknown};
use gritlm::Engine;
use gritlm::batch::{self, Want};
use gritlm::cache::KvCache;
use gritlm::model::ops::Mask;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

/// Token ids with what is done with them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Sequence {
    tokens: Vec<u32>,
    mask: String,
    window: Option<u32>,
    want: String,
    pooling: String,
    skip: usize,
    normalize: bool,
    past: Option<Py<Cache>>,
    keep_cache: bool,
}

/// `(rows, columns)`, and the keys and values of past and tokens.
pub(crate) type Output<'py> = (Option<Bound<'py, PyArray2<f32>>>, Option<Cache>);

impl Sequence {
    fn mask(&self) -> PyResult<Mask> {
        let window = self.window;
        match self.mask.as_str() {
            "causal" => Ok(Mask::Causal { window }),
            "bidirectional" => Ok(Mask::Bidirectional { window }),
            found => Err(unknown("mask", "causal or bidirectional", found)),
        }
    }

    fn want(&self) -> PyResult<Want> {
        let (skip, normalize) = (self.skip, self.normalize);
        match self.want.as_str() {
            "nothing" => Ok(Want::Nothing),
            "logits" => Ok(Want::Logits),
            "all_logits" => Ok(Want::AllLogits),
            "hidden" => Ok(Want::Hidden),
            "embedding" => {
                Ok(Want::Embedding { skip, pooling: pooling(&self.pooling)?, normalize })
            }
            found => {
                let expected = "nothing, logits, all_logits, hidden or embedding";
                Err(unknown("want", expected, found))
            }
        }
    }
}

pub(crate) fn run<'py>(
    py: Python<'py>,
    engine: &Engine,
    sequences: Vec<Sequence>,
) -> PyResult<Vec<Output<'py>>> {
    let mut wishes = Vec::with_capacity(sequences.len());
    let mut caches: Vec<KvCache> = Vec::with_capacity(sequences.len());
    for sequence in &sequences {
        wishes.push((sequence.mask()?, sequence.want()?));
        caches.push(match &sequence.past {
            None => engine.cache(),
            Some(past) => engine.import(&past.get().snapshot).map_err(raise)?,
        });
    }
    let outputs = py.detach(|| {
        let all = sequences.iter().zip(&mut caches).zip(wishes);
        let mut batch: Vec<batch::Sequence<'_>> = all
            .map(|((sequence, cache), (mask, want))| batch::Sequence {
                tokens: &sequence.tokens,
                cache,
                mask,
                want,
            })
            .collect();
        engine.run(&mut batch)
    });
    let outputs = outputs.map_err(raise)?.into_iter().zip(caches).zip(&sequences);
    let one = |((output, cache), sequence): ((batch::Output, KvCache), &Sequence)| {
        let values = match output {
            batch::Output::Logits(values)
            | batch::Output::Hidden(values)
            | batch::Output::Embedding(values) => Some(values),
            _ => None,
        };
        let (dim, vocab) = (engine.config().dim, engine.config().vocab);
        let columns = if sequence.want.ends_with("logits") { vocab } else { dim };
        let array = values.map(|values| {
            let rows = values.len() / columns;
            PyArray1::from_vec(py, values).reshape([rows, columns])
        });
        let kept = sequence.keep_cache.then(|| {
            let snapshot = py.detach(|| engine.export(&cache)).map_err(raise)?;
            let past = sequence.past.iter().flat_map(|past| past.get().tokens.iter());
            PyResult::Ok(Cache {
                snapshot,
                tokens: past.chain(&sequence.tokens).copied().collect(),
            })
        });
        Ok((array.transpose()?, kept.transpose()?))
    };
    outputs.map(one).collect()
}
