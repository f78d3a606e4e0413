//! Cached files that are kept for the next start, and detection of Git LFS pointers.

use crate::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns the folder of the cache for compiled kernels, pipelines and tuned tiles:
/// `GRITLM_CACHE`, else `gritlm` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("GRITLM_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("gritlm")))
        .or_else(|| Some(set("LOCALAPPDATA")?.join("gritlm")))
        .or_else(|| Some(set("HOME")?.join(".cache/gritlm")))
}

/// Writes a file atomically, and creates its folders. Concurrent readers and writers see either
/// the old or the new file.
///
/// # Errors
/// When the file cannot be written. For a cache, this costs only time.
pub fn keep(file: &Path, bytes: &[u8]) -> io::Result<()> {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = file.with_added_extension(format!("{}-{number}.part", std::process::id()));
    let written = (file.parent().map_or(Ok(()), std::fs::create_dir_all))
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        // Remove a partially written file; there may be none.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Refuses a Git LFS pointer: the few lines of text that a clone has in place of a large file if
/// Git LFS did not fetch it.
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
