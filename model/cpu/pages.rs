//! Paged KV cache: keys and values of `(layers, pages, kv_heads, PAGE, head_dim)` each, in f32 or
//! in a smaller format.
//!
//! Smaller formats hold more tokens in the same memory. A head of a page is widened to f32 when it
//! is read, once for all query vectors of a block; it then stays in the processor's cache.

use crate::format::{Dtype, decode, encode};
pub(super) use crate::host::pages::DTYPES;
use crate::ops::{DeviceError, KvShape, PAGE, Result};
use std::ops::Range;

/// Keys and values of all layers. The system provides zeroed memory lazily, as pages are touched,
/// so an unused cache costs nothing.
#[derive(Debug)]
pub struct Pages {
    pub(super) shape: KvShape,
    pub(super) keys: Vectors,
    pub(super) values: Vectors,
}

impl Pages {
    pub(super) fn new(shape: KvShape) -> Result<Self> {
        let elements = shape.layers * shape.kv_heads * PAGE * shape.head_dim;
        let page = shape.dtype.bytes(elements);
        let len = page.saturating_mul(shape.pages);
        // Reserve the memory once without touching it: `vec!` would abort the process if there
        // were not enough.
        Vec::<u8>::new().try_reserve_exact(len.saturating_mul(2)).map_err(|_| {
            let gib = 2.0 * page as f64 * shape.pages as f64 / f64::from(1 << 30);
            DeviceError(format!(
                "the CPU has no room for {} KV tokens ({gib:.0} GiB); lower `kv_tokens`",
                shape.pages * PAGE
            ))
        })?;
        let vectors = || match shape.dtype {
            Dtype::F32 => Vectors::F32(vec![0.0; len / 4]),
            dtype => Vectors::Stored(dtype, vec![0; len]),
        };
        Ok(Self { shape, keys: vectors(), values: vectors() })
    }

    /// Returns the elements of a range of one head's vectors in one page.
    pub(super) fn head(
        &self,
        layer: usize,
        page: usize,
        head: usize,
        vectors: Range<usize>,
    ) -> Range<usize> {
        let s = &self.shape;
        let start = ((layer * s.pages + page) * s.kv_heads + head) * PAGE;
        (start + vectors.start) * s.head_dim..(start + vectors.end) * s.head_dim
    }

    /// Returns the elements of one token's vector in one head; `slot` is page · PAGE + offset.
    pub(super) fn slot(&self, layer: usize, slot: usize, head: usize) -> Range<usize> {
        let at = slot % PAGE;
        self.head(layer, slot / PAGE, head, at..at + 1)
    }
}

/// Vectors of whole blocks.
#[derive(Debug)]
pub(super) enum Vectors {
    F32(Vec<f32>),
    Stored(Dtype, Vec<u8>),
}

impl Vectors {
    /// Returns the elements in f32: in place, or widened into `room`.
    #[inline(always)]
    pub(super) fn read<'a>(&'a self, at: Range<usize>, room: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::F32(all) => &all[at],
            Self::Stored(dtype, bytes) => {
                room.resize(at.len(), 0.0);
                decode(*dtype, &bytes[dtype.bytes(at.start)..dtype.bytes(at.end)], room);
                room
            }
        }
    }

    /// Stores a vector.
    pub(super) fn write(&mut self, at: Range<usize>, vector: &[f32]) {
        match self {
            Self::F32(all) => all[at].copy_from_slice(vector),
            Self::Stored(dtype, bytes) => {
                let place = dtype.bytes(at.start)..dtype.bytes(at.end);
                encode(*dtype, vector, &mut bytes[place]);
            }
        }
    }
}
