//! Stub of the graph for builds without the feature `usearch`. It creates no graphs and ignores
//! existing ones, so every search is exact.

use super::graph::GraphFile;
use super::vectors::Vectors;
use crate::Result;
use std::ops::Range;
use std::path::Path;

/// Whether this build can create and search graphs.
pub(super) const AVAILABLE: bool = false;

/// Stub without values.
pub(crate) enum Graph {}

impl Graph {
    pub(super) fn load(_: &Path, _: usize, _: GraphFile, _: &[u8]) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(crate) fn file(&self) -> &GraphFile {
        match *self {}
    }

    pub(crate) fn nearest(&self, _: &[f32], _: usize, _: impl Fn(u64) -> bool) -> Result<Vec<u64>> {
        match *self {}
    }

    pub(super) fn extend(
        _: Option<Self>,
        _: &Path,
        _: &Vectors,
        _: Range<usize>,
        _: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
}
