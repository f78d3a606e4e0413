//! The file `head`: the number of the last commit, kept beside the database.
//!
//! SQLite treats damage in its write-ahead log as the end of the log and silently drops the
//! commits behind it. This file reveals the loss. It is written after each commit, so its number
//! may be too low but never too high.

use super::content_hash;
use super::disk::{HEAD, open_read, write_at};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

const BYTES: usize = 16;

/// Writes the number of a commit. A failure is harmless, because a lower number is valid, too.
pub(super) fn write(file: &File, commit: u64) {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&commit.to_le_bytes());
    let checksum = content_hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    let _ = write_at(file, &bytes, 0);
}

/// Reads the number in a store's folder; returns an error if it cannot be read or is damaged.
/// Returns 0 if nothing was written yet, as after a crash before the first write.
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
