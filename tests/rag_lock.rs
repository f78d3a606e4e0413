//! A store's lock ends with its writer, whatever a child process has inherited.

#![cfg(target_os = "linux")]

use gritlm::{Device, Engine, Options};
use gritlm_rag::{Identity, Indexer, Writer};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = Options::default().device(Device::Cpu);
        Engine::open("demo", &options).unwrap()
    })
}

/// A process that has the store's lock open as this one has, as any that another thread starts has
/// between its fork and its exec. It lives until it is dropped.
struct Heir(Child);

impl Heir {
    fn of(store: &Path) -> Self {
        let lock = store.canonicalize().unwrap().join("lock");
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let named = open.filter(|e| std::fs::read_link(e.path()).is_ok_and(|to| to == lock));
        let number = named.map(|e| e.file_name().to_str().unwrap().parse().unwrap()).next();
        // SAFETY: the writer of this test has it open, and is dropped later.
        let lock = unsafe { BorrowedFd::borrow_raw(number.expect("an open lock")) };
        let lock = lock.try_clone_to_owned().unwrap();
        let child = Command::new("sleep").arg("600").stdin(Stdio::from(lock)).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_writer_gives_the_lock_back_that_a_child_has_inherited() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let identity = Identity::of(engine());
    let open = || Writer::open(&store, &identity);

    let writer = open().unwrap();
    let heirs = [Heir::of(&store), Heir::of(&store)];
    assert!(open().is_err());
    drop(writer);
    let writer = open().unwrap();
    drop(writer);

    let indexer = Indexer::open(engine(), &store, &identity).unwrap();
    let heir = Heir::of(&store);
    drop(indexer);
    open().unwrap();

    let writer = open().unwrap();
    let last = Heir::of(&store);
    let ended = std::thread::spawn(move || {
        let _writer = writer;
        std::panic::resume_unwind(Box::new("the end of a thread"));
    });
    assert!(ended.join().is_err());
    open().unwrap();
    drop((heirs, heir, last));
}
