//! sample: samples the next token of each row and reports log-probabilities.
//!
//! The steps run in this order, each on the result of the one before, as in transformers:
//! repetition penalty (a seen token's logit is divided by it if positive, multiplied if not),
//! temperature, top-k, top-p (the smallest set of most likely tokens whose sum reaches p), min-p
//! (tokens at least p times as probable as the most likely). Then the kept probabilities, most
//! likely first, are summed until the sum exceeds `uniform`. A `given` token is taken instead,
//! and only its log-probability is computed. Reported log-probabilities are the model's own,
//! before any of these steps. Ties go to the lower id, so that every backend samples the same
//! token.

use super::exp::{max, sum_of_exp};
use crate::ops::{SampleParams, SampledToken};
use rayon::prelude::*;

pub(super) fn sample(vocab: u32, draws: &[SampleParams], logits: &[f32]) -> Vec<SampledToken> {
    let rows = draws.par_iter().zip(logits.par_chunks_exact(vocab as usize));
    rows.map(|(d, l)| draw(d, l, |_| true)).collect()
}

/// Samples the next token of one row on the host, among the tokens that are `allowed`, for
/// callers that restrict the vocabulary. Log-probabilities are the model's own here too, over all
/// tokens.
pub fn draw(d: &SampleParams, logits: &[f32], allowed: impl Fn(u32) -> bool) -> SampledToken {
    let normalizer = log_sum_exp(logits);
    let token = d.given.unwrap_or_else(|| choose(d, logits, allowed));
    let top = match d.logprobs as usize {
        0 => Vec::new(),
        n => likeliest(logits, n).iter().map(|&i| (i, logits[i as usize] - normalizer)).collect(),
    };
    SampledToken { token, logprob: logits[token as usize] - normalizer, top }
}

/// Returns the token that the filters and `uniform` select.
fn choose(d: &SampleParams, logits: &[f32], allowed: impl Fn(u32) -> bool) -> u32 {
    let mut changed = logits.to_vec();
    for &id in &d.seen {
        if let Some(logit) = changed.get_mut(id as usize) {
            let changed = if *logit > 0.0 { *logit / d.penalty } else { *logit * d.penalty };
            *logit = changed.clamp(f32::MIN, f32::MAX);
        }
    }
    for (_, logit) in (0..).zip(&mut changed).filter(|(id, _)| !allowed(*id)) {
        *logit = f32::NEG_INFINITY;
    }
    if d.temperature == 0.0 { largest(&changed) } else { drawn(d, changed) }
}

fn drawn(d: &SampleParams, mut logits: Vec<f32>) -> u32 {
    // Subtract the largest logit first, so that no temperature turns it into infinity.
    let largest = max(&logits);
    logits.iter_mut().for_each(|l| *l = (*l - largest) / d.temperature);
    let k = if d.top_k == 0 { logits.len() } else { d.top_k as usize };
    let mut kept = likeliest(&logits, k);
    let max = logits[kept[0] as usize];
    let weights: Vec<f32> = kept.iter().map(|&i| (logits[i as usize] - max).exp()).collect();
    let mut count = weights.len();
    if d.top_p < 1.0 {
        let total: f32 = weights.iter().sum();
        let mut sum = 0.0;
        // At least one token is kept, because the sum before the first is 0.
        count = weights
            .iter()
            .take_while(|w| {
                let before = sum;
                sum += *w / total;
                before < d.top_p
            })
            .count()
            .max(1);
    }
    // The most likely token has weight 1, so min-p is a threshold on the weights themselves.
    count = weights[..count].iter().take_while(|w| **w >= d.min_p).count().max(1);
    kept.truncate(count);
    let total: f32 = weights[..count].iter().sum();
    let mut sum = 0.0;
    for (&id, weight) in kept.iter().zip(&weights) {
        sum += weight;
        if d.uniform * total < sum {
            return id;
        }
    }
    kept[count - 1]
}

/// Returns the ids of the `n` largest logits, largest first.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    // Adding 0 makes −0 equal to 0, which `total_cmp` tells apart.
    let logit = |i: &u32| logits[*i as usize] + 0.0;
    let order = |a: &u32, b: &u32| logit(b).total_cmp(&logit(a)).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids
}

fn largest(logits: &[f32]) -> u32 {
    let max = max(logits);
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = max(logits);
    max + sum_of_exp(logits, max).ln() as f32
}
