//! The graph for approximate search: HNSW (Malkov and Yashunin, 2018), implemented by usearch.
//!
//! The graph keeps one byte per number, scaled so that 127 is the vector's largest magnitude, and
//! compares cosines, which are independent of that scale. For vectors of length 1 it therefore
//! finds those with the largest inner product, up to rounding; the caller scores them again with
//! the store's own rows.

use super::graph::GraphFile;
use super::layout::CONNECTIVITY;
use super::segment::quantize_row;
use super::vectors::Vectors;
use crate::{Error, Result};
use rayon::prelude::*;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Whether this build can create and search graphs.
pub(super) const AVAILABLE: bool = true;

/// The number of candidates from which a new vector's neighbours are chosen.
const EXPANSION: usize = 128;
/// Vectors added between two progress reports.
const BLOCK: usize = 1024;

/// A graph loaded into memory.
pub(crate) struct Graph {
    /// usearch refuses more concurrent searches than it has reserved threads for. A search takes
    /// less than a millisecond, so searches take turns.
    index: Mutex<Index>,
    file: GraphFile,
    path: PathBuf,
}

impl Graph {
    /// Loads a graph from bytes that [`GraphFile::read`] has validated.
    pub(super) fn load(
        path: &Path,
        dim: usize,
        file: GraphFile,
        bytes: &[u8],
    ) -> Result<Option<Self>> {
        let index = empty(dim).map_err(failed(path))?;
        index.load_from_buffer(bytes).map_err(failed(path))?;
        Ok(Some(Self { index: Mutex::new(index), file, path: path.into() }))
    }

    /// Returns the store's record of the graph's file.
    pub(crate) fn file(&self) -> &GraphFile {
        &self.file
    }

    /// Returns the ids of approximately the `count` chunks nearest to `vector (dim)`, among those
    /// that are `live`.
    pub(crate) fn nearest(
        &self,
        vector: &[f32],
        count: usize,
        live: impl Fn(u64) -> bool,
    ) -> Result<Vec<u64>> {
        let query = bytes(vector);
        // A search changes nothing, so the index of a poisoned lock is valid.
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match self.file.dead {
            0 => index.search(&query, count),
            _ => index.filtered_search(&query, count, live),
        };
        Ok(found.map_err(failed(&self.path))?.keys)
    }

    /// Adds the given rows to `old`, or to an empty graph, and returns the bytes of its file.
    /// `watch` receives the number of rows added so far and the number to add.
    pub(super) fn extend(
        old: Option<Self>,
        path: &Path,
        vectors: &Vectors,
        rows: Range<usize>,
        watch: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let index = match old {
            Some(old) => old.index.into_inner().unwrap_or_else(PoisonError::into_inner),
            None => empty(vectors.dim()).map_err(failed(path))?,
        };
        let threads = rayon::current_num_threads();
        let reserved = index.reserve_capacity_and_threads(index.size() + rows.len(), threads);
        reserved.map_err(failed(path))?;
        let total = rows.len() as u64;
        let ids = vectors.ids().get(rows.clone()).unwrap_or_default();
        for (block, ids) in ids.chunks(BLOCK).enumerate() {
            let done = block * BLOCK;
            watch(done as u64, total)?;
            let first = rows.start + done;
            let added = ids
                .par_iter()
                .enumerate()
                .try_for_each(|(i, &id)| index.add(id, &bytes(&vectors.row(first + i))));
            added.map_err(failed(path))?;
        }
        let mut out = vec![0; index.serialized_length()];
        index.save_to_buffer(&mut out).map_err(failed(path))?;
        watch(total, total)?;
        Ok(out)
    }
}

fn empty(dim: usize) -> Result<Index, impl Display> {
    Index::new(&IndexOptions {
        dimensions: dim,
        metric: MetricKind::Cos,
        quantization: ScalarKind::I8,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION,
        ..IndexOptions::default()
    })
}

/// Quantises a vector as the graph stores it.
fn bytes(vector: &[f32]) -> Vec<i8> {
    let mut bytes = vec![0; vector.len()];
    quantize_row(vector, &mut bytes);
    bytes.into_iter().map(u8::cast_signed).collect()
}

/// Converts usearch's errors, adding the path of the graph's file.
fn failed<E: Display>(path: &Path) -> impl Fn(E) -> Error {
    |error| Error::Store { path: path.into(), problem: format!("usearch: {error}") }
}
