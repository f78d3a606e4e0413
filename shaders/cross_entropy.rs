//! cross_entropy: logits of some rows at a time, their gradients in the same place, then both products;
//! see linear.wgsl, cross_entropy.wgsl, outer.wgsl and rows.wgsl.

use crate::gpu::{Grid, Use};
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::rows::{self, Term};
use crate::{Buffer, Matrix, Wgpu, linear_add, shader};
use gritlm_model::ops::CrossEntropy;
use gritlm_model::params;

/// Logits that exist at a time: 64 MiB.
const LOGITS: usize = 1 << 24;

params! {
    /// Parameters; the fields are described in cross_entropy.wgsl.
    Loss {
        rows: u32,
        cols: u32,
        stride: u32,
        first: u32,
        losses_cols: u32,
        losses_stride: u32,
        temperature: f32,
    }
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn cross_entropy(
    device: &Wgpu,
    p: CrossEntropy,
    rows: &[u32],
    targets: &[u32],
    scales: &[f32],
    h: &Buffer,
    w: &Matrix,
    losses: &Buffer,
    dh: &Buffer,
    mut dw: Option<&mut Buffer>,
) {
    let op = "cross_entropy";
    let (dim, vocab) = (p.dim as usize, p.vocab as usize);
    let block = (LOGITS / vocab).max(16);
    for (n, rows) in rows.chunks(block).enumerate() {
        let (first, count) = (n * block, rows.len());
        let work = |cols| device.work(count, cols, Use::Work);
        let (Some(taken), Some(logits), Some(dblock)) = (work(dim), work(vocab), work(dim)) else {
            return;
        };
        rows::gather(device, op, p.dim, rows, h, &taken);
        linear_add::linear(device, op, (count as u32, p.vocab), &taken, w, &logits, false);
        let wanted: Vec<[u32; 4]> = targets[first..][..count]
            .iter()
            .zip(&scales[first..])
            .map(|(&target, scale)| [target, 0, p.vocab, scale.to_bits()])
            .collect();
        differentiate(device, op, p.vocab, &wanted, 1.0, &logits, (first, losses));
        let sizes = Sizes { rows: count as u32, inner: p.dim, outer: p.vocab };
        outer::projection(device, op, sizes, &taken, w, &logits, &dblock, dw.as_deref_mut());
        let terms = (0..).zip(rows).map(|(from, &to)| Term { to, from, scale: 1.0 }).collect();
        rows::add(device, op, p.dim, terms, &dblock, dh);
    }
}

/// Replaces scores by their gradients and writes the losses from place `first` on. A row is wanted as
/// target, first candidate, candidates and the bits of the scale.
pub(crate) fn differentiate(
    device: &Wgpu,
    op: &'static str,
    cols: u32,
    wanted: &[[u32; 4]],
    temperature: f32,
    scores: &Buffer,
    (first, losses): (usize, &Buffer),
) {
    let sent = match device.gpu.send(bytemuck::cast_slice(wanted)) {
        Ok(sent) => sent,
        Err(problem) => return device.gpu.fail(problem),
    };
    let params = Loss {
        rows: wanted.len() as u32,
        cols,
        stride: scores.stride,
        first: first as u32,
        losses_cols: losses.cols as u32,
        losses_stride: losses.stride,
        temperature,
    };
    let values = wanted.len() as u64 * u64::from(cols);
    device.gpu.launch(
        &shader::CROSS_ENTROPY,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&scores.raw), bind(&sent), bind(&losses.raw)],
        Grid::flat(params.rows),
        Work { op, bytes: 8 * values, flops: 4 * values },
    );
}
