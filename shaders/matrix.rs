//! Weights on the device. Rows are padded to whole groups of 8 elements, quantised ones are in the
//! layout of `codes.rs`, and they lie in as few buffers as their formats and the limit on bindings
//! allow. Several threads upload them through a ring of staging buffers.

use crate::codes::{self, Codes, Maker};
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

/// Bytes of a tensor that are read at a time where it is read in pieces. Larger ones would only take
/// more memory.
const PIECE: usize = 8 << 20;

/// A matrix, or several stacked by rows.
#[derive(Debug)]
pub struct Matrix {
    chunks: Vec<Chunk>,
    pub(crate) cols: u32,
}

/// Consecutive rows of one format in one buffer.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) raw: Arc<Raw>,
    pub(crate) first: u32,
    pub(crate) rows: u32,
    pub(crate) format: Format,
}

/// How rows are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Format {
    pub(crate) dtype: Dtype,
    /// Layout of quantised rows.
    pub(crate) codes: Codes,
    /// Row stride in bytes, a multiple of 16.
    stride: u64,
}

/// Outputs of a product whose weight rows lie in one buffer, or in one for each of an output's
/// two sums; both have one format.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) outputs: Range<u32>,
    pub(crate) chunks: [&'a Chunk; 2],
}

impl Format {
    fn new(dtype: Dtype, cols: usize) -> Self {
        match codes::layout(dtype, cols) {
            Some((codes, words)) => Self { dtype, codes, stride: 4 * words as u64 },
            // 8 elements have at least 16 bytes.
            None => {
                let stride = dtype.bytes(cols.next_multiple_of(8)) as u64;
                Self { dtype, codes: Codes::default(), stride }
            }
        }
    }

    /// Returns the row stride in vectors of four words.
    pub(crate) fn vectors(&self) -> u32 {
        (self.stride / 16) as u32
    }

    /// Returns the bytes that are read of a row of `cols` columns.
    pub(crate) fn row_bytes(&self, cols: u32) -> u64 {
        let plain = !self.dtype.is_quantized();
        if plain { self.dtype.bytes(cols as usize) as u64 } else { self.stride }
    }
}

/// Returns the bytes that a row of a matrix takes on the device, as it is stored there: plain
/// elements padded to groups of 8, quantised ones in a layout of this backend's own.
pub fn row_bytes(dtype: Dtype, cols: usize) -> u64 {
    Format::new(dtype, cols).stride
}

impl Matrix {
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
        let stride = fill.format.stride;
        let part = STAGE / stride * stride;
        let parts = (0..bytes.div_ceil(part)).into_par_iter().map(|n| n * part);
        parts.try_for_each(|at| {
            let len = part.min(bytes - at);
            let stage = self.take(gpu)?;
            let view = stage.buffer.get_mapped_range_mut(0..len);
            let mut view = view.map_err(|e| {
                gpu.check().err().unwrap_or(DeviceError(format!("staging failed: {e}")))
            })?;
            fill.rows((at / stride) as usize, view.slice(..));
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

/// Rows of stacked tensors from row `first` on, all in one format.
struct Fill<'a> {
    parts: &'a [Tensor],
    format: Format,
    first: usize,
}

impl Fill<'_> {
    /// Writes `bytes` bytes of whole rows to a buffer through the queue.
    fn write(&self, gpu: &Gpu, to: &Raw, at: u64, bytes: u64) {
        if let Some(size) = wgpu::BufferSize::new(bytes)
            && let Some(mut view) = gpu.queue.write_buffer_with(&to.buffer, at, size)
        {
            self.rows(0, view.slice(..));
        }
    }

    /// Writes whole padded rows, from row `first` of the chunk on.
    fn rows(&self, first: usize, mut to: wgpu::WriteOnly<'_, [u8]>) {
        let stride = self.format.stride as usize;
        let mut row = self.first + first;
        let mut start = 0;
        for part in self.parts {
            let (rows, cols) = part.matrix_shape();
            let end = start + rows;
            if row >= end || to.is_empty() {
                start = end;
                continue;
            }
            let (dtype, bytes) = (part.dtype(), part.dtype().bytes(cols));
            let count = (end - row).min(to.len() / stride);
            let stored = &part.bytes()[(row - start) * bytes..][..count * bytes];
            let Some(mut to) = to.split_off(..count * stride) else { return };
            if dtype != self.format.dtype {
                let mut values = vec![0.0f32; stride / 4];
                each_row(stored, bytes, to, stride, |stored, mut to| {
                    gritlm_model::weights::decode(dtype, stored, &mut values[..cols]);
                    to.copy_from_slice(bytemuck::cast_slice(&values));
                });
            } else if let Some(mut maker) = Maker::new(dtype, cols) {
                each_row(stored, bytes, to, stride, |stored, mut to| {
                    to.copy_from_slice(bytemuck::cast_slice(maker.row(stored)));
                });
            } else if bytes == stride {
                // Without padding, all rows of this part are copied at once.
                to.copy_from_slice(stored);
            } else {
                let mut padded = vec![0; stride];
                each_row(stored, bytes, to, stride, |stored, mut to| {
                    padded[..bytes].copy_from_slice(stored);
                    to.copy_from_slice(&padded);
                });
            }
            row += count;
            start = end;
        }
    }
}

/// Calls `write` with each stored row of `bytes` bytes and its place of `stride` bytes.
fn each_row(
    stored: &[u8],
    bytes: usize,
    mut to: wgpu::WriteOnly<'_, [u8]>,
    stride: usize,
    mut write: impl FnMut(&[u8], wgpu::WriteOnly<'_, [u8]>),
) {
    for stored in stored.chunks_exact(bytes) {
        let Some(to) = to.split_off(..stride) else { return };
        write(stored, to);
    }
}

/// Returns the types in which parts are stored: their own, but f32 for two that differ and may be
/// the gates and the ups of the same outputs. A launch takes both sums of an output in one format.
fn stored_types(parts: &[Tensor]) -> Vec<Dtype> {
    let mut types: Vec<Dtype> = parts.iter().map(Tensor::dtype).collect();
    // Gates and ups come in turns, of one expert after the other.
    if types.len().is_multiple_of(2) {
        for pair in types.as_chunks_mut::<2>().0 {
            if pair[0] != pair[1] {
                *pair = [Dtype::F32; 2];
            }
        }
    }
    types
}

/// A buffer to be filled with rows of tensors that lie one behind the other.
struct Planned<'a> {
    chunk: Chunk,
    parts: &'a [Tensor],
    /// Row of `parts` that comes first.
    first: usize,
}

/// Allocates buffers of at most `limit` bytes for stacked tensors, each for rows of one format.
fn plan<'a>(gpu: &Gpu, limit: u64, parts: &'a [Tensor]) -> Result<Vec<Planned<'a>>> {
    let cols = parts.first().map_or(0, |p| p.matrix_shape().1);
    let (mut planned, mut before, mut rest) = (Vec::new(), 0, parts);
    for types in stored_types(parts).chunk_by(|a, b| a == b) {
        let (parts, others) = rest.split_at(types.len());
        let format = Format::new(types[0], cols);
        let rows: usize = parts.iter().map(|p| p.matrix_shape().0).sum();
        let most = (limit / format.stride.max(1)) as usize;
        if most == 0 {
            return Err(DeviceError(format!(
                "{} binds at most {} bytes, and one row of a matrix has {}",
                gpu.adapter.label(),
                limit,
                format.stride
            )));
        }
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            let raw = gpu.buffer(Use::Lasting, count as u64 * format.stride)?;
            let chunk = Chunk { raw, first: (before + first) as u32, rows: count as u32, format };
            planned.push(Planned { chunk, parts, first });
        }
        before += rows;
        rest = others;
    }
    Ok(planned)
}

