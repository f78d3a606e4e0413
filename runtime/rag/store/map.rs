//! Memory-mapped files, the only `unsafe` code of the store.

use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// Maps the first `len` bytes of a file, which must have them.
pub(super) fn map(file: &File, len: usize) -> io::Result<Mmap> {
    // SAFETY: recorded bytes are never overwritten or truncated: the writer appends behind the
    // rows of vectors, and compaction and each graph write a new file. The caller has compared
    // `len` with the file's length. As with mapped weights, this process is killed if another
    // program truncates the file while it is mapped.
    unsafe { MmapOptions::new().len(len).map(file) }
}
