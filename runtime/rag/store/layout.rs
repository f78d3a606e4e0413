//! Validates a graph's file, in the layout that usearch 2 writes, before usearch loads it:
//! usearch follows the numbers in a file without checking them, even outside its memory.
//!
//! A checksum does not help against an attacker: it detects damage, but the author of a store
//! also writes its checksums. Rebuilding every graph from another machine would take minutes for
//! a large store, and nothing in a store proves who wrote it.
//!
//! The layout is little-endian: rows and bytes per row (4 each), the rows; a header of 64 bytes
//! (magic, version in 3 x 2, metric, number, key and slot kinds in 1 each, vectors present,
//! vectors deleted and vector width in 8 each, whether keys repeat in 1); nodes, connectivity,
//! connectivity of the lowest layer, highest layer and first node (8 each); the layer of each
//! node (2); then the nodes: key (8), layer (2), and for each layer from the lowest a count (4)
//! and space for as many slots (4 each) as the layer's connectivity.

use super::graph::GraphFile;

/// Neighbours per vector; the lowest layer has twice as many. Half as many would save little
/// compared with the size of the vectors, and the search would miss several times as many
/// results.
pub(super) const CONNECTIVITY: usize = 32;

const MAGIC: &[u8; 7] = b"usearch";
const MAJOR: u16 = 2;
/// usearch's codes for the cosine metric, 8-bit numbers, 64-bit keys and 32-bit slots.
const KINDS: [u8; 4] = [b'c', 23, 14, 15];
const HEADER: usize = 64;

/// Checks the file of a graph over vectors of `dim` numbers; the error says what is wrong.
pub(super) fn check(bytes: &[u8], dim: usize, file: &GraphFile) -> Result<(), String> {
    let mut rest = Bytes(bytes);
    let (rows, width) = (rest.u32()? as usize, rest.u32()? as usize);
    equal("vectors", file.vectors, rows as u64)?;
    equal("bytes of a vector", dim as u64, width as u64)?;
    rest.take(rows.checked_mul(width).ok_or_else(short)?)?;
    header(rest.take(HEADER)?, dim, rows)?;
    equal("nodes", rows as u64, rest.u64()?)?;
    equal("neighbours", CONNECTIVITY as u64, rest.u64()?)?;
    equal("neighbours in the lowest layer", 2 * CONNECTIVITY as u64, rest.u64()?)?;
    let (highest, first) = (rest.u64()?, rest.u64()?);
    let layers = rest.take(rows.checked_mul(2).ok_or_else(short)?)?;
    let layers: Vec<u16> =
        layers.as_chunks::<2>().0.iter().map(|&layer| u16::from_le_bytes(layer)).collect();
    if layers.is_empty() {
        return equal("bytes behind the nodes", 0, rest.0.len() as u64);
    }
    let of_first = usize::try_from(first).ok().and_then(|first| layers.get(first));
    let of_first = of_first.ok_or_else(|| format!("expected {rows} nodes, found node {first}"))?;
    equal("highest layer", (*of_first).into(), highest)?;
    let mut keys = Vec::with_capacity(rows);
    for (node, &layer) in layers.iter().enumerate() {
        if u64::from(layer) > highest || layer > i16::MAX.cast_unsigned() {
            return Err(format!("node {node}: expected at most layer {highest}, found {layer}"));
        }
        keys.push(rest.u64()?);
        equal("layer of a node", layer.into(), rest.u16()?.into())?;
        for at in 0..=layer {
            neighbours(&mut rest, at, &layers).map_err(|e| format!("node {node}: {e}"))?;
        }
    }
    equal("bytes behind the nodes", 0, rest.0.len() as u64)?;
    keys.sort_unstable();
    match keys.array_windows().find(|[a, b]| a == b) {
        Some([key, _]) => Err(format!("expected each chunk once, found chunk {key} again")),
        None if keys.last().is_some_and(|&key| key > file.through) => {
            Err(format!("expected chunks up to {}, found one behind", file.through))
        }
        None => Ok(()),
    }
}

/// Checks the header. Its magic and version distinguish another format from a damaged file.
fn header(bytes: &[u8], dim: usize, rows: usize) -> Result<(), String> {
    let mut rest = Bytes(bytes);
    if rest.take(MAGIC.len())? != MAGIC {
        return Err("expected a graph of usearch, found something else".into());
    }
    equal("version of usearch", MAJOR.into(), rest.u16()?.into())?;
    rest.take(4)?;
    let kinds = rest.take(KINDS.len())?;
    if kinds != KINDS {
        return Err(format!("expected metric and numbers {KINDS:?}, found {kinds:?}"));
    }
    equal("vectors that are present", rows as u64, rest.u64()?)?;
    equal("vectors that are deleted", 0, rest.u64()?)?;
    equal("numbers of a vector", dim as u64, rest.u64()?)?;
    equal("chunks that repeat", 0, rest.take(1)?.iter().map(|&b| u64::from(b)).sum())
}

/// Reads a node's neighbours in a layer and checks that each of them reaches that layer.
fn neighbours(rest: &mut Bytes<'_>, layer: u16, layers: &[u16]) -> Result<(), String> {
    let most = if layer == 0 { 2 * CONNECTIVITY } else { CONNECTIVITY };
    let count = rest.u32()? as usize;
    let slots = rest.take(4 * most)?.as_chunks::<4>().0;
    let Some(slots) = slots.get(..count) else {
        return Err(format!("layer {layer}: expected at most {most} neighbours, found {count}"));
    };
    for slot in slots.iter().map(|&slot| u32::from_le_bytes(slot)) {
        if layers.get(slot as usize).is_none_or(|&top| top < layer) {
            return Err(format!("layer {layer}: found a neighbour {slot}, which is not in it"));
        }
    }
    Ok(())
}

fn equal(what: &str, expected: u64, found: u64) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected}, found {found}"))
}

fn short() -> String {
    "expected more bytes, found the end".into()
}

/// The bytes that have not been read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }
}
