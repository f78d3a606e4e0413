//! A cursor over the bytes of a GGUF file, which never reads beyond their end.

use crate::{Error, Result};
use std::cell::Cell;
use std::path::Path;

/// Position in a file. Every read names what is read, for the error of a truncated file.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    /// The file's first bytes, or all.
    bytes: &'a [u8],
    at: usize,
    size: usize,
    /// How many of the file's bytes the last failed read needs, where they are in the file.
    needed: &'a Cell<usize>,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of a file of `size` bytes, of which `bytes` are the first. Errors
    /// name `path`. A read beyond `bytes` fails and leaves in `needed` how many it would have
    /// needed.
    pub(super) fn new(
        bytes: &'a [u8],
        size: usize,
        needed: &'a Cell<usize>,
        path: &'a Path,
    ) -> Self {
        Self { bytes, at: 0, size, needed, path }
    }

    /// Returns the number of bytes in the file.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the position from the start of the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Returns the number of bytes after the position.
    pub(super) fn left(&self) -> usize {
        self.size - self.at
    }

    /// Fails with an error that says what is wrong with the file.
    pub(super) fn fail<T>(&self, problem: impl AsRef<str>) -> Result<T> {
        let problem = format!("not a GGUF file that can be read: {}", problem.as_ref());
        Err(Error::Format { path: self.path.into(), problem })
    }

    /// Returns the next `n` bytes.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            let (at, left) = (self.at, self.left());
            return self
                .fail(format!("{what}: expected {n} bytes at byte {at}, found {left} (cut off)"));
        }
        self.need(n, what)?;
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    /// Fails if the next `n` bytes, which are in the file, have not been read.
    fn need(&self, n: usize, what: &str) -> Result<()> {
        let end = self.at.saturating_add(n);
        if end <= self.bytes.len() {
            return Ok(());
        }
        self.needed.set(end);
        self.fail(format!("{what}: expected {end} bytes of the file, found {}", self.bytes.len()))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    /// Reads one byte.
    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        self.array(what).map(u8::from_le_bytes)
    }

    /// Reads a little-endian integer of 16 bits.
    pub(super) fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Reads a little-endian integer of 32 bits.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Reads a little-endian integer of 64 bits.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads the number of things that follow, each of which takes at least `least` bytes. A
    /// number that the rest of the file cannot hold is refused before anything is allocated.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let room = self.left() / least;
        match usize::try_from(count) {
            // Nothing is allocated for things that have not been read.
            Ok(count) if count <= room => self.need(count * least, what).map(|()| count),
            _ => self.fail(format!(
                "{what}: expected at most {room}, as the file has {} more bytes, found {count}",
                self.left()
            )),
        }
    }

    /// Reads a text: its length in bytes and its bytes.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.u64(what)?;
        let bytes = match usize::try_from(length) {
            Ok(length) if length <= self.left() => self.take(length, what)?,
            _ => {
                let left = self.left();
                return self.fail(format!(
                    "{what}: expected a text of at most {left} bytes, found a length of {length}"
                ));
            }
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(e) => self.fail(format!(
                "{what}: expected UTF-8, found other bytes at byte {} of {}",
                e.valid_up_to(),
                bytes.len()
            )),
        }
    }
}
