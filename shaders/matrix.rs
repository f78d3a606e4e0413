//! Weights on the device. Rows are padded to whole groups of 8 elements and lie in as few buffers
//! as the limit on bindings allows. Several threads upload them through a ring of staging
//! buffers.

use crate::gpu::{Binding, Gpu, Raw, Use};
use gritlm_model::ops::{DeviceError, Result};
use gritlm_model::weights::{Dtype, Tensor};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Bytes of one staging buffer, and how many buffers wait for the device before the oldest is
/// used again: some are filled while others are copied.
const STAGE: u64 = 4 << 20;
const STAGES: usize = 4;

/// Buffers of fewer bytes than this are written through the queue, without staging.
const SMALL: u64 = 256 << 10;

/// A matrix, or several stacked by rows.
#[derive(Debug)]
pub struct Matrix {
    chunks: Vec<Chunk>,
    pub(crate) dtype: Dtype,
    pub(crate) cols: u32,
    /// Row stride in bytes, a multiple of 16 because 8 elements have at least 16 bytes.
    stride: u64,
}

/// Consecutive rows in one buffer.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) raw: Arc<Raw>,
    pub(crate) first: u32,
    pub(crate) rows: u32,
}

/// Outputs of a product whose weight rows lie in one buffer, or in one for each of an output's
/// two sums.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) outputs: Range<u32>,
    pub(crate) chunks: [&'a Chunk; 2],
}

/// Returns the bytes of a row of `cols` elements, padded.
fn stride(dtype: Dtype, cols: usize) -> u64 {
    dtype.bytes(cols.next_multiple_of(8)) as u64
}

impl Matrix {
    /// Returns the row stride in vectors of four words.
    pub(crate) fn vectors(&self) -> u32 {
        (self.stride / 16) as u32
    }

    /// Returns the bytes of a row without its padding.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.dtype.bytes(self.cols as usize) as u64
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    fn chunk_of(&self, row: u32) -> usize {
        self.chunks.partition_point(|c| c.first <= row) - 1
    }

    /// Splits `outputs` outputs wherever the weight row of one of their sums moves to another
    /// buffer. `row(member, output)` returns that row.
    pub(crate) fn segments(
        &self,
        outputs: u32,
        members: u32,
        row: impl Fn(u32, u32) -> u32,
    ) -> Vec<Segment<'_>> {
        if let [only] = self.chunks.as_slice() {
            return vec![Segment { outputs: 0..outputs, chunks: [only, only] }];
        }
        let at = |j: u32| [self.chunk_of(row(0, j)), self.chunk_of(row(members - 1, j))];
        let mut segments: Vec<Segment<'_>> = Vec::new();
        let mut start = 0;
        for j in 0..outputs {
            if j + 1 == outputs || at(j + 1) != at(j) {
                let chunks = at(j).map(|c| &self.chunks[c]);
                segments.push(Segment { outputs: start..j + 1, chunks });
                start = j + 1;
            }
        }
        segments
    }
}

impl Chunk {
    pub(crate) fn binding(&self) -> Binding<'_> {
        (&self.raw).into()
    }
}

/// Staging buffers that the host fills and the device copies from, in turns.
#[derive(Default)]
pub(crate) struct Ring(Mutex<VecDeque<Stage>>);

struct Stage {
    buffer: wgpu::Buffer,
    /// Receives a message when the device is done with the buffer.
    ready: Option<mpsc::Receiver<()>>,
}

impl Ring {
    /// Fills a buffer of `bytes` bytes from several threads at once, each with a staging buffer.
    fn upload(&self, gpu: &Gpu, to: &Raw, bytes: u64, fill: &Fill<'_>) -> Result<()> {
        let part = STAGE / fill.stride * fill.stride;
        let parts = (0..bytes.div_ceil(part)).into_par_iter().map(|n| n * part);
        parts.try_for_each(|at| {
            let len = part.min(bytes - at);
            let stage = self.take(gpu)?;
            let view = stage.buffer.get_mapped_range_mut(0..len);
            let mut view = view.map_err(|e| {
                gpu.check().err().unwrap_or(DeviceError(format!("staging failed: {e}")))
            })?;
            fill.rows((at / fill.stride) as usize, view.slice(..));
            drop(view);
            stage.buffer.unmap();
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&stage.buffer, 0, &to.buffer, at, len);
            gpu.queue.submit([encoder.finish()]);
            let (done, ready) = mpsc::channel();
            stage.buffer.map_async(wgpu::MapMode::Write, .., move |_| {
                // The receiver is gone if loading has failed.
                let _ = done.send(());
            });
            self.stages().push_back(Stage { ready: Some(ready), ..stage });
            Ok(())
        })?;
        gpu.check()
    }

    fn stages(&self) -> std::sync::MutexGuard<'_, VecDeque<Stage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a mapped staging buffer. While fewer than [`STAGES`] are queued it creates a new
    /// one; otherwise it takes the one queued longest and waits until the device is done with it.
    fn take(&self, gpu: &Gpu) -> Result<Stage> {
        let waiting = {
            let mut stages = self.stages();
            (stages.len() >= STAGES).then(|| stages.pop_front()).flatten()
        };
        if let Some(stage) = waiting {
            while let Some(ready) = &stage.ready
                && ready.try_recv().is_err()
            {
                // Poll instead of waiting: a wait keeps the other threads from submitting.
                gpu.look()?;
                std::thread::sleep(Duration::from_micros(100));
            }
            return Ok(stage);
        }
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: STAGE,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        gpu.check()?;
        Ok(Stage { buffer, ready: None })
    }

    /// Frees the staging memory when loading is done.
    pub(crate) fn release(&self) {
        self.stages().clear();
    }
}

