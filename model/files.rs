//! Files that are kept for the next start, and what may stand in place of a checkpoint's.

use crate::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where compiled kernels and pipelines and tuned tiles are kept: `GRITLM_CACHE`, else `gritlm` in
/// the user's cache.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("GRITLM_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("gritlm")))
        .or_else(|| Some(set("LOCALAPPDATA")?.join("gritlm")))
        .or_else(|| Some(set("HOME")?.join(".cache/gritlm")))
}

/// Writes a file whole or not at all, with the folders it is in; others that read or write it at
/// the same time see one or the other.
///
/// # Errors
/// When it cannot be written. For a cache that costs only time.
pub fn keep(file: &Path, bytes: &[u8]) -> io::Result<()> {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = file.with_added_extension(format!("{}-{number}.part", std::process::id()));
    let written = (file.parent().map_or(Ok(()), std::fs::create_dir_all))
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        // Nothing was there, or a part of it is.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Refuses a Git LFS pointer: the few lines of text that a clone has in place of a large file where
/// Git LFS did not bring it.
pub(crate) fn check_pointer(bytes: &[u8], path: &Path) -> Result<()> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let problem = format!(
        "expected the file itself, found a Git LFS pointer to it ({} bytes of text); run `git lfs \
         pull` in that folder",
        bytes.len()
    );
    Err(Error::Format { path: path.into(), problem })
}
