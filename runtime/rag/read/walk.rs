//! Lists the files to read.

use std::collections::HashSet;
use std::fs::{FileType, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A file to read.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// Time of the last change in nanoseconds since 1970; see [`changed`].
    pub(crate) modified: i64,
    pub(crate) bytes: u64,
}

impl Entry {
    /// Returns the extension in lower case, or an empty string if there is none.
    pub(super) fn extension(&self) -> String {
        let extension = Path::new(&self.path).extension().unwrap_or_default();
        extension.to_string_lossy().to_ascii_lowercase()
    }
}

/// What [`walk`] found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// The given paths that exist, as absolute paths.
    pub(crate) roots: Vec<String>,
    /// The files, in the order of the given paths and, below each, of the names.
    pub(crate) files: Vec<Entry>,
    /// Paths that could not be read.
    pub(crate) failed: Vec<Unread>,
    /// Links below the given paths whose target does not exist.
    pub(crate) dangling: Vec<Unread>,
    /// Number of links to files outside the given paths, which were left out.
    pub(crate) outside: u64,
}

/// Which links to files are followed. Links to folders never are, so no loop can arise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Only links to a file below one of the given paths. A folder that somebody else filled may
    /// hold links to anything that its reader can read.
    Within,
    /// All links to files.
    Anywhere,
}

/// A path that could not be read; what lies below it may or may not exist.
#[derive(Debug)]
pub(crate) struct Unread {
    /// The absolute path.
    pub(crate) path: String,
    /// The path as it was given, for messages.
    pub(crate) name: String,
    /// The reason.
    pub(crate) problem: String,
    /// Whether it is one of the given paths.
    pub(crate) root: bool,
}

/// Lists the given files and the files in the given folders, each once. Below the given paths,
/// hidden files and folders and links to folders are left out; `links` says which links to files
/// are followed. `leave_out` is the store's folder, which is skipped.
pub(crate) fn walk(paths: &[PathBuf], leave_out: Option<&Path>, links: Links) -> Walk {
    let leave_out = leave_out.and_then(|path| path.canonicalize().ok());
    let mut walk = Walk::default();
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
            }
        }
    }
    // Whether a link leads outside can be told only once all paths are known.
    let roots: Vec<PathBuf> = walk.roots.iter().map(PathBuf::from).collect();
    let is_inside = |target: &Path| roots.iter().any(|root| target.starts_with(root));
    let follow = |link: &Path| match links {
        Links::Anywhere => true,
        // A link that has vanished by now is reported when it is read.
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

/// Checks that a path to be indexed is a file or a folder, and describes what is wrong if not.
fn look(root: &Path) -> Result<(), String> {
    match std::fs::metadata(root) {
        Ok(found) if found.is_dir() || found.is_file() => Ok(()),
        Ok(found) => Err(format!("expected a file or a folder, found {}", kind(found.file_type()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(nowhere(root)),
        Err(error) => Err(error.to_string()),
    }
}

/// Describes a path that does not exist, which may be a link without a target.
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

/// Returns the time of a file's last change in nanoseconds since 1970, or 0 if it is unknown.
fn changed(found: &Metadata) -> i64 {
    let modified = found.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |since| since.as_nanos() as i64);
    // Every change to a file sets its ctime, and nothing sets it back, as `touch` and `cp -p` do
    // with the modification time. (On FAT, the ctime is the time of creation.)
    #[cfg(unix)]
    let modified = {
        use std::os::unix::fs::MetadataExt;
        modified.max(found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec()))
    };
    modified
}

/// Returns the absolute path without links. For a path that does not exist, the links in its
/// existing part are resolved.
pub(crate) fn resolve(path: &Path) -> PathBuf {
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
    /// Creates an entry for a path that was found below a given one.
    fn below(path: &Path, problem: impl ToString) -> Self {
        let path = path.display().to_string();
        Self { name: path.clone(), path, problem: problem.to_string(), root: false }
    }
}

impl Walk {
    fn fail(&mut self, path: &Path, problem: impl ToString) {
        self.failed.push(Unread::below(path, problem));
    }

    /// Records a file, or pushes a folder's entries onto `open`, the first name last.
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
                // Other paths were deleted after their folder was listed.
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

/// Returns the entries of a folder to visit, the last name first. Hidden ones and links to
/// folders are left out.
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
