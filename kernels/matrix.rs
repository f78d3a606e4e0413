//! Weights on the GPU: bf16, rows padded with zeros to a multiple of 8 columns.
//!
//! They travel from the mapped files through a small ring of pinned buffers. All threads fill one
//! buffer, copying bf16 or rounding f16 and f32, and the GPU copies from it while they fill the
//! next. Pinning the files themselves would cost more than it saves (some 2 GB/s), and copies
//! from memory that is not pinned reach a third of the rate.

use crate::driver::{Driver, said};
use crate::gpu::{Gpu, Raw, Use};
use crate::send::Pinned;
use cudarc::driver::CudaEvent;
use gritlm_model::ops::{DeviceError, Result};
use gritlm_model::weights::{Dtype, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// Number of buffers in the ring, and bytes of each. The copy from one hides the filling of the
/// next.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 8 << 20;

/// Bytes that a thread fills at a time.
const PIECE: usize = 128 << 10;

/// A weight matrix, possibly several stacked by rows.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) raw: Arc<Raw>,
    pub(crate) cols: u32,
    /// Row stride in elements.
    pub(crate) stride: u32,
}

/// A pinned buffer, and the event at the end of the copy from it.
struct Slot {
    pinned: Pinned,
    copied: Option<CudaEvent>,
}

/// The pinned buffers; empty before the first matrix and after the last.
#[derive(Default)]
pub(crate) struct Ring(Mutex<Vec<Slot>>);

impl Ring {
    /// Frees the pinned memory once loading is over and the last copies from it are done.
    pub(crate) fn release(&self) {
        for slot in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(copied) = slot.copied {
                // The next read reports what went wrong.
                let _ = copied.synchronize();
            }
        }
    }
}

fn waited(problem: cudarc::driver::DriverError) -> DeviceError {
    said("does not finish a copy", problem)
}

impl Slot {
    fn new(driver: &Driver) -> Result<Self> {
        Ok(Self { pinned: driver.pinned(SLOT_BYTES)?, copied: None })
    }

    /// Waits for the last copy from the buffer, fills it again and starts the next copy.
    fn send(
        &mut self,
        gpu: &Gpu,
        (to, at): (&Raw, u64),
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        if let Some(copied) = self.copied.take() {
            copied.synchronize().map_err(waited)?;
        }
        let all = self.pinned.bytes()?;
        fill(&mut all[..bytes]);
        gpu.upload(to, at, &all[..bytes])?;
        self.copied = gpu.driver.event()?;
        Ok(())
    }
}

/// Uploads matrices of equal width, stacked by rows.
pub(crate) fn upload(gpu: &Gpu, ring: &Ring, parts: &[Tensor]) -> Result<Matrix> {
    if let Some(part) = parts.iter().find(|part| part.dtype().is_quantized()) {
        let found = part.dtype();
        return Err(DeviceError(format!("CUDA takes weights in BF16, F16 or F32, found {found}")));
    }
    let cols = parts.first().map_or(0, |part| part.matrix_shape().1);
    let stride = cols.next_multiple_of(8);
    let rows: usize = parts.iter().map(|part| part.matrix_shape().0).sum();
    let raw = gpu.buffer_for(Use::Lasting, 2 * (rows * stride) as u64)?;
    if gpu.driver.is_planned() {
        return Ok(Matrix { raw, cols: cols as u32, stride: stride as u32 });
    }
    let mut ring = ring.0.lock().unwrap_or_else(PoisonError::into_inner);
    while ring.len() < SLOTS {
        ring.push(Slot::new(&gpu.driver)?);
    }
    let mut at = 0;
    for part in parts {
        // Rows that are padded or rounded go whole rows at a time, all others as plain bytes.
        let (row, padded) = (part.dtype().bytes(cols), 2 * stride);
        let plain = part.dtype() == Dtype::Bf16 && cols == stride;
        let rows_at_once = if plain { 1 } else { (SLOT_BYTES / padded).max(1) };
        let step = if plain { SLOT_BYTES } else { rows_at_once * row };
        if padded > SLOT_BYTES {
            return Err(DeviceError(format!("a row of {cols} weights is wider than supported")));
        }
        for from in part.bytes().chunks(step.max(1)) {
            ring.rotate_left(1);
            let bytes = if plain { from.len() } else { from.len() / row * padded };
            ring[SLOTS - 1].send(gpu, (&raw, at), bytes, |to| {
                if plain {
                    let pieces = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
                    pieces.for_each(|(to, from)| to.copy_from_slice(from));
                } else {
                    let rows = to.par_chunks_mut(padded).zip(from.par_chunks(row));
                    rows.for_each(|(to, from)| narrow_row(part.dtype(), from, to));
                }
            })?;
            at += bytes as u64;
        }
    }
    Ok(Matrix { raw, cols: cols as u32, stride: stride as u32 })
}

/// Rounds a row to bf16, and fills up with zeros to the stride. The row is read as bytes because
/// tensors of a checkpoint may begin at any address.
fn narrow_row(dtype: Dtype, from: &[u8], to: &mut [u8]) {
    let value = |bytes: &[u8]| match (dtype, bytes) {
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]),
        (Dtype::F16, &[a, b]) => bf16::from_f32(f16::from_le_bytes([a, b]).to_f32()),
        (Dtype::F32, &[a, b, c, d]) => bf16::from_f32(f32::from_le_bytes([a, b, c, d])),
        _ => bf16::ZERO,
    };
    let values = from.chunks_exact(dtype.block_bytes()).map(value);
    for (to, value) in to.chunks_exact_mut(2).zip(values.chain(std::iter::repeat(bf16::ZERO))) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}
