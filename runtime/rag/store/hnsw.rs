//! The graph itself: HNSW (Malkov and Yashunin, 2018), by usearch.
//!
//! It keeps a byte for each number, in 127ths of its vector's largest, and compares cosines, which
//! do not see that unit. So of vectors whose length is 1 it finds those with the largest inner
//! product, up to rounding: what it finds is to be scored again with the store's own rows.

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

/// Whether this build makes graphs and searches them.
pub(super) const AVAILABLE: bool = true;

/// Candidates that neighbours are chosen from.
const EXPANSION: usize = 128;
/// Vectors that are added between two reports of the progress.
const BLOCK: usize = 1024;

/// The graph of a store's file, in memory.
pub(crate) struct Graph {
    /// usearch refuses more searches at once than it has prepared for; one takes less than a
    /// millisecond, so they wait.
    index: Mutex<Index>,
    file: GraphFile,
    path: PathBuf,
}

impl Graph {
    /// The graph that the bytes of a file hold, which [`GraphFile::read`] has looked through.
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

    /// Its file as the store records it.
    pub(crate) fn file(&self) -> &GraphFile {
        &self.file
    }

    /// The ids of about the `count` chunks nearest to `vector (dim)`, of those that are `live`.
    pub(crate) fn nearest(
        &self,
        vector: &[f32],
        count: usize,
        live: impl Fn(u64) -> bool,
    ) -> Result<Vec<u64>> {
        let query = bytes(vector);
        // Whole at any time: a search leaves nothing behind.
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match self.file.dead {
            0 => index.search(&query, count),
            _ => index.filtered_search(&query, count, live),
        };
        Ok(found.map_err(failed(&self.path))?.keys)
    }

    /// The bytes of a file with all of `old` and the given rows. `watch` is told how many rows are
    /// added, and of how many.
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

/// A vector as the graph has it.
fn bytes(vector: &[f32]) -> Vec<i8> {
    let mut bytes = vec![0; vector.len()];
    quantize_row(vector, &mut bytes);
    bytes.into_iter().map(u8::cast_signed).collect()
}

/// usearch's errors, with the graph's file.
fn failed<E: Display>(path: &Path) -> impl Fn(E) -> Error {
    |error| Error::Store { path: path.into(), problem: format!("usearch: {error}") }
}
