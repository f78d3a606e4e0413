//! Records of the rows to sample from, and the tokens sampled.
//!
//! A record has 11 words: where its seen ids begin and how many there are, penalty, temperature,
//! top_k, top_p, min_p, the uniform number, the number of likely tokens to report, where its
//! result begins, and the given token or all ones. The seen ids of all rows follow. A result has
//! the token, its logit, the largest logit, the sum of exponentials, then pairs of a likely token
//! and its logit.

use crate::ops::{SampleParams, SampledToken};

/// Words of one row's record, and of its result before the most likely tokens.
const RECORD: usize = 11;
const RESULT: usize = 4;

/// Returns the records, and the bytes of all results.
pub fn records(vocab: u32, rows: &[SampleParams]) -> (Vec<u32>, u64) {
    let (mut records, mut seen, mut end) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let at = rows.len() * RECORD + seen.len();
        records.extend([at as u32, row.seen.len() as u32]);
        records.extend([row.penalty, row.temperature].map(f32::to_bits));
        records.push(row.top_k);
        records.extend([row.top_p, row.min_p, row.uniform].map(f32::to_bits));
        records.extend([row.logprobs, end as u32, row.given.unwrap_or(u32::MAX)]);
        seen.extend_from_slice(&row.seen);
        end += RESULT + 2 * row.logprobs.min(vocab) as usize;
    }
    records.extend(seen);
    (records, 4 * end as u64)
}

/// Decodes the results.
pub fn tokens(vocab: u32, rows: &[SampleParams], results: &[u8]) -> Vec<SampledToken> {
    let mut words = results.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
    let mut next = || words.next().unwrap_or_default();
    let token = |row: &SampleParams| {
        let token = next();
        let [logit, largest, sum] = [next(), next(), next()].map(f32::from_bits);
        // The host takes the logarithm, in f64, as the CPU twin does: a shader's is good to three
        // digits only.
        let normalizer = largest + f64::from(sum).ln() as f32;
        let mut likely = || (next(), f32::from_bits(next()) - normalizer);
        let top = (0..row.logprobs.min(vocab)).map(|_| likely()).collect();
        SampledToken { token, logprob: logit - normalizer, top }
    };
    rows.iter().map(token).collect()
}
