//! Records of keys and values: a fixed header, then the numbers without padding.
//!
//! The header is little-endian: magic `GRKV`, version (2 bytes), format (2), fingerprint (16),
//! chunk (8), tokens, layers, kv_heads, head_dim (4 each), bytes of the numbers (8), checksum
//! (8). The checksum is the xxh3-64 of these header fields followed by one xxh3-64 for each 256
//! KiB of the numbers. The numbers are `(layers, 2, kv_heads, tokens, head_dim)` in f32 or bf16;
//! in int8, one f32 scale for each `(layer, k or v, head, token)` precedes them.
//!
//! Records are read from a memory map. If the file is in the page cache, reading a record costs
//! only its checksum, at 20 GB/s per core; copying the record first would cost two to four times
//! as much.

use super::identity::{Identity, KvFormat};
use super::map::map;
use super::rows::Place;
use super::{content_hash, disk};
use gritlm::cache::KvSnapshot;
use half::bf16;
use memmap2::Mmap;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the header.
pub(super) const HEADER: usize = 64;
const CHECKSUM: usize = 56;
const MAGIC: &[u8; 4] = b"GRKV";
const VERSION: u16 = 1;
/// Bytes per hash; blocks are hashed in parallel.
const BLOCK: usize = 1 << 18;
/// The fewest rows that a thread quantises or dequantises at once.
const ROWS: usize = 1024;
/// Payloads of up to this many bytes are hashed by one thread, which finishes before others would
/// wake up.
const ALONE: usize = 1 << 22;

/// Builds a record's header without its last field, the checksum, which covers it.
fn header(identity: &Identity, chunk: u64, tokens: usize, payload: usize) -> [u8; CHECKSUM] {
    let [layers, kv_heads, head_dim] = identity.kv_shape;
    let format: u16 = match identity.kv {
        KvFormat::F32 => 0,
        KvFormat::Bf16 => 1,
        KvFormat::Int8 => 2,
    };
    let mut out = [0; CHECKSUM];
    out[..4].copy_from_slice(MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6..8].copy_from_slice(&format.to_le_bytes());
    out[8..24].copy_from_slice(&identity.fingerprint.to_le_bytes());
    out[24..32].copy_from_slice(&chunk.to_le_bytes());
    for (i, n) in [tokens, layers, kv_heads, head_dim].into_iter().enumerate() {
        out[32 + 4 * i..][..4].copy_from_slice(&(n as u32).to_le_bytes());
    }
    out[48..].copy_from_slice(&(payload as u64).to_le_bytes());
    out
}

/// Returns the checksum of a header and the numbers.
fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    // One core hashes 20 GB/s, so a small payload is done before other threads have woken.
    let blocks: Vec<u64> = match payload.len() {
        ..=ALONE => payload.chunks(BLOCK).map(content_hash).collect(),
        _ => payload.par_chunks(BLOCK).map(content_hash).collect(),
    };
    let blocks = blocks.into_iter().flat_map(u64::to_le_bytes);
    content_hash(&header.iter().copied().chain(blocks).collect::<Vec<u8>>())
}

/// A record that is ready to be appended.
pub(super) struct Record<'a> {
    pub(super) header: [u8; HEADER],
    pub(super) payload: Cow<'a, [u8]>,
    pub(super) checksum: u64,
}

impl<'a> Record<'a> {
    /// Encodes `kv`, which has the identity's shape.
    pub(super) fn of(identity: &Identity, chunk: u64, kv: &'a KvSnapshot) -> Self {
        let payload = encode(kv, identity.kv);
        let covered = header(identity, chunk, kv.tokens(), payload.len());
        let checksum = checksum(&covered, &payload);
        let mut header = [0; HEADER];
        header[..CHECKSUM].copy_from_slice(&covered);
        header[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        Self { header, payload, checksum }
    }
}

/// A segment's file, mapped up to the end that a view has recorded.
pub(super) struct Segment {
    file: File,
    map: Arc<Mmap>,
}

impl Segment {
    /// Maps the first `bytes` of a file, or all of it if it is shorter.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = disk::open_read(path)?;
        let len = file.metadata()?.len().min(bytes);
        Ok(Self { map: Arc::new(map(&file, len as usize)?), file })
    }

