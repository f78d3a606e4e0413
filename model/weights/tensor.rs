//! A tensor: its format, its shape, and where its bytes are.

use super::halves::Halves;
use super::ranges::{Away, RangeFile};
use crate::Result;
use crate::format::{Dtype, decode};
use memmap2::Mmap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Owner of a tensor's bytes: a mapped file, the binary itself, the heap, or a file whose bytes
/// have yet to be read.
#[derive(Clone)]
pub(super) enum Source {
    Map(Arc<Mmap>),
    Static(&'static [u8]),
    Heap(Arc<Vec<u8>>),
    Halves(Arc<Halves>),
    Away(Arc<Away>),
}

impl Source {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Static(bytes) => bytes,
            Self::Heap(bytes) => bytes,
            Self::Halves(halves) => halves.ordered(),
            Self::Away(_) => &[],
        }
    }
}

/// One tensor: a view of a mapped file, of the binary or of a block on the heap. Cloning copies
/// no data. The rows of q and k from a GGUF file are a copy in the published order, made when
/// they are first read. A tensor of a file that is read in pieces ([`RangeFile`]) has no bytes
/// before [`Tensor::read`] returns it with them.
#[derive(Clone)]
pub struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) source: Source,
    pub(super) range: Range<usize>,
}

impl Tensor {
    /// Creates a tensor that owns its values, for tests and tools. `values.len()` is the product
    /// of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        Self::from_bytes(Dtype::F32, shape, bytemuck::cast_slice(values))
    }

    /// Creates a tensor that owns its bytes, for tests and tools.
    pub fn from_bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        debug_assert_eq!(dtype.bytes(shape.iter().product()), bytes.len());
        Self::of_block(dtype, shape, &Arc::new(bytes.to_vec()), 0)
    }

    /// Creates a tensor of a part of `block`, from byte `at` on. Other tensors may share the
    /// block.
    pub fn of_block(dtype: Dtype, shape: &[usize], block: &Arc<Vec<u8>>, at: usize) -> Self {
        let range = at..at + dtype.bytes(shape.iter().product());
        debug_assert!(range.end <= block.len());
        debug_assert!(shape.last().is_none_or(|cols| cols % dtype.block() == 0));
        let source = Source::Heap(Arc::clone(block));
        Self { dtype, shape: shape.to_vec(), source, range }
    }

    /// Creates a tensor of a part of a mapped file.
    pub(crate) fn mapped(
        dtype: Dtype,
        shape: &[usize],
        map: &Arc<Mmap>,
        range: Range<usize>,
    ) -> Self {
        debug_assert_eq!(range.len(), dtype.bytes(shape.iter().product()));
        Self { dtype, shape: shape.to_vec(), source: Source::Map(Arc::clone(map)), range }
    }

    /// Creates a tensor of a part of a file that is read in pieces.
    pub(crate) fn away(
        dtype: Dtype,
        shape: &[usize],
        file: &RangeFile,
        range: Range<usize>,
    ) -> Self {
        let source = Source::Away(Arc::new(Away::new(file, None)));
        Self { dtype, shape: shape.to_vec(), source, range }
    }

    /// Returns the matrix with the even rows of each head of `head_dim` rows in front of the odd
    /// ones.
    pub(crate) fn with_halves_apart(mut self, head_dim: usize) -> Self {
        match &self.source {
            Source::Map(map) => {
                let row_bytes = self.dtype.bytes(self.matrix_shape().1);
                let halves = Halves::new(map, self.range.clone(), row_bytes, head_dim);
                self.source = Source::Halves(Arc::new(halves));
                self.range = 0..self.range.len();
            }
            Source::Away(away) => {
                self.source = Source::Away(Arc::new(Away::new(away.file(), Some(head_dim))));
            }
            Source::Static(_) | Source::Heap(_) | Source::Halves(_) => {}
        }
        self
    }

    /// Returns whether [`Tensor::stored`] has the rows of each head in pairs.
    pub(crate) fn is_in_pairs(&self) -> bool {
        matches!(self.source, Source::Halves(_))
    }

    /// Returns whether the bytes have yet to be read: [`Tensor::bytes`] is empty.
    pub fn is_away(&self) -> bool {
        matches!(self.source, Source::Away(_))
    }

    /// Returns the tensor with its bytes in memory, which are read if they are not there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read(&self) -> Result<Self> {
        self.read_rows(0..self.matrix_shape().0).await
    }

    /// Returns how many rows at least [`Tensor::read_rows`] reads at a time, and in multiples of
    /// how many: one, or those of a head where the file has them in pairs.
    pub fn rows_together(&self) -> usize {
        match &self.source {
            Source::Away(away) => away.head_dim.unwrap_or(1),
            _ => 1,
        }
    }

    /// Returns some rows as a matrix in memory, which are read if they are not there. Both ends
    /// are multiples of [`Tensor::rows_together`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read_rows(&self, rows: Range<usize>) -> Result<Self> {
        let (all, cols) = self.matrix_shape();
        let row_bytes = self.dtype.bytes(cols);
        let range =
            self.range.start + rows.start * row_bytes..self.range.start + rows.end * row_bytes;
        debug_assert!(range.end <= self.range.end);
        let shape = if rows.len() == all { self.shape.clone() } else { vec![rows.len(), cols] };
        let (source, range) = match &self.source {
            Source::Away(away) => {
                debug_assert!(rows.start.is_multiple_of(self.rows_together()));
                let bytes = away.read(range.clone(), row_bytes).await?;
                (Source::Heap(Arc::new(bytes)), 0..range.len())
            }
            source => (source.clone(), range),
        };
        Ok(Self { dtype: self.dtype, shape, source, range })
    }

    /// Returns the format of the stored elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the elements or blocks, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        if self.is_away() { &[] } else { &self.source.bytes()[self.range.clone()] }
    }

    /// Returns the number of bytes, whether they are in memory or not.
    pub fn size(&self) -> u64 {
        self.range.len() as u64
    }

    /// Returns the elements or blocks in the order of the file, which for the rows of q and k in
    /// a GGUF file is another than that of [`Tensor::bytes`], but takes no copy.
    pub fn stored(&self) -> &[u8] {
        match &self.source {
            Source::Halves(halves) => halves.stored(),
            _ => self.bytes(),
        }
    }

    /// Returns rows and columns; a vector is one row.
    pub fn matrix_shape(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), cols)
    }

    /// Returns all elements as f32. The conversion is exact for plain elements and rounds
    /// quantised ones once.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        decode(self.dtype, self.bytes(), &mut out);
        out
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}
