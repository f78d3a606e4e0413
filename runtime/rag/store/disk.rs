//! Files: names, reading and writing at an offset, making both durable.

use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// The database.
pub(super) const DATABASE: &str = "store.sqlite";
/// What the one writer holds.
pub(super) const LOCK: &str = "lock";
/// The number of the last commit; see [`super::head`].
pub(super) const HEAD: &str = "head";

/// What [`super::Spill`] opens.
pub(super) const SPILL: &str = "kv-waiting.tmp";

/// The file of all vectors; compaction makes the next generation.
pub(super) fn vectors(generation: u64) -> String {
    format!("vectors-{generation}.bin")
}

/// A file of keys and values.
pub(super) fn segment(id: u64) -> String {
    format!("kv-{id}.seg")
}

/// A file of the graph for approximate search; each rewriting makes the next generation.
pub(super) fn graph(generation: u64) -> String {
    format!("graph-{generation}.usearch")
}

/// Whether a file is one that a writer makes; those that are not recorded are left-overs.
pub(super) fn is_data(name: &str) -> bool {
    let number = |start, end| -> Option<&str> { name.strip_prefix(start)?.strip_suffix(end) };
    let names = [("vectors-", ".bin"), ("kv-", ".seg"), ("graph-", ".usearch")];
    let number = names.into_iter().find_map(|(start, end)| number(start, end));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) || name == SPILL
}

/// Opens a file for writing at offsets, and makes it where there is none.
pub(super) fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(Error::io(path))
}

/// Writes a file that is not there yet, and makes it and its name durable.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io(path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes a folder's new and removed names durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    // Only Unix opens folders.
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))?;
    }
    Ok(())
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, offset) = (&mut bytes[n..], offset + n as u64);
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        (bytes, offset) = (&bytes[n..], offset + n as u64);
    }
    Ok(())
}
