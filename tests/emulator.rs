//! The CUDA kernels without a GPU: `kernels/emulator` replaces the driver's library and runs the
//! same sources, compiled by g++. This file builds and installs it for all tests; its modules show
//! that the emulator finds mistakes which leave most results right.

mod hopper; // small kernels for Hopper, right and wrong
pub(crate) mod mutants; // the kernels with planted mistakes
mod raw; // the driver API
mod snippets; // small kernels, right and wrong

use crate::support::say;
use gritlm_kernels::prebuilt;
use gritlm_kernels::source::{self, HEADERS, Source};
use gritlm_ptx::hook::{HOOKS, Hooks};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

const LIBRARY: [&str; 6] =
    ["-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so"];
const KERNEL: [&str; 9] = [
    "-O2",
    "-march=native",
    "-std=c++17",
    "-w",
    "-shared",
    "-fPIC",
    "-DGRITLM_EMULATOR",
    "-x",
    "c++",
];

/// What the emulator's kernels are compiled as, but for Hopper.
pub(crate) const ARCH: &str = "sm_80";

/// A device that the emulator can be (kernels/emulator/driver.cpp).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Model {
    /// Compute capability.
    capability: [u32; 2],
    multiprocessors: u32,
    /// Bytes of shared memory that a block may opt in to.
    shared: u32,
}

/// The least that the kernels run on.
pub(crate) const SMALL: Model = Model { capability: [8, 0], multiprocessors: 4, shared: 163 << 10 };
pub(crate) const A100: Model = Model { multiprocessors: 108, ..SMALL };
pub(crate) const H200: Model =
    Model { capability: [9, 0], multiprocessors: 132, shared: 227 << 10 };
/// With so few multiprocessors a thread block that stays has work of many, as long batches make it.
pub(crate) const SMALL_HOPPER: Model = Model { multiprocessors: 3, ..H200 };

impl Model {
    /// What NVRTC compiles for it.
    pub(crate) fn arch(self) -> &'static str {
        if self.capability[0] == 9 { "sm_90a" } else { ARCH }
    }
}

/// The emulator, loaded as the driver of this process.
pub(crate) struct Emulator {
    library: Library,
    folder: PathBuf,
}

/// Whether NVIDIA's driver is here and has a GPU. The emulator stands aside then: a process has one
/// driver, and whichever test asks first would decide which.
pub(crate) fn has_gpu() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        type Init = unsafe extern "C" fn(c_uint) -> c_int;
        type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
        // SAFETY: the library's initialisers are NVIDIA's, and the functions have these types.
        unsafe {
            let Ok(driver) = Library::open(Some("libcuda.so.1"), RTLD_NOW) else { return false };
            // It stays: what has been started in it may still run.
            let driver = std::mem::ManuallyDrop::new(driver);
            let init = driver.get::<Init>(b"cuInit");
            let count = driver.get::<Count>(b"cuDeviceGetCount");
            let (Ok(init), Ok(count)) = (init, count) else { return false };
            let mut gpus = 0;
            init(0) == 0 && count(&mut gpus) == 0 && gpus > 0
        }
    })
}

/// Loads the emulator before anything looks for a driver; call it first in every test that opens a
/// CUDA device. Without g++ there is none, which is an error where `GRITLM_EXPECT_CUDA` is set.
pub(crate) fn install(test: &str) -> Option<&'static Emulator> {
    if has_gpu() {
        say(&format!("SKIPPED {test}: there is an NVIDIA GPU, on which the kernels are tested"));
        return None;
    }
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    let emulator = EMULATOR.get_or_init(|| {
        let Ok(version) = Command::new("g++").arg("--version").output() else {
            let expected = std::env::var_os("GRITLM_EXPECT_CUDA").is_some();
            assert!(!expected, "GRITLM_EXPECT_CUDA is set, and there is no g++ for the emulator");
            return None;
        };
        let folder = build(&version.stdout);
        let path = folder.join("libcuda.so");
        // SAFETY: the library's initialisers only reserve memory. It stays loaded.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
        let emulator = Emulator { library, folder };
        // SAFETY: the function has this type (kernels/emulator/driver.cpp).
        unsafe { emulator.symbol::<unsafe extern "C" fn(&Hooks)>("emulator_ptx")(&HOOKS) };
        Some(emulator)
    });
    if emulator.is_none() {
        say(&format!("SKIPPED {test}: no g++ here, which builds the emulator"));
    }
    emulator.as_ref().inspect(|e| {
        e.show(true);
        e.be(SMALL);
    })
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The folder with the library and all kernels, built once for what they are built from.
fn build(compiler: &[u8]) -> PathBuf {
    let files = fs::read_dir(kernels().join("emulator")).unwrap().map(|f| f.unwrap().path());
    let files: BTreeSet<PathBuf> = files.filter(|f| f.is_file()).collect();
    let sources: Vec<&PathBuf> =
        files.iter().filter(|f| f.extension() == Some(OsStr::new("cpp"))).collect();
    let mut hasher = DefaultHasher::new();
    (LIBRARY, KERNEL, compiler).hash(&mut hasher);
    files.iter().for_each(|f| fs::read(f).unwrap().hash(&mut hasher));
    source::all().iter().for_each(|s| source::key(s, ARCH).hash(&mut hasher));
    // What `-march=native` means.
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.lines().find(|line| line.starts_with("flags")).hash(&mut hasher);

    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = all.join(format!("emulator-{:016x}", hasher.finish()));
    if !folder.exists() {
        let new = tempfile::tempdir_in(all).unwrap();
        let library = || {
            let to = new.path().join("libcuda.so");
            gpp(Command::new("g++").args(LIBRARY).args(sources).arg("-o").arg(to));
        };
        // Code for this machine has no architecture; the folder's names do. Most sources are the
        // same for all.
        let jobs = |arch: &'static str| {
            let needed = move |s: &&Source| arch == ARCH || s.file.contains("GRITLM_HOPPER");
            source::all().iter().filter(needed).map(move |s| (arch, s))
        };
        let jobs: Vec<_> = jobs(ARCH).chain(jobs(H200.arch())).collect();
        let cubins = || -> BTreeMap<_, Vec<u8>> {
            let cubin = |&(arch, s): &(&'static str, &'static Source)| {
                ((arch, s.stem), cubin(arch, s.stem, &source::text(s), &headers()))
            };
            jobs.par_iter().map(cubin).collect()
        };
        let (cubins, ()) = rayon::join(cubins, library);
        for model in [SMALL, H200] {
            let folder = new.path().join(model.arch());
            fs::create_dir(&folder).unwrap();
            let own = |s: &Source| {
                cubins.get(&(model.arch(), s.stem)).unwrap_or(&cubins[&(ARCH, s.stem)]).clone()
            };
            save(&folder, model.arch(), &source::all().iter().map(own).collect::<Vec<_>>());
        }
        // Another process may have been first.
        let _ = fs::rename(new.path(), &folder);
    }
    folder
}

