//! The one `unsafe` of the store: a mapped file.

use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// Maps the first `len` bytes, which the file has.
pub(super) fn map(file: &File, len: usize) -> io::Result<Mmap> {
    // SAFETY: what is recorded is never written again nor cut off (the writer appends behind the
    // rows of vectors; compaction and each graph write another file), and the caller has compared
    // `len` with the file's length. As with mapped weights, another program that cuts the file while
    // it is mapped ends this one.
    unsafe { MmapOptions::new().len(len).map(file) }
}
