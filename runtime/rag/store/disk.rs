//! File names, and reading, writing and syncing of files at offsets.

use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// The SQLite database.
pub(super) const DATABASE: &str = "store.sqlite";
/// The file that the writer locks.
pub(super) const LOCK: &str = "lock";
/// The number of the last commit; see [`super::head`].
pub(super) const HEAD: &str = "head";

/// The problem reported when a recorded file cannot be opened.
pub(super) const MISSING: &str = "the file is missing or is no regular file";

/// The temporary file of [`super::Spill`].
pub(super) const SPILL: &str = "kv-waiting.tmp";

/// Returns the name of the vectors' file; each compaction makes the next generation.
pub(super) fn vectors(generation: u64) -> String {
    format!("vectors-{generation}.bin")
}

/// Returns the name of a segment, a file of keys and values.
pub(super) fn segment(id: u64) -> String {
    format!("kv-{id}.seg")
}

/// Returns the name of the graph's file; each rewrite makes the next generation.
pub(super) fn graph(generation: u64) -> String {
    format!("graph-{generation}.usearch")
}

/// Returns whether a file is a data file of a writer. Those that are not recorded are left over.
pub(super) fn is_data(name: &str) -> bool {
    let number = |start, end| -> Option<&str> { name.strip_prefix(start)?.strip_suffix(end) };
    let names = [("vectors-", ".bin"), ("kv-", ".seg"), ("graph-", ".usearch")];
    let number = names.into_iter().find_map(|(start, end)| number(start, end));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) || name == SPILL
}

/// Opens a file for reading and writing at offsets, and creates it if there is none.
pub(super) fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    regular(path, &mut options).map_err(Error::io(path))
}

/// Opens a file for reading.
pub(super) fn open_read(path: &Path) -> io::Result<File> {
    regular(path, OpenOptions::new().read(true))
}

/// Creates a new file, and first removes what a crash has left under its name.
pub(super) fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    regular(path, OpenOptions::new().read(true).write(true).create_new(true))
}

/// Opens a regular file and nothing else. A store may come from an untrusted source: a link in it
/// could point to any file of this machine, and opening a pipe could block forever.
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
    // The file may have been replaced since the check.
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular("something else")) }
}

/// Returns an error if something other than a regular file has this name; a missing file is fine.
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

/// Writes a new file, and makes its content and its name durable.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io(path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes the creation and removal of files in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    // Only Unix can open folders.
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
