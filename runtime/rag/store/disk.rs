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

/// What is wrong where a recorded file cannot be opened.
pub(super) const MISSING: &str = "the file is missing or is no regular file";

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
    regular(path, &mut options).map_err(Error::io(path))
}

/// Opens a file for reading.
pub(super) fn open_read(path: &Path) -> io::Result<File> {
    regular(path, OpenOptions::new().read(true))
}

/// Makes a file that is to be new; what a crash has left under its name goes.
pub(super) fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    regular(path, OpenOptions::new().read(true).write(true).create_new(true))
}

/// Opens what is a file and nothing else. A store may come from somebody else: a link in it could
/// point to any file of ours, and a pipe would let the opening wait for ever.
fn regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    check_regular(path)?;
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = options.open(path)?;
    // The name may have become another's since.
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular("something else")) }
}

/// An error where there is something under this name that is no regular file.
pub(super) fn check_regular(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match () {
        () if kind.is_file() => Ok(()),
        () if kind.is_symlink() => Err(not_regular("a symbolic link")),
        () if kind.is_dir() => Err(not_regular("a folder")),
        () => Err(not_regular("a pipe, socket or device")),
    }
}

fn not_regular(found: &str) -> io::Error {
    io::Error::other(format!("expected a regular file, found {found}"))
}

/// Writes a file that is not there yet, and makes it and its name durable.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = create(path)?;
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
