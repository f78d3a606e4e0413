//! Rows of q and k matrices, from the order of GGUF files into the published one.

use memmap2::Mmap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A mapped matrix with the rows of each head in pairs: of row d and row d + head_dim / 2 of the
/// published order. Its rows in that order are a copy, made when they are first read.
///
/// A view that maps row numbers would save the copy, which is a tenth of a 7B model (q and k have
/// 21 of a layer's 218 million weights). But the products of all backends take the rows of a
/// matrix one after the other, and each would have to look them up.
pub(super) struct Halves {
    map: Arc<Mmap>,
    range: Range<usize>,
    row_bytes: usize,
    head_dim: usize,
    ordered: OnceLock<Vec<u8>>,
}

impl Halves {
    /// Takes a part of a file: heads of `head_dim` rows of `row_bytes` bytes.
    pub(super) fn new(
        map: &Arc<Mmap>,
        range: Range<usize>,
        row_bytes: usize,
        head_dim: usize,
    ) -> Self {
        let map = Arc::clone(map);
        Self { map, range, row_bytes, head_dim, ordered: OnceLock::new() }
    }

    /// Returns the rows as the file has them.
    pub(super) fn stored(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// Returns the rows in the published order.
    pub(super) fn ordered(&self) -> &[u8] {
        self.ordered.get_or_init(|| halves_apart(self.stored(), self.row_bytes, self.head_dim))
    }
}

impl fmt::Debug for Halves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Halves({:?}, heads of {} rows)", self.range, self.head_dim)
    }
}

/// Returns each head's even rows and then its odd rows.
pub(super) fn halves_apart(stored: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut ordered = Vec::with_capacity(stored.len());
    for head in stored.chunks(row_bytes * head_dim) {
        for odd in 0..2 {
            for row in head.chunks(row_bytes).skip(odd).step_by(2) {
                ordered.extend_from_slice(row);
            }
        }
    }
    ordered
}
