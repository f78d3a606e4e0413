//! What `index` takes for gone and for changed: only what it has looked at, and all of it.

use crate::cli::{objects, run};
use crate::support::say;
use gritlm::{Device, Engine, Options};
use gritlm_rag::{Event, Identity, Indexed, Indexer, Reader};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = Options::default().device(Device::Cpu).batch_tokens(256);
        Engine::open("demo", &options).unwrap()
    })
}

/// Two folders with two files each, and a store of them.
struct Library {
    folder: TempDir,
}

impl Library {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Paths in the store are those without links.
        let library = Self { folder };
        for (name, text) in [
            ("notes/a.txt", "chess for the desktop"),
            ("notes/below/b.md", "# Packets\n\ncapture them"),
            ("papers/c.txt", "edit maps"),
            ("papers/d.html", "<title>D</title>draw lines"),
        ] {
            library.write(name, text);
        }
        assert_eq!(library.index(&["notes", "papers"]).0.added, 4);
        library
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Indexes these; what was done, and what could not be read.
    fn index(&self, paths: &[&str]) -> (Indexed, Vec<String>) {
        let paths: Vec<PathBuf> = paths.iter().map(|path| self.path(path)).collect();
        let identity = Identity { chunk: 64, ..Identity::of(engine()) };
        let mut problems = Vec::new();
        let mut indexer = Indexer::open(engine(), &self.store(), &identity).unwrap();
        // One of the tests has links to a drive.
        indexer.follow_links(true);
        let done = indexer.run(&paths, &mut |event| {
            if let Event::Problem { path, problem } = event {
                problems.push(format!("{path}: {problem}"));
            }
            Ok(())
        });
        (done.unwrap(), problems)
    }

    /// The names of the documents in the store.
    fn holds(&self) -> Vec<String> {
        let documents = Reader::open(self.store()).unwrap().documents().unwrap();
        let name = |path: &str| Path::new(path).file_name().unwrap().to_str().unwrap().to_string();
        let mut names: Vec<_> = documents.iter().map(|d| name(&d.path)).collect();
        names.sort();
        names
    }

    /// The program on these paths: it fails, names each of `parts` and removes nothing.
    #[track_caller]
    fn refused(&self, paths: &[&str], parts: &[&str]) {
        let paths: Vec<PathBuf> = paths.iter().map(|path| self.path(path)).collect();
        let mut args = vec!["index", "--format", "json", "--store"];
        let store = self.store();
        args.push(store.to_str().unwrap());
        args.extend(paths.iter().map(|path| path.to_str().unwrap()));
        let before = self.holds();
        let ran = run(&args, "");
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "expected {part:?} in: {}", ran.stderr);
        }
        assert_eq!(objects(&ran.stdout)[0]["removed"], 0);
        for name in before {
            assert!(self.holds().contains(&name), "{name} is gone");
        }
    }
}

const ALL: [&str; 4] = ["a.txt", "b.md", "c.txt", "d.html"];

#[test]
fn roots_that_have_vanished_leave_the_store_as_it_was() {
    let library = Library::new();
    fs::rename(library.path("notes"), library.path("away")).unwrap();
    library.refused(&["notes"], &["notes: no such file or folder", "2 documents"]);
    // A file, a folder in it, and where the folder is a file.
    library.refused(&["notes/a.txt"], &["a.txt: no such file or folder", "1 document"]);
    library.refused(&["notes/below"], &["below: no such file or folder"]);
    library.refused(&["papers/c.txt/below"], &["c.txt/below"]);
    assert_eq!(library.holds(), ALL);
    // The roots that are there are indexed; what is gone from them is removed.
    library.write("papers/new.txt", "draw circles");
    fs::remove_file(library.path("papers/c.txt")).unwrap();
    let (done, problems) = library.index(&["notes", "papers"]);
    assert_eq!((done.added, done.unchanged, done.removed, done.failed), (1, 1, 1, 1));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(library.holds(), ["a.txt", "b.md", "d.html", "new.txt"]);
    // Back again, all is as it was.
    fs::rename(library.path("away"), library.path("notes")).unwrap();
    assert_eq!(library.index(&["notes"]).0.unchanged, 2);
    // A folder that was emptied is a folder that was read.
    fs::remove_dir_all(library.path("notes")).unwrap();
    fs::create_dir(library.path("notes")).unwrap();
    assert_eq!(library.index(&["notes"]).0.removed, 2);
    assert_eq!(library.holds(), ["d.html", "new.txt"]);
}

