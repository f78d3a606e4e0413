//! Which files there are.

use std::collections::HashSet;
use std::fs::{FileType, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A file.
#[derive(Clone, Debug)]
pub(in crate::rag) struct Entry {
    pub(in crate::rag) path: String,
    /// Nanoseconds since 1970 at which it was last changed; see [`changed`].
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
    /// The given paths, absolute, of those that are there.
    pub(in crate::rag) roots: Vec<String>,
    /// In the order of the paths and, below each, of the names.
    pub(in crate::rag) files: Vec<Entry>,
    /// What could not be looked at.
    pub(in crate::rag) failed: Vec<Unread>,
    /// Links that lead nowhere, below the given paths.
    pub(in crate::rag) dangling: Vec<Unread>,
    /// Links to files outside the given paths that were left out.
    pub(in crate::rag) outside: u64,
}

/// Which links to files are followed. Those to folders never are: no loop can arise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rag) enum Links {
    /// Those that lead to a file below one of the given paths. A folder that somebody else filled
    /// may hold links to all that its reader can read.
    Within,
    /// All.
    Anywhere,
}

/// A path that could not be looked at; what lies below may be there or not.
#[derive(Debug)]
pub(in crate::rag) struct Unread {
    /// Absolute.
    pub(in crate::rag) path: String,
    /// As it was given, for people.
    pub(in crate::rag) name: String,
    /// Why.
    pub(in crate::rag) problem: String,
    /// Whether it is one of those that were given.
    pub(in crate::rag) root: bool,
}

/// Lists files and those in folders, each once. Below the given paths, hidden files and folders are
/// left out, and so are links to folders, and to files as `links` says. `leave_out` is the store's
/// folder.
pub(in crate::rag) fn walk(paths: &[PathBuf], leave_out: Option<&Path>, links: Links) -> Walk {
    let leave_out = leave_out.and_then(|path| path.canonicalize().ok());
    let mut walk = Walk::default();
    let mut roots = Vec::new();
    for path in paths {
        let root = resolve(path);
        let found = match root.to_str() {
            None => Err("its name is not UTF-8".into()),
            Some(_) if Some(&root) == leave_out.as_ref() => Err("it is the store itself".into()),
            Some(name) => look(&root).map(|()| name.into()),
        };
        match found {
            Ok(name) => walk.roots.push(name),
            Err(problem) => {
                let (path, name) = (root.display().to_string(), path.display().to_string());
                walk.failed.push(Unread { path, name, problem, root: true });
                continue;
            }
        }
        roots.push(root);
    }
    // Where a link leads matters only once all paths are known.
    let is_inside = |target: &Path| roots.iter().any(|root| target.starts_with(root));
    let follow = |link: &Path| match links {
        Links::Anywhere => true,
        // One that is gone by now is told of where it is looked at.
        Links::Within => link.canonicalize().map_or(true, |target| is_inside(&target)),
    };
    let mut seen = HashSet::new();
    for root in &roots {
        let mut open = vec![root.clone()];
        while let Some(path) = open.pop() {
            walk.visit(&path, leave_out.as_deref(), &follow, &mut seen, &mut open);
        }
    }
    walk
}

/// What is wrong with a path that is to be indexed, if it is not a file or a folder.
fn look(root: &Path) -> Result<(), String> {
    match std::fs::metadata(root) {
        Ok(found) if found.is_dir() || found.is_file() => Ok(()),
        Ok(found) => Err(format!("expected a file or a folder, found {}", kind(found.file_type()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(nowhere(root)),
        Err(error) => Err(error.to_string()),
    }
}

/// What a path that is not there is.
fn nowhere(path: &Path) -> String {
    std::fs::read_link(path).map_or_else(
        |_| "no such file or folder".into(),
        |to| format!("a link to {}, and there is no such file or folder", to.display()),
    )
}

#[cfg(unix)]
fn kind(found: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(not(unix))]
fn kind(_found: FileType) -> &'static str {
    "something else"
}

/// Nanoseconds since 1970 at which a file was last changed; 0 where nobody knows.
fn changed(found: &Metadata) -> i64 {
    let modified = found.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |since| since.as_nanos() as i64);
    // Whatever is done to a file sets this one, and nothing sets it back, as `touch` and `cp -p` do
    // with the other. (On FAT it is when the file was made.)
    #[cfg(unix)]
    let modified = {
        use std::os::unix::fs::MetadataExt;
        modified.max(found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec()))
    };
    modified
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

impl Unread {
    /// One that was found, below a given path.
    fn below(path: &Path, problem: impl ToString) -> Self {
        let path = path.display().to_string();
        Self { name: path.clone(), path, problem: problem.to_string(), root: false }
    }
}

impl Walk {
    fn fail(&mut self, path: &Path, problem: impl ToString) {
        self.failed.push(Unread::below(path, problem));
    }

    /// Takes a file, or puts what a folder holds on `open`, the first name last.
    fn visit(
        &mut self,
        path: &Path,
        leave_out: Option<&Path>,
        follow: &dyn Fn(&Path) -> bool,
        seen: &mut HashSet<PathBuf>,
        open: &mut Vec<PathBuf>,
    ) {
        if Some(path) == leave_out || !seen.insert(path.into()) {
            return;
        }
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if path.is_symlink() {
                    self.dangling.push(Unread::below(path, nowhere(path)));
                } else if self.roots.iter().any(|root| Path::new(root) == path) {
                    self.fail(path, nowhere(path));
                }
                // Others were deleted since their folder was listed.
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
            if path.is_symlink() && !follow(path) {
                self.outside += 1;
                return;
            }
            let modified = changed(&found);
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