/// A folder of kernels as `--kernels` takes it.
pub(crate) fn save(folder: &Path, arch: &str, cubins: &[Vec<u8>]) {
    let all: Vec<_> =
        source::all().iter().zip(cubins).map(|(s, bytes)| (s, arch, &bytes[..])).collect();
    prebuilt::save(folder, &all).unwrap();
}

fn headers() -> Vec<(&'static str, String)> {
    HEADERS.iter().map(|(name, text)| (*name, text.to_string())).collect()
}

/// A source with these headers, compiled for the emulator as a GPU of this architecture.
fn cubin(arch: &str, stem: &str, text: &str, headers: &[(&str, String)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    headers.iter().for_each(|(name, text)| fs::write(file(name), text).unwrap());
    let (from, to) = (file(&format!("{stem}.cu")), file("cubin"));
    fs::write(&from, text).unwrap();
    let words = kernels().join("emulator/cuda.h");
    let mut gpp_ = Command::new("g++");
    let hopper = (arch == H200.arch()).then_some("-DGRITLM_HOPPER");
    gpp_.args(KERNEL).args(hopper).arg("-I").arg(folder.path()).arg("-I").arg(kernels());
    gpp(gpp_.arg("-include").arg(words).arg(from).arg("-o").arg(&to));
    fs::read(to).unwrap()
}

fn gpp(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Emulator {
    /// The folder of the driver's library.
    pub(crate) fn library(&self) -> &Path {
        &self.folder
    }

    /// All kernels, compiled for the emulator; what `--kernels` takes.
    pub(crate) fn kernels(&self, model: Model) -> PathBuf {
        self.folder.join(model.arch())
    }

    /// The device that this thread opens is of this model.
    pub(crate) fn be(&self, model: Model) {
        // SAFETY: the function has this type (kernels/emulator/driver.cpp).
        unsafe { self.symbol::<unsafe extern "C" fn(&Model)>("emulator_model")(&model) }
    }

    /// Whether this thread sees the device.
    pub(crate) fn show(&self, yes: bool) {
        // SAFETY: the function has this type (kernels/emulator/driver.cpp).
        unsafe { self.symbol::<unsafe extern "C" fn(c_int)>("emulator_show")(c_int::from(yes)) }
    }

    /// The order of threads and blocks is drawn from this.
    pub(crate) fn seed(&self, seed: u64) {
        // SAFETY: the function has this type (kernels/emulator/engine.cpp).
        unsafe { self.symbol::<unsafe extern "C" fn(u64)>("emulator_seed")(seed) }
    }

    /// Whether faults are expected, and not written to stderr.
    pub(crate) fn quiet(&self, quiet: bool) {
        // SAFETY: as above.
        unsafe { self.symbol::<unsafe extern "C" fn(bool)>("emulator_quiet")(quiet) }
    }

    /// What the last kernel that failed did; empty if none did. Forgotten once told.
    pub(crate) fn fault(&self) -> String {
        // SAFETY: the functions have these types; the text stays until the next call here.
        unsafe {
            let fault = self.symbol::<unsafe extern "C" fn() -> *const c_char>("emulator_fault")();
            let fault = CStr::from_ptr(fault).to_string_lossy().into_owned();
            self.symbol::<unsafe extern "C" fn()>("emulator_clear")();
            fault
        }
    }

    /// # Safety
    /// The function must have this type.
    unsafe fn symbol<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: as the caller promises.
        unsafe { self.library.get(name.as_bytes()) }.unwrap()
    }
}

/// For a test that expects faults. One at a time: there is one last fault.
pub(crate) struct Alone(
    pub(crate) &'static Emulator,
    #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Alone {
    pub(crate) fn install(test: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let emulator = install(test)?;
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        emulator.quiet(true);
        emulator.fault();
        Some(Self(emulator, alone))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.quiet(false);
    }
}
