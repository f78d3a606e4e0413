//! sample: samples tokens on the device; see sample.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda};
use gritlm_model::host::sample::{records, tokens};
use gritlm_model::ops::{Result, SampleParams, SampledToken};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in sample.cu.
    SamplingParams {
        logits: Pointer,
        draws: Pointer,
        orders: Pointer,
        out: Pointer,
        vocab: u32,
        stride: u32,
    }
}

pub(crate) fn sample(
    device: &Cuda,
    vocab: u32,
    draws: &[SampleParams],
    logits: &Buffer,
) -> Result<Vec<SampledToken>> {
    if draws.is_empty() {
        return Ok(Vec::new());
    }
    let (mut records, results) = records(vocab, draws);
    // The number of seen ids grows from step to step; the buffer keeps its address as long as
    // its rounded size stays the same.
    records.resize(records.len().next_power_of_two(), 0);
    let sent = device.gpu.send(bytemuck::cast_slice(&records))?;
    let count = draws.len() as u32;
    let orders = device.gpu.buffer(4 * u64::from(count) * u64::from(logits.stride))?;
    let out = device.gpu.buffer(results)?;
    let params = SamplingParams {
        logits: logits.raw.pointer(),
        draws: sent.pointer(),
        orders: orders.pointer(),
        out: out.pointer(),
        vocab,
        stride: logits.stride,
    };
    let values = u64::from(count) * u64::from(vocab);
    device.gpu.launch(
        Kernel { source: "sample", entry: "sample_rows".into() },
        // 8 bytes for each of 32 warps.
        Grid { blocks: [count, 1, 1], threads: 1024, shared: 8 * 32 },
        &params,
        Work { op: "sample", bytes: 4 * values, flops: 2 * values, ..Work::default() },
    );
    let results = device.gpu.read(&out, 0, results)?;
    Ok(tokens(vocab, draws, &results))
}
