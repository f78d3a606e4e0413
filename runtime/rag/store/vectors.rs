//! The vectors' file: rows in the store's format, one per slot, and nothing else.

use super::content_hash;
use super::disk::MISSING;
use super::identity::{Identity, VectorFormat};
use super::map::map;
use super::rows::ChunkRow;
use super::segment::{dequantize_row, quantize_row};
use crate::{Error, Result};
use half::bf16;
use memmap2::Mmap;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fs::File;
use std::path::PathBuf;

/// Encodes a vector in the store's format.
pub(super) fn encode(identity: &Identity, vector: &[f32]) -> Vec<u8> {
    match identity.vectors {
        VectorFormat::F32 => bytemuck::cast_slice(vector).to_vec(),
        VectorFormat::Bf16 => {
            vector.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
        }
        VectorFormat::Int8 => {
            let mut out = vec![0; 4 + vector.len()];
            let scale = quantize_row(vector, &mut out[4..]);
            out[..4].copy_from_slice(&scale.to_le_bytes());
            out
        }
    }
}

/// Decodes a row to `out`.
fn decode(format: VectorFormat, row: &[u8], out: &mut [f32]) {
    match format {
        VectorFormat::F32 => {
            for (out, bytes) in out.iter_mut().zip(row.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        VectorFormat::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        VectorFormat::Int8 => {
            if let Some((scale, bytes)) = row.split_first_chunk::<4>() {
                dequantize_row(f32::from_le_bytes(*scale), bytes, out);
            }
        }
    }
}

/// The vectors of all chunks of a snapshot, each compared with its checksum. They stay readable
/// when the reader is refreshed or the store is compacted.
pub struct Vectors {
    ids: Vec<u64>,
    dim: usize,
    width: usize,
    format: VectorFormat,
    /// The slot of each row.
    slots: Vec<u64>,
    /// Whether row `i` is in slot `i` for all rows.
    dense: bool,
    /// The mapped rows; None if there are none.
    rows: Option<Mmap>,
    /// The file that is mapped.
    file: Option<File>,
    path: PathBuf,
}

impl Vectors {
    /// Maps the file and checks `rows`. The error says what is wrong, and with which chunk if it
    /// concerns one.
    pub(super) fn open(
        file: Option<&File>,
        identity: &Identity,
        slots: u64,
        rows: &[ChunkRow],
    ) -> std::result::Result<Self, (Option<u64>, String)> {
        let width = identity.vector_bytes();
        let mut out = Self {
            ids: rows.iter().map(|row| row.id).collect(),
            dim: identity.dim,
            width,
            format: identity.vectors,
            slots: rows.iter().map(|row| row.slot).collect(),
            dense: rows.iter().zip(0..).all(|(row, slot)| row.slot == slot),
            rows: None,
            file: None,
            path: PathBuf::new(),
        };
        if rows.is_empty() || width == 0 {
            return Ok(out);
        }
        let whole = |e: std::io::Error| (None, e.to_string());
        let file = file.ok_or_else(|| (None, MISSING.to_string()))?;
        let expected = slots.checked_mul(width as u64).filter(|&n| n <= isize::MAX as u64);
        let expected = expected.ok_or_else(|| (None, format!("{slots} rows are too many")))?;
        let found = file.metadata().map_err(whole)?.len();
        if found < expected {
            return Err((None, format!("expected {expected} bytes, found {found}")));
        }
        let mapped = map(file, expected as usize).map_err(whole)?;
        let wrong = rows.par_iter().find_map_first(|row| {
            let (id, expected) = (row.id, row.vector_checksum);
            let Some(bytes) = mapped.get(range(row.slot, width)) else {
                let slot = row.slot;
                return Some((
                    Some(id),
                    format!("vector of chunk {id}: expected one of {slots} rows, found row {slot}"),
                ));
            };
            let sum = content_hash(bytes);
            let problem = || {
                format!("vector of chunk {id}: expected checksum {expected:016x}, found {sum:016x}")
            };
            (sum != expected).then(|| (Some(id), problem()))
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        out.rows = Some(mapped);
        out.file = Some(file.try_clone().map_err(whole)?);
        Ok(out)
    }

    /// Sets the file's path, for error messages.
    pub(super) fn named(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// Checks that the file still has all mapped bytes. Reading rows that another program has
    /// truncated would kill this process, so call this before each use of vectors that were kept
    /// for long. It cannot detect a truncation during the use.
    ///
    /// # Errors
    /// When the file is shorter than it was.
    pub fn check(&self) -> Result<()> {
        let (Some(file), Some(rows)) = (&self.file, &self.rows) else { return Ok(()) };
        let (expected, found) = (rows.len(), file.metadata().map_err(Error::io(&self.path))?.len());
        if found < expected as u64 {
            let problem = format!("expected {expected} bytes, found {found}: it was cut off");
            return Err(Error::Store { path: self.path.clone(), problem });
        }
        Ok(())
    }

    /// Returns the chunks' ids in the order of the rows, ascending.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the width of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn row_bytes(&self, row: usize) -> &[u8] {
        let rows = self.rows.as_deref().unwrap_or_default();
        self.slots.get(row).and_then(|&slot| rows.get(range(slot, self.width))).unwrap_or_default()
    }

    /// Returns row `row`, counted from 0; beyond the last row, zeros.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.dim];
        decode(self.format, self.row_bytes(row), &mut out);
        out
    }

    /// Returns the given rows, `(rows, dim)`, in the given order; zeros for those beyond the
    /// last.
    pub fn rows(&self, rows: &[usize]) -> Vec<f32> {
        let mut out = vec![0.0; rows.len() * self.dim];
        let places = out.par_chunks_mut(self.dim.max(1)).zip(rows).with_min_len(64);
        places.for_each(|(out, &row)| decode(self.format, self.row_bytes(row), out));
        out
    }

    /// Returns all rows `(len, dim)` in the mapped file, if its format is f32 and none of its
    /// rows is dead (see [`Writer::compact`](super::Writer::compact)).
    pub fn as_f32(&self) -> Option<&[f32]> {
        if !self.dense || self.format != VectorFormat::F32 {
            return None;
        }
        let rows = self.rows.as_deref().unwrap_or_default();
        bytemuck::try_cast_slice(rows.get(..self.len() * self.width)?).ok()
    }

    /// Returns all rows `(len, dim)`: those of [`Vectors::as_f32`], or a converted copy.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        if let Some(rows) = self.as_f32() {
            return Cow::Borrowed(rows);
        }
        let all: Vec<usize> = (0..self.len()).collect();
        Cow::Owned(self.rows(&all))
    }
}

fn range(slot: u64, width: usize) -> std::ops::Range<usize> {
    let start = (slot as usize).saturating_mul(width);
    start..start.saturating_add(width)
}