/// Rows of stacked tensors from row `first` on, all in one type.
struct Fill<'a> {
    parts: &'a [Tensor],
    dtype: Dtype,
    first: usize,
    stride: u64,
}

impl Fill<'_> {
    /// Writes whole padded rows, from row `first` of the chunk on.
    fn rows(&self, first: usize, mut to: wgpu::WriteOnly<'_, [u8]>) {
        let mut row = self.first + first;
        let mut start = 0;
        for part in self.parts {
            let (rows, cols) = part.matrix_shape();
            let end = start + rows;
            while row < end && !to.is_empty() {
                let bytes = part.dtype().bytes(cols);
                let from = (row - start) * bytes;
                let same = part.dtype() == self.dtype;
                if same && bytes as u64 == self.stride {
                    // Without padding, all rows of this part are copied at once.
                    let n = (end - row).min(to.len() / bytes);
                    let Some(mut mine) = to.split_off(..n * bytes) else { return };
                    mine.copy_from_slice(&part.bytes()[from..from + n * bytes]);
                    row += n;
                    continue;
                }
                let Some(mut mine) = to.split_off(..self.stride as usize) else { return };
                let mut padded = vec![0; self.stride as usize];
                if same {
                    padded[..bytes].copy_from_slice(&part.bytes()[from..from + bytes]);
                } else {
                    let mut values = vec![0.0f32; cols];
                    let stored = &part.bytes()[from..from + bytes];
                    gritlm_model::weights::decode(part.dtype(), stored, &mut values);
                    padded[..4 * cols].copy_from_slice(bytemuck::cast_slice(&values));
                }
                mine.copy_from_slice(&padded);
                row += 1;
            }
            start = end;
        }
    }
}

/// Uploads stacked tensors into buffers of at most `limit` bytes. Parts of different types are
/// all widened to f32.
pub(crate) fn upload(gpu: &Gpu, ring: &Ring, limit: u64, parts: &[Tensor]) -> Result<Matrix> {
    if let Some(part) = parts.iter().find(|part| part.dtype().is_quantized()) {
        let found = part.dtype();
        return Err(DeviceError(format!("WGSL takes weights in BF16, F16 or F32, found {found}")));
    }
    let cols = parts.first().map_or(0, |p| p.matrix_shape().1);
    let first_type = parts.first().map_or(Dtype::F32, Tensor::dtype);
    let same = parts.iter().all(|p| p.dtype() == first_type);
    let dtype = if same { first_type } else { Dtype::F32 };
    let rows: usize = parts.iter().map(|p| p.matrix_shape().0).sum();
    let stride = stride(dtype, cols);
    let most = (limit / stride.max(1)) as usize;
    if most == 0 {
        return Err(DeviceError(format!(
            "{} binds at most {} bytes, and one row of a matrix has {stride}",
            gpu.adapter.label(),
            limit
        )));
    }
    let mut chunks = Vec::new();
    for first in (0..rows).step_by(most) {
        let count = most.min(rows - first);
        let bytes = count as u64 * stride;
        let raw = gpu.buffer(Use::Lasting, bytes)?;
        let fill = Fill { parts, dtype, first, stride };
        if bytes < SMALL || stride > STAGE {
            if let Some(size) = wgpu::BufferSize::new(bytes)
                && let Some(mut view) = gpu.queue.write_buffer_with(&raw.buffer, 0, size)
            {
                fill.rows(0, view.slice(..));
            }
        } else {
            ring.upload(gpu, &raw, bytes, &fill)?;
        }
        chunks.push(Chunk { raw, first: first as u32, rows: count as u32 });
    }
    gpu.check()?;
    Ok(Matrix { chunks, dtype, cols: cols as u32, stride })
}

/// Returns the rows of a buffer of activations as a matrix of f32 weights, for `search`.
pub(crate) fn rows_of(raw: &Arc<Raw>, stride: u32, cols: u32) -> Matrix {
    let chunk = Chunk { raw: Arc::clone(raw), first: 0, rows: 0 };
    Matrix { chunks: vec![chunk], dtype: Dtype::F32, cols, stride: u64::from(stride) * 4 }
}