#[test]
#[cfg(unix)]
fn roots_that_are_no_files_are_named() {
    use std::os::unix::fs::symlink;
    let library = Library::new();
    symlink(library.path("nowhere"), library.path("link")).unwrap();
    symlink(library.path("ring"), library.path("ring")).unwrap();
    assert!(
        std::process::Command::new("mkfifo").arg(library.path("fifo")).status().unwrap().success()
    );
    let _socket = std::os::unix::net::UnixListener::bind(library.path("socket")).unwrap();
    library.refused(&["link"], &["link: ", "nowhere"]);
    library.refused(&["ring"], &["ring: "]);
    library.refused(&["fifo"], &["fifo: expected a file or a folder, found a pipe"]);
    library.refused(&["socket"], &["socket: expected a file or a folder, found a socket"]);
    library.refused(&["/dev/null"], &["/dev/null: expected a file or a folder, found a device"]);
    library.refused(&["store"], &["store: ", "the store itself"]);
    // `<(…)` and a pipe on stdin.
    let program = env!("CARGO_BIN_EXE_gritlm");
    let store = library.store();
    for pipe in ["/dev/stdin", "/dev/fd/0"] {
        let script = format!("echo x | {program} index {pipe} --store {}", store.display());
        let ran = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{stderr}");
        let expected = format!("{pipe}: expected a file or a folder, found a pipe");
        assert!(stderr.contains(&expected), "{stderr}");
    }
    assert_eq!(library.holds(), ALL);
}

/// Below what cannot be read nothing is removed; beside it, what is gone is.
#[test]
#[cfg(unix)]
fn what_lies_below_a_folder_that_cannot_be_read_stays() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let library = Library::new();
    // A link in a folder, as to a drive that is not there now.
    fs::rename(library.path("papers/c.txt"), library.path("far.txt")).unwrap();
    symlink(library.path("far.txt"), library.path("papers/c.txt")).unwrap();
    assert_eq!(library.index(&["papers"]).0.unchanged, 2);
    fs::rename(library.path("far.txt"), library.path("farther.txt")).unwrap();
    library.refused(&["papers"], &["c.txt: ", "far.txt"]);
    // One that never led to a document is no matter.
    symlink(library.path("nothing"), library.path("notes/lock")).unwrap();
    assert_eq!(library.index(&["notes"]), (Indexed { unchanged: 2, ..Indexed::default() }, vec![]));

    let closed = |mode| {
        let path = library.path("notes/below");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    closed(0);
    if fs::read_dir(library.path("notes/below")).is_ok() {
        closed(0o755);
        return say("SKIPPED index_roots: this user can read any folder");
    }
    fs::remove_file(library.path("notes/a.txt")).unwrap();
    let (done, problems) = library.index(&["notes"]);
    closed(0o755);
    assert_eq!((done.removed, done.failed), (1, 1));
    assert!(problems[0].contains("below: Permission denied"), "{problems:?}");
    assert_eq!(library.holds(), ["b.md", "c.txt", "d.html"]);
}

/// Another content of the same length, with the old file's time put on it.
#[test]
#[cfg(unix)]
fn a_change_that_hides_its_time_is_seen() {
    let library = Library::new();
    let settled = SystemTime::now() - Duration::from_secs(1000);
    let touch = |name: &str| {
        let file = fs::File::options().append(true).open(library.path(name)).unwrap();
        file.set_modified(settled).unwrap();
    };
    let cases = [
        ("notes/a.txt", "chess for the browser"),
        ("notes/below/b.md", "# Packets\n\ndiscard them"),
        ("papers/d.html", "<title>D</title>draw lives"),
    ];
    for (name, _) in cases {
        touch(name);
    }
    // So that their times are relied on; see the next test.
    std::thread::sleep(Duration::from_millis(2100));
    library.index(&["notes", "papers"]);
    for (name, text) in cases {
        let before = fs::read_to_string(library.path(name)).unwrap();
        assert_eq!(text.len(), before.len());
        // In place, as an editor or `cp` does; and another file renamed to it, as others do.
        fs::write(library.path(name), text).unwrap();
        touch(name);
        let (done, _) = library.index(&["notes", "papers"]);
        assert_eq!((done.replaced, done.unchanged), (1, 3), "{name}");
        library.write("other", &before);
        touch("other");
        fs::rename(library.path("other"), library.path(name)).unwrap();
        let (done, _) = library.index(&["notes", "papers"]);
        assert_eq!((done.replaced, done.unchanged), (1, 3), "{name}, renamed");
    }
}

/// A file that has just changed may change again without another time: its time is not relied on,
/// until it has settled.
#[test]
fn times_count_when_they_have_settled() {
    let library = Library::new();
    let stamp = |name: &str| {
        let documents = Reader::open(library.store()).unwrap().documents().unwrap();
        documents.into_iter().find(|d| d.path.ends_with(name)).unwrap().stamp
    };
    let later = SystemTime::now() + Duration::from_secs(3600);
    for name in ["notes/a.txt", "papers/d.html"] {
        let file = fs::File::options().append(true).open(library.path(name)).unwrap();
        file.set_modified(later).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2100));
    let unchanged = Indexed { unchanged: 4, ..Indexed::default() };
    assert_eq!(library.index(&["notes", "papers"]).0, unchanged);
    assert_eq!((stamp("a.txt").modified, stamp("d.html").modified), (0, 0));
    let settled = stamp("c.txt");
    assert_ne!((settled.modified, stamp("b.md").modified), (0, 0));
    assert_eq!(settled.bytes, 9);
    // Then it is not read again.
    assert_eq!(library.index(&["notes", "papers"]).0, unchanged);
    assert_eq!(stamp("c.txt"), settled);
    assert!(gritlm_rag::verify(library.store()).unwrap().is_sound());
}
