//! A model that nobody has trained yet: random weights, and a tokenizer learned from the data.

use crate::Result;
use crate::data::{Data, Spoken};
use crate::encode::{Encoder, Lengths};
use fastrand::Rng;
use gritlm::{Checkpoint, synth};
use gritlm_model::config::Config;
use gritlm_model::hash::fnv1a;
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::{Expected, Tensor, Weights};
use std::path::Path;

/// Standard deviation of the random weights, as in transformers. Of projections back into the
/// residual stream it is less by √(2 · layers), so that the stream does not grow with the layers
/// (Radford et al. 2019).
const DEVIATION: f64 = 0.02;

/// Returns a model of the shape that the `config.json` at `config` says, with random weights from
/// `seed` and a tokenizer learned from all texts of `data`. The same data and seed give the same
/// model.
///
/// # Errors
/// When the config or the data is invalid, or the config has other special tokens than the
/// tokenizer: `<unk>`, `<s>` and `</s>` are 0, 1 and 2.
pub fn scratch(config: &Path, data: &Path, seed: u64) -> Result<Checkpoint> {
    let path = config;
    let config = Config::open(path)?;
    // The data is checked with a tokenizer of bytes, since there is none yet.
    let room = Config { vocab: config.vocab.max(512), ..config.clone() };
    let bytes = synth::tokenizer(&room)?;
    let encoder = Encoder::new(&bytes, &room, Lengths::default().within(&room))?;
    let data = Data::open(data, &encoder, 1)?;
    let mut texts = Vec::new();
    for i in 0..data.pairs() {
        let pair = data.pair(i)?;
        let all = [pair.query].into_iter().chain(pair.positives).chain(pair.negatives);
        all.for_each(|one| texts.extend([one.instruction, one.text]));
    }
    for i in 0..data.generative() {
        let sample = data.text(i)?;
        texts.extend(sample.document.map(|document| document.text));
        match sample.spoken {
            Spoken::Text(text) => texts.push(text),
            Spoken::Turns(turns) => turns.into_iter().for_each(|(q, a)| texts.extend([q, a])),
        }
    }
    let tokenizer = Tokenizer::train(texts.into_iter(), &config, path)?;
    let weights = Weights::made(&config, |wanted| random(wanted, config.layers, seed))?;
    let (chat_template, folder, metadata) = (None, None, None);
    Ok(Checkpoint { config, tokenizer, chat_template, weights, folder, metadata, adapter: None })
}

/// Returns ones for a norm, and normally distributed numbers for a matrix.
fn random(wanted: &Expected, layers: usize, seed: u64) -> Tensor {
    let len = wanted.shape.iter().product();
    if wanted.shape.len() == 1 {
        return Tensor::from_f32(&wanted.shape, &vec![1.0; len]);
    }
    let name = wanted.name.as_str();
    let back = ["o_proj.weight", "down_proj.weight", "w2.weight"];
    let deviation = match back.iter().any(|end| name.ends_with(end)) {
        true => DEVIATION / (2.0 * layers as f64).sqrt(),
        false => DEVIATION,
    };
    let mut rng = Rng::with_seed(seed ^ fnv1a(name.bytes()) as u64);
    let normal = |_| {
        // Box and Muller: 1 − [0, 1) is never 0.
        let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), rng.f64());
        (deviation * radius * (angle * std::f64::consts::TAU).cos()) as f32
    };
    let values: Vec<f32> = (0..len).map(normal).collect();
    Tensor::from_f32(&wanted.shape, &values)
}
