//! Hard negatives, found by a model's own search: passages that it takes for near, and that are not
//! what the query should find.

use crate::data::{Data, Passage};
use crate::encode::{Encoder, Text};
use crate::save::replace;
use crate::{Error, Result};
use gritlm::{Embed, Encoded, Engine};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// How negatives are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mining {
    /// Negative passages of a query.
    pub negatives: usize,
    /// Nearest passages that are left out, besides the query's own: they may fit, too.
    pub skip: usize,
    /// A passage whose cosine is above this share of the positive one's is left out, for the same
    /// reason.
    pub margin: f32,
}

gritlm_model::setters!(Mining { negatives: usize, skip: usize, margin: f32 });

impl Default for Mining {
    fn default() -> Self {
        Self { negatives: 1, skip: 0, margin: 0.95 }
    }
}

/// What mining has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Pairs written.
    pub pairs: usize,
    /// Pairs left out, because too few passages were far enough.
    pub without: usize,
}

/// Writes the pairs of `data` to the file `output`, with negatives from all passages of the data.
/// A query's negatives are the nearest that `how` allows, nearest first.
/// `progress` is called with the number of texts embedded and their total, and its error ends the
/// work.
///
/// # Errors
/// When the data has no pairs, a text cannot be encoded, the device fails, or the file cannot be
/// written; there is then no file of that name, or the one that was there.
pub fn mine(
    engine: &Engine,
    encoder: &Encoder<'_>,
    data: &Data,
    output: &Path,
    how: Mining,
    progress: &mut dyn FnMut(u64, u64) -> gritlm::Result<()>,
) -> Result<Mined> {
    let (mut queries, mut passages) = (Vec::new(), Vec::new());
    let mut places: HashMap<Passage, usize> = HashMap::new();
    let mut own: Vec<Vec<usize>> = Vec::new();
    for i in 0..data.pairs() {
        let pair = data.pair(i)?;
        queries.push(encoder.query(&pair.query)?);
        let mut place = |one: &Passage| -> Result<usize> {
            if let Some(&place) = places.get(one) {
                return Ok(place);
            }
            passages.push((one.clone(), encoder.passage(one)?));
            places.insert(one.clone(), passages.len() - 1);
            Ok(passages.len() - 1)
        };
        own.push(pair.positives.iter().map(&mut place).collect::<Result<_>>()?);
        pair.negatives.iter().try_for_each(|one| place(one).map(drop))?;
    }
    if queries.is_empty() {
        let (path, problem) = (output.into(), "expected pairs to mine for, found none".into());
        return Err(Error::NoData { path, problem });
    }
    let total = (queries.len() + passages.len()) as u64;
    let mut done = 0;
    let mut embed = |texts: Vec<Text>| -> Result<Vec<f32>> {
        let encoded = |t: Text| Encoded { tokens: t.tokens, skip: t.skip, truncated: 0 };
        let texts: Vec<Encoded> = texts.into_iter().map(encoded).collect();
        let found = engine.embed_encoded(&texts, &Embed::default(), &mut |count| {
            done += count as u64;
            progress(done, total)
        })?;
        Ok(found.into_iter().flat_map(|embedding| embedding.vector).collect())
    };
    let vectors = embed(passages.iter().map(|(_, text)| text.clone()).collect())?;
    let asked = embed(queries)?;

    let dim = engine.config().dim;
    let most = own.iter().map(Vec::len).max().unwrap_or(0);
    // Enough that a margin may leave most of them out.
    let near = (most + how.skip + 16 * how.negatives.max(1)).min(passages.len());
    let positive = |query: usize, place: usize| {
        gritlm::dot(&asked[query * dim..][..dim], &vectors[place * dim..][..dim])
    };
    let best: Vec<f32> = own
        .iter()
        .enumerate()
        .map(|(i, own)| own.iter().map(|&p| positive(i, p)).fold(f32::NEG_INFINITY, f32::max))
        .collect();
    let found = engine.search(dim, &asked, &vectors, near)?;

    let (mut text, mut mined) = (String::new(), Mined { pairs: 0, without: 0 });
    for (i, matches) in found.iter().enumerate() {
        let far = |m: &&gritlm_model::ops::Match| {
            !own[i].contains(&(m.index as usize)) && m.score <= how.margin * best[i].max(0.0)
        };
        let others = matches.iter().filter(|m| !own[i].contains(&(m.index as usize)));
        let negatives: Vec<Value> = others
            .skip(how.skip)
            .filter(far)
            .take(how.negatives)
            .map(|m| said(&passages[m.index as usize].0))
            .collect();
        if negatives.len() < how.negatives {
            mined.without += 1;
            continue;
        }
        mined.pairs += 1;
        let pair = data.pair(i)?;
        let positives: Vec<Value> = pair.positives.iter().map(said).collect();
        let line = json!({ "query": said(&pair.query), "pos": positives, "neg": negatives });
        text += &format!("{line}\n");
    }
    replace(output, text.as_bytes())?;
    Ok(mined)
}

/// Returns a text as training data says it.
fn said(of: &Passage) -> Value {
    match of.instruction.is_empty() {
        true => json!(of.text),
        false => json!([of.instruction, of.text]),
    }
}