    /// Reads a chunk's record and compares it with its checksum. The numbers stay in the mapped
    /// file, except for int8, which is converted to f32. The error says what is wrong.
    pub(super) fn read(
        &self,
        identity: &Identity,
        chunk: u64,
        place: Place,
    ) -> Result<KvSnapshot, String> {
        let wrong = |what: String| format!("record at {}: {what}", place.offset);
        // Accessing mapped bytes that another program has truncated would kill this process.
        let len = self.file.metadata().map_err(|e| wrong(e.to_string()))?.len();
        let end = place.offset.saturating_add(place.bytes);
        let (start, end) = (place.offset as usize, end as usize);
        let record = self.map.get(start..end).filter(|_| end as u64 <= len);
        let record = record.ok_or_else(|| wrong(format!("expected {end} bytes, found {len}")))?;
        // Lets the system read the record from the disk in large pieces, not page by page on
        // access.
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, record.len());
        let (found, payload) = record
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| wrong(format!("expected {HEADER} bytes or more")))?;
        let per_token = identity.kv_bytes_per_token();
        let bytes = payload.len() as u64;
        if per_token == 0 || !bytes.is_multiple_of(per_token) {
            return Err(wrong(format!("expected {per_token} bytes a token, found {bytes} bytes")));
        }
        let tokens = (bytes / per_token) as usize;
        let covered = header(identity, chunk, tokens, payload.len());
        if found[..CHECKSUM] != covered {
            return Err(wrong(format!(
                "expected the header of chunk {chunk} with {tokens} tokens, found another"
            )));
        }
        let sum = checksum(&covered, payload);
        if sum != place.checksum || found[CHECKSUM..] != sum.to_le_bytes() {
            return Err(wrong(format!(
                "checksum: expected {:016x}, found {sum:016x}",
                place.checksum
            )));
        }
        let [layers, kv_heads, head_dim] = identity.kv_shape;
        let shape = [layers, 2, kv_heads, tokens, head_dim];
        let numbers = start + HEADER..end;
        let kv = match identity.kv {
            KvFormat::F32 => KvSnapshot::from_map(shape, false, &self.map, numbers),
            KvFormat::Bf16 => KvSnapshot::from_map(shape, true, &self.map, numbers),
            KvFormat::Int8 => KvSnapshot::from_f32(shape, dequantize(payload, head_dim)),
        };
        kv.map_err(|e| wrong(e.to_string()))
    }
}

/// Converts the numbers to the store's format.
fn encode(kv: &KvSnapshot, format: KvFormat) -> Cow<'_, [u8]> {
    let exact = || kv.as_f32().map_or_else(|| Cow::Owned(kv.to_f32()), Cow::Borrowed);
    match format {
        KvFormat::F32 => match exact() {
            Cow::Borrowed(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
            Cow::Owned(values) => Cow::Owned(bytemuck::cast_slice(&values).to_vec()),
        },
        KvFormat::Bf16 => match kv.as_bf16() {
            Some(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
            None => Cow::Owned(round(&exact())),
        },
        KvFormat::Int8 => Cow::Owned(quantize(&exact(), kv.shape()[4])),
    }
}

/// Rounds the numbers to bfloat16.
fn round(values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; 2 * values.len()];
    out.par_chunks_mut(BLOCK).zip(values.par_chunks(BLOCK / 2)).for_each(|(out, values)| {
        for (out, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
            *out = bf16::from_f32(*v).to_le_bytes();
        }
    });
    out
}

/// Quantises rows of `width` numbers; returns the scales of all rows, then the rows as bytes.
fn quantize(values: &[f32], width: usize) -> Vec<u8> {
    let rows = values.len() / width.max(1);
    let mut out = vec![0; 4 * rows + values.len()];
    let (scales, bytes) = out.split_at_mut(4 * rows);
    let places = scales.par_chunks_mut(4).zip(bytes.par_chunks_mut(width.max(1)));
    places.zip(values.par_chunks(width.max(1))).with_min_len(ROWS).for_each(
        |((scale, bytes), row)| {
            scale.copy_from_slice(&quantize_row(row, bytes).to_le_bytes());
        },
    );
    out
}

/// Writes a row's numbers as signed bytes and returns the scale to multiply them by.
pub(super) fn quantize_row(row: &[f32], bytes: &mut [u8]) -> f32 {
    let largest = row.iter().fold(0_f32, |most, v| most.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (byte, v) in bytes.iter_mut().zip(row) {
        *byte = ((v * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    scale
}

/// Converts the output of [`quantize`] back to numbers.
fn dequantize(bytes: &[u8], width: usize) -> Vec<f32> {
    let rows = bytes.len() / (width + 4);
    let (scales, bytes) = bytes.split_at(4 * rows);
    let mut out = vec![0.0; bytes.len()];
    let places = out.par_chunks_mut(width.max(1)).zip(bytes.par_chunks(width.max(1)));
    places.zip(scales.as_chunks::<4>().0).with_min_len(ROWS).for_each(|((out, bytes), &scale)| {
        dequantize_row(f32::from_le_bytes(scale), bytes, out);
    });
    out
}

/// Converts the output of [`quantize_row`] back to numbers.
pub(super) fn dequantize_row(scale: f32, bytes: &[u8], out: &mut [f32]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = scale * f32::from(byte.cast_signed());
    }
}
