//! Files that are not on this machine's disk and are read in pieces, for example over HTTP.

use super::halves::halves_apart;
use crate::{Error, Result};
use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

/// The bytes of a range once they have arrived.
pub type Reading<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + 'a>>;

/// A file that is read in pieces.
pub trait Ranges: fmt::Debug + Send + Sync {
    /// Returns the size of the file in bytes.
    fn size(&self) -> u64;

    /// Reads a range of bytes that lies within the file.
    fn read(&self, range: Range<u64>) -> Reading<'_>;
}

/// A file by its name. Clones refer to the same file.
#[derive(Clone, Debug)]
pub struct RangeFile {
    /// Name of the file, for errors.
    pub path: PathBuf,
    /// The file itself.
    pub ranges: Arc<dyn Ranges>,
}

impl RangeFile {
    /// Returns the size of the file in bytes.
    ///
    /// # Errors
    /// When it is more than this machine can address.
    pub fn size(&self) -> Result<usize> {
        usize::try_from(self.ranges.size()).map_err(|_| Error::Format {
            path: self.path.clone(),
            problem: format!("expected at most {} bytes, found {}", usize::MAX, self.ranges.size()),
        })
    }

    /// Reads a range of bytes.
    ///
    /// # Errors
    /// When the range cannot be read whole.
    pub async fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let expected = range.len();
        let read = self.ranges.read(range.start as u64..range.end as u64).await;
        let bytes = read.map_err(Error::io(&self.path))?;
        match bytes.len() == expected {
            true => Ok(bytes),
            false => Err(Error::Format {
                path: self.path.clone(),
                problem: format!(
                    "expected {expected} bytes at byte {}, found {} (cut off)",
                    range.start,
                    bytes.len()
                ),
            }),
        }
    }

    /// Reads the header of a safetensors file and returns it with the length field in front.
    ///
    /// # Errors
    /// When the file cannot be read, or ends before its header does.
    pub(super) async fn safetensors_header(&self) -> Result<Vec<u8>> {
        let size = self.size()?;
        let first = self.read(0..size.min(LENGTH)).await?;
        // Whatever is wrong with the length is found when the header is parsed.
        let length = first.as_slice().try_into().map_or(0, u64::from_le_bytes);
        let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH);
        self.read(0..size.min(end.min(LENGTH + MAX_HEADER))).await
    }
}

/// Bytes of a safetensors file's first field, the length of its header.
const LENGTH: usize = 8;

/// Longest header that the `safetensors` crate accepts.
const MAX_HEADER: usize = 100_000_000;

/// Parses the first bytes of a safetensors file of `size` bytes: its header, as
/// `SafeTensors::read_metadata` does with a whole file. Returns the header's length and contents.
pub(super) fn metadata(first: &[u8], size: usize) -> Result<(usize, Metadata), SafeTensorError> {
    let length = first.get(..LENGTH).and_then(|bytes| bytes.try_into().ok());
    let length = u64::from_le_bytes(length.ok_or(SafeTensorError::HeaderTooSmall)?);
    let length = usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER);
    let length = length.ok_or(SafeTensorError::HeaderTooLarge)?;
    let header = first.get(LENGTH..LENGTH + length).ok_or(SafeTensorError::InvalidHeaderLength)?;
    let header = std::str::from_utf8(header).map_err(SafeTensorError::InvalidHeader)?;
    let metadata: Metadata =
        serde_json::from_str(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match LENGTH + length + metadata.data_len() == size {
        true => Ok((length, metadata)),
        false => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}

/// Where a tensor lies that has not been read.
#[derive(Debug)]
pub(super) struct Away {
    file: RangeFile,
    /// Rows of a head, where the file has them in pairs.
    pub(super) head_dim: Option<usize>,
}

impl Away {
    pub(super) fn new(file: &RangeFile, head_dim: Option<usize>) -> Self {
        Self { file: file.clone(), head_dim }
    }

    pub(super) fn file(&self) -> &RangeFile {
        &self.file
    }

    /// Reads whole rows of `row_bytes` bytes, whole heads where the file has their rows in pairs.
    pub(super) async fn read(&self, range: Range<usize>, row_bytes: usize) -> Result<Vec<u8>> {
        let bytes = self.file.read(range).await?;
        Ok(match self.head_dim {
            Some(head_dim) => halves_apart(&bytes, row_bytes, head_dim),
            None => bytes,
        })
    }
}