fn matrix(parts: &[Tensor], planned: Vec<Planned<'_>>) -> Matrix {
    let cols = parts.first().map_or(0, |p| p.matrix_shape().1);
    let chunks = planned.into_iter().map(|planned| planned.chunk).collect();
    Matrix { chunks, cols: cols as u32 }
}

/// Uploads stacked tensors into buffers of at most `limit` bytes, each with rows of one format.
pub(crate) fn upload(gpu: &Gpu, ring: &Ring, limit: u64, parts: &[Tensor]) -> Result<Matrix> {
    let planned = plan(gpu, limit, parts)?;
    for Planned { chunk, parts, first } in &planned {
        let fill = Fill { parts, format: chunk.format, first: *first };
        let bytes = u64::from(chunk.rows) * chunk.format.stride;
        if bytes < SMALL || chunk.format.stride > STAGE {
            fill.write(gpu, &chunk.raw, 0, bytes);
        } else {
            ring.upload(gpu, &chunk.raw, bytes, &fill)?;
        }
    }
    gpu.check()?;
    Ok(matrix(parts, planned))
}

/// Does what [`upload`] does with tensors that are read in pieces, one piece at a time, through the
/// queue. A browser has neither threads to fill staging buffers nor memory for a whole matrix.
pub(crate) async fn read<E: From<DeviceError> + From<gritlm_model::Error>>(
    gpu: &Gpu,
    limit: u64,
    parts: &[Tensor],
) -> std::result::Result<Matrix, E> {
    let planned = plan(gpu, limit, parts)?;
    for Planned { chunk, parts, first } in &planned {
        let (format, end) = (chunk.format, first + chunk.rows as usize);
        let mut start = 0;
        for part in *parts {
            let rows = part.matrix_shape().0;
            let mine = (*first).max(start)..end.min(start + rows);
            if mine.is_empty() {
                start += rows;
                continue;
            }
            for piece in pieces(part, mine.start - start..mine.end - start) {
                let read = part.read_rows(piece.clone()).await?;
                let rows = mine.start.max(start + piece.start)..mine.end.min(start + piece.end);
                let fill = Fill { parts: &[read], format, first: rows.start - start - piece.start };
                let (at, bytes) = (rows.start - first, rows.len() as u64 * format.stride);
                fill.write(gpu, &chunk.raw, at as u64 * format.stride, bytes);
            }
            start += rows;
        }
    }
    gpu.settle().await?;
    Ok(matrix(parts, planned))
}

/// Returns pieces of about [`PIECE`] bytes, cut where a tensor can be cut, that hold its `rows`.
fn pieces(part: &Tensor, rows: Range<usize>) -> Vec<Range<usize>> {
    let row_bytes = part.dtype().bytes(part.matrix_shape().1).max(1);
    let together = part.rows_together();
    let step = (PIECE / row_bytes / together).max(1) * together;
    let end = rows.end.next_multiple_of(together);
    let starts = (rows.start / together * together..rows.end).step_by(step);
    starts.map(|start| start..(start + step).min(end)).collect()
}

/// Returns the first rows of a buffer of activations as a matrix of f32 weights, for `search` and
/// `contrastive`.
pub(crate) fn rows_of(raw: &Arc<Raw>, stride: u32, rows: u32, cols: u32) -> Matrix {
    let stride = u64::from(stride) * 4;
    let format = Format { dtype: Dtype::F32, codes: Codes::default(), stride };
    let chunk = Chunk { raw: Arc::clone(raw), first: 0, rows, format };
    Matrix { chunks: vec![chunk], cols }
}
