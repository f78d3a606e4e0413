//! The number of the last commit, beside the database.
//!
//! SQLite takes a damaged write-ahead log for its end: the commits behind the damage are gone and
//! nothing says so. This file does. It is written after the commit, so it may be behind, never
//! ahead.

use super::content_hash;
use super::disk::{HEAD, open_read, write_at};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

const BYTES: usize = 16;

/// Notes a commit. That it fails does no harm: an older number is right, too.
pub(super) fn write(file: &File, commit: u64) {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&commit.to_le_bytes());
    let checksum = content_hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    let _ = write_at(file, &bytes, 0);
}

/// The number in a store's folder; an error where it cannot be made out. A crash may have come
/// before the first was written.
pub(super) fn read(folder: &Path) -> Result<u64, String> {
    let file = match open_read(&folder.join(HEAD)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.is_empty() {
        return Ok(0);
    }
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
    let found = bytes.split_at_checked(8).map(|(n, checksum)| (number(n), number(checksum)));
    match found {
        Some((Some(commit), Some(checksum))) if content_hash(&commit.to_le_bytes()) == checksum => {
            Ok(commit)
        }
        _ => Err("expected a number and its checksum, found something else".into()),
    }
}
