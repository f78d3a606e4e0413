//! In place of the graph, in a build without usearch: none is made, and one that is there is left
//! alone. So every search is exact.

use super::graph::GraphFile;
use super::vectors::Vectors;
use crate::Result;
use std::ops::Range;
use std::path::Path;

/// Whether this build makes graphs and searches them.
pub(super) const AVAILABLE: bool = false;

/// There is none.
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
