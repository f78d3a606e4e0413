//! Which files there are.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A file.
#[derive(Clone, Debug)]
pub(in crate::rag) struct Entry {
    pub(in crate::rag) path: String,
    /// Nanoseconds since 1970.
    pub(in crate::rag) modified: i64,
    pub(in crate::rag) bytes: u64,
}

impl Entry {
    /// In small letters; empty where there is none.
    pub(super) fn extension(&self) -> String {
        let extension = Path::new(&self.path).extension().unwrap_or_default();
        extension.to_string_lossy().to_ascii_lowercase()
    }
}

/// What [`walk`] found.
#[derive(Debug, Default)]
pub(in crate::rag) struct Walk {
    /// The given paths, absolute.
    pub(in crate::rag) roots: Vec<String>,
    /// In the order of the paths and, below each, of the names.
    pub(in crate::rag) files: Vec<Entry>,
    /// What could not be looked at, and why; what lies below may be there or not.
    pub(in crate::rag) failed: Vec<(String, String)>,
    /// Paths that are not there.
    pub(in crate::rag) missing: Vec<String>,
}

/// Lists files and those in folders, each once. Below the given paths, hidden files and folders are
/// left out, and so are links to folders: no loop can arise. `leave_out` is the store's folder.
pub(in crate::rag) fn walk(paths: &[PathBuf], leave_out: Option<&Path>) -> Walk {
    let leave_out = leave_out.and_then(|path| path.canonicalize().ok());
    let mut walk = Walk::default();
    let mut seen = HashSet::new();
    for path in paths {
        let root = resolve(path);
        let Some(name) = root.to_str() else {
            walk.fail(&root, "its name is not UTF-8");
            continue;
        };
        walk.roots.push(name.into());
        let mut open = vec![root];
        while let Some(path) = open.pop() {
            walk.visit(&path, leave_out.as_deref(), &mut seen, &mut open);
        }
    }
    walk
}

/// The absolute path without links in it; of what is not there, as far as there is something.
pub(in crate::rag) fn resolve(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => resolve(parent).join(name),
        _ => absolute,
    }
}

impl Walk {
    fn fail(&mut self, path: &Path, problem: impl ToString) {
        self.failed.push((path.display().to_string(), problem.to_string()));
    }

    /// Takes a file, or puts what a folder holds on `open`, the first name last.
    fn visit(
        &mut self,
        path: &Path,
        leave_out: Option<&Path>,
        seen: &mut HashSet<PathBuf>,
        open: &mut Vec<PathBuf>,
    ) {
        if Some(path) == leave_out || !seen.insert(path.into()) {
            return;
        }
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // A link to nowhere is nothing; a path that was asked for is missed.
                if !path.is_symlink() {
                    self.missing.push(path.display().to_string());
                }
                return;
            }
            Err(error) => return self.fail(path, error),
        };
        if found.is_dir() {
            match below(path) {
                Ok(paths) => open.extend(paths),
                Err(error) => self.fail(path, error),
            }
        } else if found.is_file() {
            let Some(name) = path.to_str() else {
                return self.fail(path, "its name is not UTF-8");
            };
            let modified = found.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let modified = modified.map_or(0, |since| since.as_nanos() as i64);
            self.files.push(Entry { path: name.into(), modified, bytes: found.len() });
        }
    }
}

/// What a folder holds and is to be looked at, the last name first.
fn below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let loops = path.is_symlink() && path.is_dir();
        if !hidden && !loops {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| b.cmp(a));
    Ok(paths)
}
