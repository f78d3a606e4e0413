//! sample: samples tokens on the device; see sample.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::{Pointer, params};
use crate::{Buffer, Cuda};
use gritlm_model::ops::{Result, SampleParams, SampledToken};

params! {
    /// Parameters; the fields are described in sample.cu.
    Draws {
        logits: Pointer,
        draws: Pointer,
        orders: Pointer,
        out: Pointer,
        vocab: u32,
        stride: u32,
    }
}

/// Words of one row's record, and of its result before the most likely tokens.
const RECORD: usize = 11;
const RESULT: usize = 4;

impl Cuda {
    pub(crate) fn drawn(
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
        // The number of seen ids grows from step to step; the buffer keeps its address as long as
        // its rounded size stays the same.
        records.resize(records.len().next_power_of_two(), 0);
        let sent = self.gpu.send(bytemuck::cast_slice(&records))?;
        let count = draws.len() as u32;
        let orders = self.gpu.buffer(4 * u64::from(count) * u64::from(logits.stride))?;
        let out = self.gpu.buffer(4 * end as u64)?;
        let params = Draws {
            logits: logits.raw.pointer(),
            draws: sent.pointer(),
            orders: orders.pointer(),
            out: out.pointer(),
            vocab,
            stride: logits.stride,
        };
        let values = u64::from(count) * u64::from(vocab);
        self.gpu.launch(
            Kernel { source: "sample", entry: "sample_rows".into() },
            // 8 bytes for each of 32 warps.
            Grid { blocks: [count, 1, 1], threads: 1024, shared: 8 * 32 },
            &params,
            Work { op: "sample", bytes: 4 * values, flops: 2 * values },
        );
        let words = self.gpu.read(&out, 0, 4 * end as u64)?;
        let mut words = words.as_chunks::<4>().0.iter().map(|&w| u32::from_le_bytes(w));
        let mut next = || words.next().unwrap_or_default();
        let drawn = draws.iter().map(|d| {
            let token = next();
            let [logit, largest, sum] = [next(), next(), next()].map(f32::from_bits);
            // The host takes the logarithm, in f64, as the CPU twin does.
            let normalizer = largest + (f64::from(sum)).ln() as f32;
            let mut likely = || (next(), f32::from_bits(next()) - normalizer);
            let top = (0..d.logprobs.min(vocab)).map(|_| likely()).collect();
            SampledToken { token, logprob: logit - normalizer, top }
        });
        Ok(drawn.collect())
    }
}
