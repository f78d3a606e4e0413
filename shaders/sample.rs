//! sample: samples tokens on the device; see sample.wgsl.

use crate::gpu::{Grid, Use};
use crate::params::params;
use crate::profile::Work;
use crate::{Buffer, Wgpu, shader, tune};
use gritlm_model::ops::{Result, SampleParams, SampledToken};

params! {
    /// Parameters; the fields are described in sample.wgsl.
    Draws {
        draws: u32,
        vocab: u32,
        stride: u32,
    }
}

/// Words of one row's record, and of its result before the most likely tokens.
const RECORD: usize = 11;
const RESULT: usize = 4;

impl Wgpu {
    pub(crate) async fn drawn(
        &self,
        vocab: u32,
        draws: &[SampleParams],
        logits: &Buffer,
    ) -> Result<Vec<SampledToken>> {
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let (mut records, mut seen, mut end) = (Vec::new(), Vec::new(), 0);
        for d in draws {
            let at = draws.len() * RECORD + seen.len();
            records.extend([at as u32, d.seen.len() as u32]);
            records.extend([d.penalty, d.temperature].map(f32::to_bits));
            records.push(d.top_k);
            records.extend([d.top_p, d.min_p, d.uniform].map(f32::to_bits));
            records.extend([d.logprobs, end as u32, d.given.unwrap_or(u32::MAX)]);
            seen.extend_from_slice(&d.seen);
            end += RESULT + 2 * d.logprobs.min(vocab) as usize;
        }
        records.extend(seen);
        let sent = self.gpu.send(bytemuck::cast_slice(&records))?;
        let changed =
            self.gpu.buffer(Use::Work, 4 * u64::from(logits.stride) * draws.len() as u64)?;
        let out = self.gpu.buffer(Use::Work, 4 * end as u64)?;
        let count = draws.len() as u32;
        let params = Draws { draws: count, vocab, stride: logits.stride };
        let bytes = 8 * u64::from(count) * u64::from(vocab);
        self.gpu.launch(
            &shader::SAMPLE,
            &[("LANES", f64::from(tune::SORT_LANES))],
            bytemuck::bytes_of(&params),
            &[(&logits.raw).into(), (&sent).into(), (&changed).into(), (&out).into()],
            Grid::Of(count, 1),
            Work { op: "sample", bytes, flops: bytes },
        );
        let words = self.gpu.read(&out, 0, 4 * end as u64)?;
        let mut words = words.as_chunks::<4>().0.iter().map(|&w| u32::from_le_bytes(w));
        let mut next = || words.next().unwrap_or_default();
        let drawn = draws.iter().map(|d| {
            let token = next();
            let [logit, largest, sum] = [next(), next(), next()].map(f32::from_bits);
            // The host takes the logarithm, because a shader's is good to three digits only.
            let normalizer = largest + (f64::from(sum)).ln() as f32;
            let mut likely = || (next(), f32::from_bits(next()) - normalizer);
            let top = (0..d.logprobs.min(vocab)).map(|_| likely()).collect();
            SampledToken { token, logprob: logit - normalizer, top }
        });
        Ok(drawn.collect())
    }
}
