//! Checks that the numbers of a store are consistent, before they are multiplied, used as
//! allocation sizes or incremented. Checksums cannot ensure this: the author of a store also
//! writes its checksums.

use super::identity::Identity;
use super::tables::{Index, State};
use std::collections::HashMap;

/// The largest width of a vector.
const DIM: usize = 1 << 20;
/// The largest number of layers, of heads, and of elements per head: their product, times 8
/// bytes, stays below 2⁵².
const SHAPE: usize = 1 << 16;
/// The largest value of any counter, far below the limits of its type and of SQLite's integers.
const COUNT: u64 = 1 << 62;

impl Index {
    /// Checks all numbers; the error says which do not fit.
    pub(super) fn check(&self) -> Result<(), String> {
        self.identity.check_sizes()?;
        self.state.check_counts()?;
        let slots = self.state.slots;
        let rows = slots.checked_mul(self.vector_bytes()).filter(|&bytes| bytes < COUNT);
        if rows.is_none() {
            return Err(format!("{slots} rows of vectors are more than a file can have"));
        }
        for chunk in &self.chunks {
            let (id, slot) = (chunk.id, chunk.slot);
            let next = self.state.next_chunk;
            if id >= next {
                return Err(format!("expected chunks before {next}, found chunk {id}"));
            }
            if slot >= slots {
                return Err(format!("chunk {id}: expected one of {slots} rows, found row {slot}"));
            }
        }
        self.check_records()
    }

    /// Checks that segments match the records in them.
    fn check_records(&self) -> Result<(), String> {
        let mut live: HashMap<u64, u64> = HashMap::new();
        let bytes = self.segments.iter().try_fold(0, |sum: u64, s| sum.checked_add(s.bytes));
        if bytes.is_none_or(|bytes| bytes >= COUNT) {
            return Err("its segments are larger than files can be".into());
        }
        let sizes: HashMap<u64, u64> = self.segments.iter().map(|s| (s.id, s.bytes)).collect();
        for (id, place) in self.chunks.iter().filter_map(|c| Some((c.id, c.kv?))) {
            let end = place.offset.checked_add(place.bytes);
            let size = sizes.get(&place.segment).copied().unwrap_or_default();
            if end.is_none_or(|end| end > size) {
                let (name, at) = (place.segment, place.offset);
                let what = format!("{} bytes at {at} of segment {name}", place.bytes);
                return Err(format!("chunk {id}: expected {size} bytes at most, found {what}"));
            }
            // This cannot overflow: each record fits its segment, and the number of rows is
            // limited.
            let sum = live.entry(place.segment).or_default();
            *sum = sum.saturating_add(place.bytes);
        }
        for segment in &self.segments {
            at_most("segments", self.state.next_segment, segment.id)?;
            let found = live.get(&segment.id).copied().unwrap_or_default();
            if segment.live > segment.bytes || found != segment.live {
                let (id, live) = (segment.id, segment.live);
                return Err(format!("segment {id}: expected {live} live bytes, found {found}"));
            }
        }
        let found = live.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        if found != self.state.kv_bytes {
            let expected = self.state.kv_bytes;
            return Err(format!("expected {expected} bytes of records, found {found}"));
        }
        Ok(())
    }
}

impl Identity {
    fn check_sizes(&self) -> Result<(), String> {
        if self.dim == 0 || self.dim > DIM {
            return Err(format!("dim: expected 1 to {DIM}, found {}", self.dim));
        }
        let shape = self.kv_shape;
        if shape.into_iter().any(|n| n == 0 || n > SHAPE) {
            return Err(format!("KV shape: expected numbers of 1 to {SHAPE}, found {shape:?}"));
        }
        at_most("tokens of a chunk", 1 << 32, self.chunk.max(self.overlap) as u64)
    }
}

impl State {
    fn check_counts(&self) -> Result<(), String> {
        for (what, count) in [
            ("commits", self.commit),
            ("generations", self.generation),
            ("generations of graphs", self.graph_generation),
            ("documents", self.next_document),
            ("chunks", self.next_chunk),
            ("segments", self.next_segment),
            ("evicted chunks", self.evicted),
            ("vectors of the graph", self.graph.map_or(0, |graph| graph.vectors)),
            ("chunks gone from the graph", self.graph.map_or(0, |graph| graph.dead)),
        ] {
            at_most(what, COUNT, count)?;
        }
        Ok(())
    }
}

fn at_most(what: &str, most: u64, found: u64) -> Result<(), String> {
    if found <= most {
        return Ok(());
    }
    Err(format!("{what}: expected at most {most}, found {found}"))
}
