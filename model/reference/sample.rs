//! Sampling of the next token from one row of logits, `(vocab)`.

use super::{largest_first, log_softmax};
use crate::ops::{SampleParams, SampledToken};

/// Returns the sampled token, and the smallest difference in any comparison of two probabilities.
/// Where that is near the rounding error of f32, a backend may correctly sample another token.
pub fn sample(draw: &SampleParams, logits: &[f32]) -> (SampledToken, f64) {
    let mut margin = f64::INFINITY;
    let mut is_less = |a: f64, b: f64| {
        margin = margin.min((a - b).abs());
        a < b
    };

    // Repetition penalty.
    let mut changed: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    for &id in &draw.seen {
        let (logit, penalty) = (&mut changed[id as usize], f64::from(draw.penalty));
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }

    // The kept tokens, most likely first, and their probabilities relative to the most likely
    // one's.
    let mut kept = largest_first(&changed);
    let likeliest = changed[kept[0]];
    let weight = |id: usize| match draw.temperature {
        0.0 => 1.0,
        temperature => ((changed[id] - likeliest) / f64::from(temperature)).exp(),
    };
    if draw.temperature == 0.0 {
        kept.truncate(1);
    }
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        // Keep the smallest set of tokens whose probabilities sum to at least top_p.
        let total: f64 = kept.iter().map(|&id| weight(id)).sum();
        let (mut reached, mut count) = (0.0, 0);
        while count < kept.len() && (count == 0 || is_less(reached, draw.top_p.into())) {
            reached += weight(kept[count]) / total;
            count += 1;
        }
        kept.truncate(count);
    }
    if draw.min_p > 0.0 {
        let too_unlikely = |&id: &usize| is_less(weight(id), draw.min_p.into());
        let end = kept.iter().skip(1).position(too_unlikely);
        kept.truncate(end.map_or(kept.len(), |end| end + 1));
    }

    // Select the first token whose cumulative probability exceeds the uniform number.
    let total: f64 = kept.iter().map(|&id| weight(id)).sum();
    let mut below = 0.0;
    let mut drawn = kept[0];
    for (i, &id) in kept.iter().enumerate() {
        drawn = id;
        below += weight(id) / total;
        // The last one takes what rounding has left.
        if i + 1 == kept.len() || is_less(draw.uniform.into(), below) {
            break;
        }
    }

    let token = draw.given.map_or(drawn, |id| id as usize);
    let logprobs = log_softmax(logits);
    let top = largest_first(logits).into_iter().take(draw.logprobs as usize);
    let drawn = SampledToken {
        token: token as u32,
        logprob: logprobs[token] as f32,
        top: top.map(|id| (id as u32, logprobs[id] as f32)).collect(),
    };
    (drawn, margin)
}
