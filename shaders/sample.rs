//! sample: samples tokens on the device; see sample.wgsl.

use crate::gpu::{Grid, Use};
use crate::profile::Work;
use crate::{Buffer, Wgpu, shader, tune};
use gritlm_model::host::sample::{records, tokens};
use gritlm_model::ops::{Result, SampleParams, SampledToken};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in sample.wgsl.
    SamplingParams {
        draws: u32,
        vocab: u32,
        stride: u32,
    }
}

pub(crate) async fn sample(
    device: &Wgpu,
    vocab: u32,
    draws: &[SampleParams],
    logits: &Buffer,
) -> Result<Vec<SampledToken>> {
    if draws.is_empty() {
        return Ok(Vec::new());
    }
    let (records, results) = records(vocab, draws);
    let sent = device.gpu.send(bytemuck::cast_slice(&records))?;
    let changed =
        device.gpu.buffer(Use::Work, 4 * u64::from(logits.stride) * draws.len() as u64)?;
    let out = device.gpu.buffer(Use::Work, results)?;
    let count = draws.len() as u32;
    let params = SamplingParams { draws: count, vocab, stride: logits.stride };
    let bytes = 8 * u64::from(count) * u64::from(vocab);
    device.gpu.launch(
        &shader::SAMPLE,
        &[("LANES", f64::from(tune::SORT_LANES))],
        bytemuck::bytes_of(&params),
        &[(&logits.raw).into(), (&sent).into(), (&changed).into(), (&out).into()],
        Grid::Of(count, 1),
        Work { op: "sample", bytes, flops: bytes },
    );
    let results = device.gpu.read(&out, 0, results).await?;
    Ok(tokens(vocab, draws, &results))
}
