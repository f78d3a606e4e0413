//! The CUDA kernels without a GPU: `kernels/emulator` stands in for the driver's library and runs
//! the same sources, compiled by g++. Here it is built and installed for all tests, and shown to
//! find what it is for: mistakes that leave most results right.

use crate::support::say;
use gritlm::model::reference::relative_error;
use gritlm_bench::cases::cases;
use gritlm_kernels::source::{self, HEADERS, Source};
use gritlm_kernels::{Cuda, Options, compile};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{from_ref, null_mut};
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

/// Largest relative error of an op on the emulator.
const BF16: f64 = 8e-3;

/// The emulator's device.
const ARCH: &str = "sm_80";

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
        Some(Emulator { library, folder })
    });
    if emulator.is_none() {
        say(&format!("SKIPPED {test}: no g++ here, which builds the emulator"));
    }
    emulator.as_ref().inspect(|e| e.show(true))
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The folder with the library and all kernels, built once for what they are built from.
fn build(compiler: &[u8]) -> PathBuf {
    let files = fs::read_dir(kernels().join("emulator")).unwrap().map(|f| f.unwrap().path());
    let files: BTreeSet<PathBuf> = files.collect();
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
        let cubins = || -> Vec<Vec<u8>> {
            let all = source::all().par_iter();
            all.map(|s| cubin(s.stem, &source::text(s), &headers())).collect()
        };
        let (cubins, ()) = rayon::join(cubins, library);
        save(new.path(), &cubins);
        // Another process may have been first.
        let _ = fs::rename(new.path(), &folder);
    }
    folder
}

/// A folder of kernels as `--kernels` takes it.
fn save(folder: &Path, cubins: &[Vec<u8>]) {
    let all: Vec<_> =
        source::all().iter().zip(cubins).map(|(s, bytes)| (s, ARCH, &bytes[..])).collect();
    compile::save(folder, &all).unwrap();
}

fn headers() -> Vec<(&'static str, String)> {
    HEADERS.iter().map(|(name, text)| (*name, text.to_string())).collect()
}

/// A source with these headers, compiled for the emulator.
fn cubin(stem: &str, text: &str, headers: &[(&str, String)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    headers.iter().for_each(|(name, text)| fs::write(file(name), text).unwrap());
    let (from, to) = (file(&format!("{stem}.cu")), file("cubin"));
    fs::write(&from, text).unwrap();
    let words = kernels().join("emulator/cuda.h");
    let mut gpp_ = Command::new("g++");
    gpp_.args(KERNEL).arg("-I").arg(folder.path()).arg("-I").arg(kernels());
    gpp(gpp_.arg("-include").arg(words).arg(from).arg("-o").arg(&to));
    fs::read(to).unwrap()
}

fn gpp(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Emulator {
    /// All kernels, compiled for the emulator; what `--kernels` takes.
    pub(crate) fn kernels(&self) -> &Path {
        &self.folder
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

type Result = std::result::Result<(), c_int>;

fn said(code: c_int) -> Result {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// For a test that expects faults. One at a time: there is one last fault.
struct Alone(&'static Emulator, #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Alone {
    fn install(test: &str) -> Option<Self> {
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

/// The driver API as far as these tests need it.
struct Raw {
    emulator: &'static Emulator,
    module: *mut c_void,
    stream: *mut c_void,
    _alone: Alone,
}

/// Calls a function of the driver API; all arguments must have its types.
macro_rules! call {
    ($raw:expr, $name:ident($($arg:expr => $type:ty),*)) => {{
        // SAFETY: the types are those of the driver API, pointers point at what it expects.
        said(unsafe {
            $raw.symbol::<unsafe extern "C" fn($($type),*) -> c_int>(stringify!($name))($($arg),*)
        })
    }};
}

impl Raw {
    fn open(test: &str, cubin: &[u8]) -> Option<Self> {
        let alone = Alone::install(test)?;
        let emulator = alone.0;
        let (mut context, mut module, mut stream) = (null_mut(), null_mut(), null_mut());
        call!(emulator, cuDevicePrimaryCtxRetain(&mut context => *mut *mut c_void, 0 => c_int))
            .unwrap();
        call!(emulator, cuCtxSetCurrent(context => *mut c_void)).unwrap();
        call!(emulator, cuModuleLoadData(&mut module => *mut *mut c_void,
            cubin.as_ptr() => *const u8))
        .unwrap();
        call!(emulator, cuStreamCreate(&mut stream => *mut *mut c_void, 0 => c_uint)).unwrap();
        Some(Self { emulator, module, stream, _alone: alone })
    }

    fn function(&self, entry: &str) -> std::result::Result<*mut c_void, c_int> {
        let (entry, mut function) = (CString::new(entry).unwrap(), null_mut());
        call!(self.emulator, cuModuleGetFunction(&mut function => *mut *mut c_void,
            self.module => *mut c_void, entry.as_ptr() => *const c_char))?;
        Ok(function)
    }

    /// Launches with one parameter struct, without waiting.
    fn start<P>(&self, entry: &str, blocks: u32, threads: u32, shared: u32, params: &P) -> Result {
        let mut params = [from_ref(params).cast::<c_void>().cast_mut()];
        call!(self.emulator, cuLaunchKernel(self.function(entry)? => *mut c_void,
            blocks => c_uint, 1 => c_uint, 1 => c_uint, threads => c_uint, 1 => c_uint, 1 => c_uint,
            shared => c_uint, self.stream => *mut c_void, params.as_mut_ptr() => *mut *mut c_void,
            null_mut() => *mut *mut c_void))
    }

    fn wait(&self) -> Result {
        call!(self.emulator, cuStreamSynchronize(self.stream => *mut c_void))
    }

    fn buffer<T>(&self, values: &[T]) -> u64 {
        let (mut at, bytes) = (0, size_of_val(values));
        call!(self.emulator, cuMemAlloc_v2(&mut at => *mut u64, bytes => usize)).unwrap();
        call!(self.emulator, cuMemcpyHtoD_v2(at => u64, values.as_ptr() => *const T,
            bytes => usize))
        .unwrap();
        at
    }

    fn read<T>(&self, at: u64, values: &mut [T]) {
        call!(self.emulator, cuMemcpyDtoH_v2(values.as_mut_ptr() => *mut T, at => u64,
            size_of_val(values) => usize))
        .unwrap();
    }

    fn free(&self, at: u64) {
        call!(self.emulator, cuMemFree_v2(at => u64)).unwrap();
    }
}

/// Parameters of the snippets below.
#[repr(C)]
struct Snippet {
    /// 64 words, all 7.
    from: u64,
    /// 256 words, unwritten.
    to: u64,
}

/// Small kernels, right and wrong.
const SNIPPETS: &str = r#"
#include "common.cuh"
struct Snippet { Global<u32> in; Global<u32> out; };
constexpr Shared<u32> words{0};
constexpr u32 N = 128;
#define SNIPPET(name) \
    __device__ void name##_body(const Snippet &p); \
    KERNEL(name, Snippet, N, 1, name##_body) \
    __device__ void name##_body(const Snippet &p)
__device__ u32 me() { return threadIdx.x; }
__device__ void copy(const Snippet &p) { cp_async16(words, 4 * me(), p.in, 4 * (me() % 16), 16); }

SNIPPET(write_beyond) { p.out.set(me() + 129, me()); }
SNIPPET(read_before) { p.out.set(me(), p.in.from(-1ull)[0]); }
SNIPPET(read_misaligned) { p.out.set(me(), p.in.load<Vec16>(2).word[0]); }
SNIPPET(read_null) { p.out.set(me(), Global<u32>{nullptr}[me()]); }
SNIPPET(unwritten_global) { p.out.set(me(), p.out[me() + 128]); }

SNIPPET(global_without_barrier) {
    p.out.set(me(), me());
    p.out.set(128 + me(), p.out[(me() + 64) % N]);
}
SNIPPET(global_written_twice) { p.out.set(me() / 2, 1); }
SNIPPET(global_between_blocks) {
    if (me() == 0) {
        p.out.set(blockIdx.x, blockIdx.x);
        p.out.set(128 + blockIdx.x, p.out[0] + p.out[1] + p.out[2]);
    }
}
SNIPPET(global_with_barrier) {
    p.out.set(me(), me());
    __syncthreads();
    u32 v = p.out[(me() + 64) % N];
    __syncthreads();
    p.out.set(me(), v);
}

SNIPPET(shared_beyond) { words.set(me() + 1, me()); }
SNIPPET(shared_misaligned) { words.store(me() * 4 + 1, Vec16{}); }
SNIPPET(shared_unwritten) {
    words.set(me(), me());
    p.out.set(me(), words[me() < 127 ? me() : 200]);
}

SNIPPET(reads_without_barrier) { words.set(me(), me()); p.out.set(me(), words[(me() + 64) % N]); }
SNIPPET(reads_with_barrier) {
    words.set(me(), me());
    __syncthreads();
    p.out.set(me(), words[(me() + 64) % N]);
}
SNIPPET(writes_over_reads) {
    words.set(me(), me());
    __syncthreads();
    u32 v = words[(me() + 64) % N];
    words.set(me(), v);
}
SNIPPET(writes_over_reads_in_order) {
    words.set(me(), me());
    for (u32 i = 0; i < 300; i++) {
        __syncthreads();
        u32 v = words[(me() + 64) % N];
        __syncthreads();
        words.set(me(), v);
    }
    p.out.set(me(), words[me()]);
}
SNIPPET(writes_over_writes) { words.set(me() / 2, 1); }
SNIPPET(half_words_side_by_side) {
    Shared<bf16>{0}.set(me(), {u16(me())});
    __syncthreads();
    p.out.set(me(), words[me() / 2] >> me() % 2 * 16 & 0xffff);
}
SNIPPET(lanes_without_syncwarp) { words.set(me(), me()); p.out.set(me(), words[me() ^ 1]); }
SNIPPET(lanes_with_shuffle) {
    words.set(me(), me());
    u32 v = __shfl_xor_sync(ALL, me(), 1);
    p.out.set(me(), words[v]);
}
SNIPPET(lanes_with_syncwarp) {
    for (u32 i = 0; i < 100; i++) {
        words.set(me(), me());
        __syncwarp();
        p.out.set(me(), words[me() ^ 31]);
        __syncwarp();
    }
}
SNIPPET(warps_with_syncwarp) {
    words.set(me(), me());
    __syncwarp();
    p.out.set(me(), words[me() ^ 32]);
}
SNIPPET(adds) {
    words.set(me(), 0);
    __syncthreads();
    atomic_add(words, me() % 2, 1);
    __syncthreads();
    p.out.set(me(), words[me() % 2] + N / 2 * atomic_add(p.out, 128 + me(), 1));
}
SNIPPET(reads_while_adding) {
    words.set(me(), 0);
    __syncthreads();
    atomic_add(words, 5, 1);
    p.out.set(me(), words[5]);
}

SNIPPET(counts) { atomic_add(p.out, me(), 1); }

SNIPPET(copies) {
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    p.out.set(me(), words[(4 * me() + 64) % 512]);
}
SNIPPET(copies_part_of_nothing) {
    cp_async16(words, 4 * me(), p.in, me() ? 1ull << 40 : 60, me() ? 0 : 8);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), words[4 * me()] + words[4 * me() + 3]);
}
SNIPPET(copy_read_before_wait) { copy(p); cp_async_commit(); p.out.set(me(), words[4 * me()]); }
SNIPPET(copy_waits_for_another) {
    copy(p);
    cp_async_commit();
    cp_async_commit();
    cp_async_wait<2>();
    p.out.set(me(), words[4 * me()]);
}
SNIPPET(copy_written_before_wait) { copy(p); words.set(4 * me() + 1, 1); }
SNIPPET(copy_without_barrier) {
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), words[4 * (me() ^ 64)]);
}
SNIPPET(copy_not_committed) { copy(p); cp_async_wait<0>(); }
SNIPPET(copy_not_waited_for) { copy(p); cp_async_commit(); }
SNIPPET(copy_from_beyond) { cp_async16(words, 4 * me(), p.in, 64, 2); }
SNIPPET(copy_misaligned) { cp_async16(words, 4 * me() + 2, p.in, 0, 16); }
SNIPPET(copy_from_misaligned) { cp_async16(words, 4 * me(), p.in, 1, 16); }
SNIPPET(copy_over_a_read) {
    words.set(me(), me());
    __syncthreads();
    u32 v = words[me() ^ 127];
    __syncwarp();
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), v);
}

SNIPPET(barrier_by_some) { if (me() < 96) { __syncthreads(); } p.out.set(me(), 7); }
SNIPPET(shuffle_by_some) {
    u32 v = me();
    if (me() % 32 != 5) { v = __shfl_xor_sync(ALL, v, 1); }
    __syncthreads();
    p.out.set(me(), v);
}
SNIPPET(shuffle_with_mask) { p.out.set(me(), __shfl_down_sync(0xffffu, me(), 1)); }
SNIPPET(shuffle_meets_vote) {
    p.out.set(me(), me() % 2 ? __ballot_sync(ALL, 1) : __shfl_sync(ALL, me(), 1));
}
SNIPPET(shuffles) {
    u32 lane = me() % 32, v = __shfl_xor_sync(ALL, me(), 3), sum = 0;
    sum += v == (me() ^ 3u);
    sum += __shfl_up_sync(ALL, me(), 2) == (lane < 2 ? me() : me() - 2);
    sum += __shfl_down_sync(ALL, me(), 2, 16) == (lane % 16 > 13 ? me() : me() + 2);
    sum += __shfl_sync(ALL, me(), 9) == me() - lane + 9;
    sum += __ballot_sync(ALL, lane % 3 == 0) == 0x49249249u;
    sum += __any_sync(ALL, lane == 4) && !__any_sync(ALL, 0);
    sum += __all_sync(ALL, 1) && !__all_sync(ALL, lane);
    p.out.set(me(), sum);
}
SNIPPET(misaligned_matrix) {
    words.store(4 * me(), Vec16{});
    __syncthreads();
    u32 m[4];
    ldmatrix4(m, {0}, me() % 32 * 8 + 4);
}
SNIPPET(matrix_without_barrier) {
    words.store(4 * me(), Vec16{});
    u32 m[4];
    ldmatrix4(m, {0}, me() % 32 * 8);
}
SNIPPET(fragments) {
    Shared<bf16> a{0};
    for (u32 i = me(); i < 256; i += N) {
        words.set(i, p.out[i]);
    }
    __syncthreads();
    u32 lane = me() % 32, fa[4], fb[4];
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    ldmatrix4(fa, a, lane % 16 * 16 + lane / 16 * 8);
    ldmatrix4_trans(fb, a.from(256), lane % 16 * 16 + lane / 16 * 8);
    mma16x8x16(d, fa, fb[me() / 64 * 2], fb[me() / 64 * 2 + 1]);
    __syncthreads();
    for (u32 i = 0; me() / 32 % 2 == 0 && i < 4; i++) {
        u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2 + me() / 64 * 8;
        p.out.set(row * 16 + column, __float_as_uint(d[i]));
    }
}
"#;

fn snippets() -> &'static [u8] {
    static SNIPPET: OnceLock<Vec<u8>> = OnceLock::new();
    SNIPPET.get_or_init(|| cubin("snippets", SNIPPETS, &headers()))
}

/// Snippets with a mistake, and the words of the fault.
const WRONG: [(&str, &str); 33] = [
    ("write_beyond", "writes 4 bytes of global memory outside every allocation"),
    ("read_before", "reads 4 bytes of global memory outside every allocation"),
    ("read_misaligned", "reads 16 bytes at 8 of a global allocation of 256 bytes, misaligned"),
    ("read_null", "which is null"),
    ("global_without_barrier", "wrote it in this launch and no barrier lies between"),
    ("global_written_twice", "wrote it in this launch and no barrier lies between"),
    ("global_between_blocks", "wrote it in this launch and no barrier lies between"),
    ("shared_beyond", "thread 127: writes 4 bytes at 512 of shared memory, outside its 512 bytes"),
    ("shared_misaligned", "of shared memory, misaligned"),
    ("shared_unwritten", "thread 127: reads 4 bytes at 800 of shared memory, never written"),
    ("reads_without_barrier", "of shared memory"),
    ("writes_over_reads", "race, thread"),
    ("writes_over_writes", "wrote it and no barrier lies between"),
    ("lanes_without_syncwarp", "of shared memory"),
    ("lanes_with_shuffle", "wrote it and no barrier lies between"),
    ("warps_with_syncwarp", "of shared memory"),
    ("reads_while_adding", "added to it and no barrier lies between"),
    ("copy_read_before_wait", "where a cp.async is under way"),
    ("copy_waits_for_another", "where a cp.async is under way"),
    ("copy_written_before_wait", "where a cp.async is under way"),
    ("copy_without_barrier", "of shared memory"),
    ("copy_not_committed", "ends with 1 cp.async not waited for"),
    ("copy_not_waited_for", "ends with 1 cp.async not waited for"),
    ("copy_from_beyond", "reads 2 bytes of global memory outside every allocation"),
    ("copy_misaligned", "starts a cp.async to 16 bytes at"),
    ("copy_from_misaligned", "misaligned"),
    ("copy_over_a_read", "race"),
    ("barrier_by_some", "__syncthreads is reached by 96 of 128 threads; 32 have ended"),
    ("shuffle_by_some", "a shuffle is reached by 31 of 32 lanes of warp"),
    ("shuffle_with_mask", "a shuffle with mask 0000ffff"),
    ("shuffle_meets_vote", "while other lanes of its warp are at"),
    ("misaligned_matrix", "misaligned"),
    ("matrix_without_barrier", "of shared memory"),
];

/// A snippet, and what thread i writes.
type Right = (&'static str, fn(u32) -> u32);

/// Snippets without a mistake.
const RIGHT: [Right; 10] = [
    ("unwritten_global", |_| u32::MAX),
    ("global_with_barrier", |i| (i + 64) % 128),
    ("reads_with_barrier", |i| (i + 64) % 128),
    ("writes_over_reads_in_order", |i| i),
    ("half_words_side_by_side", |i| i),
    ("lanes_with_syncwarp", |i| i ^ 31),
    ("adds", |_| 0),
    ("copies", |_| 7),
    ("copies_part_of_nothing", |i| if i == 0 { 7 } else { 0 }),
    ("shuffles", |_| 7),
];

const ILLEGAL_ADDRESS: Result = Err(700);
const INVALID_VALUE: Result = Err(1);
const NOT_FOUND: Result = Err(500);

/// Parameters with an unwritten second buffer.
fn fresh(raw: &Raw) -> Snippet {
    let mut to = 0;
    call!(raw.emulator, cuMemAlloc_v2(&mut to => *mut u64, 1024 => usize)).unwrap();
    Snippet { from: raw.buffer(&[7u32; 64]), to }
}

/// Every mistake is a fault, told once, in every order of the threads; then all goes on as before.
#[test]
fn mistakes_are_found() {
    let Some(raw) = Raw::open("emulator::mistakes_are_found", snippets()) else { return };
    for (seed, (entry, words)) in (1..6).flat_map(|seed| WRONG.map(|wrong| (seed, wrong))) {
        raw.emulator.seed(seed);
        let params = fresh(&raw);
        let shared = if entry == "shared_beyond" { 512 } else { 4096 };
        // Elsewhere several blocks, run side by side, would race in what they write, a fault that
        // could come before the one that is meant.
        let several = ["global_between_blocks", "shared_beyond"].contains(&entry);
        raw.start(entry, if several { 3 } else { 1 }, 128, shared, &params).unwrap();
        assert_eq!(raw.wait(), ILLEGAL_ADDRESS, "{entry}");
        let fault = raw.emulator.fault();
        assert!(fault.starts_with(&format!("{entry} block ")) && fault.contains(words), "{fault}");
        assert_eq!(raw.wait(), Ok(()));
        raw.start("reads_with_barrier", 1, 128, shared, &params).unwrap();
        assert_eq!((raw.wait(), raw.emulator.fault().as_str()), (Ok(()), ""));
        raw.free(params.to);
        raw.start("reads_with_barrier", 1, 128, shared, &params).unwrap();
        assert_eq!(raw.wait(), ILLEGAL_ADDRESS);
        raw.emulator.fault();
    }
}

#[test]
fn what_is_right_passes() {
    let Some(raw) = Raw::open("emulator::what_is_right_passes", snippets()) else { return };
    for (seed, (entry, expected)) in (1..6).flat_map(|seed| RIGHT.map(|right| (seed, right))) {
        raw.emulator.seed(seed);
        let params = fresh(&raw);
        raw.start(entry, 1, 128, 4096, &params).unwrap();
        assert_eq!(raw.wait(), Ok(()), "{entry}: {}", raw.emulator.fault());
        let mut values = [0u32; 128];
        raw.read(params.to, &mut values);
        assert_eq!(values.to_vec(), (0..128).map(expected).collect::<Vec<_>>(), "{entry}");
    }
}

/// What cannot be launched is refused, as the driver does.
#[test]
fn launches_have_limits() {
    let Some(raw) = Raw::open("emulator::launches_have_limits", snippets()) else { return };
    let params = fresh(&raw);
    let start = |entry, blocks, threads, shared| {
        raw.start(entry, blocks, threads, shared, &params).and_then(|()| raw.wait())
    };
    assert_eq!(start("no_such_kernel", 1, 128, 0), NOT_FOUND);
    assert_eq!(start("counts", 0, 128, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 0, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 129, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 128, 49_153), INVALID_VALUE);
    let allow = |bytes| {
        call!(raw.emulator, cuFuncSetAttribute(raw.function("counts").unwrap() => *mut c_void,
            8 => c_int, bytes => c_int))
    };
    assert_eq!((allow(166_913), allow(49_160)), (INVALID_VALUE, Ok(())));
    assert_eq!(start("counts", 1, 128, 49_153), Ok(()));
    assert_eq!(start("counts", 1, 128, 49_161), INVALID_VALUE);
    let image = [0u8; 64];
    let mut module = null_mut();
    let loaded = call!(raw.emulator, cuModuleLoadData(&mut module => *mut *mut c_void,
        image.as_ptr() => *const u8));
    assert_eq!(loaded, Err(200));
}

/// A graph does later, and again, what was asked for while it was captured.
#[test]
fn graphs_are_replayed() {
    let Some(raw) = Raw::open("emulator::graphs_are_replayed", snippets()) else { return };
    let params = Snippet { from: 0, to: raw.buffer(&[5u32; 128]) };
    let (stream, mut graph, mut replay) = (raw.stream, null_mut(), null_mut());
    let count = |expected: u32| {
        let mut values = [0u32; 128];
        raw.read(params.to, &mut values);
        assert_eq!(values, [expected; 128]);
    };
    call!(raw.emulator, cuStreamBeginCapture_v2(stream => *mut c_void, 1 => c_int)).unwrap();
    for _ in 0..3 {
        raw.start("counts", 1, 128, 0, &params).unwrap();
    }
    assert_eq!(raw.wait(), Err(900));
    call!(raw.emulator, cuStreamEndCapture(stream => *mut c_void,
        &mut graph => *mut *mut c_void))
    .unwrap();
    call!(raw.emulator, cuGraphInstantiateWithFlags(&mut replay => *mut *mut c_void,
        graph => *mut c_void, 0 => u64))
    .unwrap();
    call!(raw.emulator, cuGraphDestroy(graph => *mut c_void)).unwrap();
    count(5);
    for times in 1..3 {
        call!(raw.emulator, cuGraphLaunch(replay => *mut c_void, stream => *mut c_void)).unwrap();
        assert_eq!(raw.wait(), Ok(()));
        count(5 + 3 * times);
    }
    raw.free(params.to);
    call!(raw.emulator, cuGraphLaunch(replay => *mut c_void, stream => *mut c_void)).unwrap();
    assert_eq!(raw.wait(), ILLEGAL_ADDRESS);
    call!(raw.emulator, cuGraphExecDestroy(replay => *mut c_void)).unwrap();
    raw.emulator.fault();
}

/// ldmatrix (also transposed) and mma, by the layouts of their fragments, are a matrix product.
#[test]
fn fragments_are_matrices() {
    let Some(raw) = Raw::open("emulator::fragments_are_matrices", snippets()) else { return };
    // Small integers: every sum is exact.
    let value = |i: usize| (i * 29 % 31) as f32 - 15.0;
    let halves: Vec<u16> = (0..512).map(|i| (value(i).to_bits() >> 16) as u16).collect();
    let params = Snippet { from: 0, to: raw.buffer(&halves) };
    raw.start("fragments", 1, 128, 1024, &params).unwrap();
    assert_eq!(raw.wait(), Ok(()), "{}", raw.emulator.fault());
    let mut out = [0f32; 256];
    raw.read(params.to, &mut out);
    for (at, &got) in out.iter().enumerate() {
        let (m, n) = (at / 16, at % 16);
        let product: f32 = (0..16).map(|k| value(m * 16 + k) * value(256 + k * 16 + n)).sum();
        // What d was before, by the lane's place.
        let before = (1 + n % 2 + m / 8 * 2) as f32;
        assert_eq!(got, before + product, "row {m}, column {n}");
    }
}

/// A kernel with a mistake: in a file that its source has, a text is another.
struct Mutant {
    stem: &'static str,
    file: &'static str,
    from: String,
    /// Which time the text occurs.
    nth: usize,
    to: &'static str,
}

impl Mutant {
    fn name(&self) -> String {
        format!("{}, {:?} (number {}) -> {:?}", self.file, self.from, self.nth, self.to)
    }

    /// The source with the mistake, compiled.
    fn cubin(&self) -> Vec<u8> {
        let source = source::all().iter().find(|s| s.stem == self.stem).unwrap();
        let (mut text, mut headers) = (source::text(source), headers());
        let header = headers.iter_mut().find(|(name, _)| *name == self.file);
        let changed = header.map_or(&mut text, |(_, text)| text);
        let at = changed.match_indices(&self.from).nth(self.nth);
        let (at, _) = at.unwrap_or_else(|| panic!("not there: {}", self.name()));
        changed.replace_range(at..at + self.from.len(), self.to);
        // Most of the many variants of attention take as long to compile as they are alike.
        let alike = |line: &str| {
            self.stem == "attention" && line.starts_with("KERNEL") && !line.contains("_64_")
        };
        let lines: Vec<&str> = text.lines().filter(|line| !alike(line)).collect();
        cubin(self.stem, &lines.join("\n"), &headers)
    }

    /// The fault or the wrong result that the case table finds.
    fn found(&self, emulator: &Emulator, cubin: Vec<u8>) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let built = |s: &Source| emulator.kernels().join(format!("{}.{ARCH}.cubin", s.stem));
        let kernel = |s: &Source| {
            if s.stem == self.stem { cubin.clone() } else { fs::read(built(s)).unwrap() }
        };
        save(folder.path(), &source::all().iter().map(kernel).collect::<Vec<_>>());
        let kernels = Some(folder.path().into());
        let cuda = Cuda::open(&Options { kernels, ..Options::default() }).unwrap();
        let op = match self.stem {
            "linear_add" | "rmsnorm" => self.stem,
            "route" => "expert",
            stem => stem.split('_').next().unwrap(),
        };
        for mut case in cases().into_iter().filter(|case| case.name.starts_with(op)) {
            case.bf16 = true;
            let out = case.run(&cuda);
            let fault = emulator.fault();
            if !fault.is_empty() {
                return Some(fault);
            }
            // Without a fault, it is a variant that was left out.
            let (Ok(out), expected, exact) = (out, case.expected(), case.exact()) else { continue };
            let same = out.len() == expected.len() && out[..exact] == expected[..exact];
            if !same
                || (out != expected && relative_error(&out[exact..], &expected[exact..]) > BF16)
            {
                return Some(format!("{}: a wrong result", case.name));
            }
        }
        None
    }
}

/// What is found of each; they are compiled side by side.
fn find(mutants: &[Mutant], emulator: &Emulator) -> Vec<Option<String>> {
    let cubins: Vec<_> = mutants.par_iter().map(Mutant::cubin).collect();
    let found = |(mutant, cubin): (&Mutant, _)| mutant.found(emulator, cubin);
    mutants.iter().zip(cubins).map(found).collect()
}

/// Without any one of the barriers and waits in the kernels, the emulator finds a fault.
#[test]
fn every_barrier_is_needed() {
    let Some(alone) = Alone::install("emulator::every_barrier_is_needed") else { return };
    let mut mutants = Vec::new();
    let files = source::all().iter().map(|s| (s.stem, s.stem, source::text(s)));
    let header = |(stem, file)| {
        let (_, text) = HEADERS.iter().find(|(name, _)| *name == file).unwrap();
        (stem, file, text.to_string())
    };
    let headers = [("pool", "common.cuh"), ("sample", "order.cuh"), ("linear_add", "matmul.cuh")];
    for (stem, file, text) in files.chain(headers.map(header)) {
        for barrier in ["__syncthreads();", "__syncwarp();", "cp_async_wait<"] {
            for (at, _) in text.match_indices(barrier) {
                let from = text[at..].split_inclusive(';').next().unwrap().to_string();
                let nth = text[..at].matches(&from).count();
                mutants.push(Mutant { stem, file, from, nth, to: ";" });
            }
        }
    }
    let found = find(&mutants, alone.0);
    // A scratch may be used again at once; nothing is under way when attention ends.
    let kept = [("common.cuh", "__syncthreads();", 0), ("attention", "cp_async_wait<0>();", 0)];
    for (mutant, found) in mutants.iter().zip(found) {
        let fault = found.is_some_and(|found| !found.ends_with("a wrong result"));
        let kept = kept.contains(&(mutant.file, &mutant.from, mutant.nth));
        assert!(fault != kept, "{}", mutant.name());
    }
}

/// Small mistakes in the kernels are found, as a fault or by a wrong result.
#[test]
fn broken_kernels_are_found() {
    let Some(alone) = Alone::install("emulator::broken_kernels_are_found") else { return };
    let mutants = [
        ("linear_add", "matmul.cuh", "STAGES - 2>()", "STAGES - 1>()"),
        ("linear_add", "matmul.cuh", "ceil_div(p.inner, DEPTH)", "p.inner / DEPTH"),
        ("linear_add", "matmul.cuh", "2 * min(inner - k, 8u)", "16"),
        ("linear_add", "matmul.cuh", "2 * k + lane() / 16", "2 * k + lane() / 8 % 2"),
        ("expert_gate_up", "matmul.cuh", "m >= rows.end", "m > rows.end"),
        ("linear_add", "matmul.cuh", "j < p.outputs", "j <= p.outputs"),
        ("linear_add", "matmul.cuh", "min(m, rows.end - 1)", "m"),
        ("linear_add", "matmul.cuh", "min(j, p.outputs - 1)", "j"),
        ("linear_add", "matvec.cuh", "left < 8", "left < 1"),
        ("attention", "attention", "F::MASK & CAUSAL", "F::MASK & WINDOW"),
        ("attention", "attention", "keys.end, at + 1", "keys.end, at + 2"),
        (
            "attention",
            "attention",
            "at + 1 - min(at + 1, tile.window)",
            "at - min(at, tile.window)",
        ),
        ("attention", "attention", "F::RING - 2>()", "F::RING - 1>()"),
        ("attention", "attention", "start + row + i < end_key", "start + row + i <= end_key"),
        ("attention", "attention", "start % PAGE", "start % (PAGE / 2)"),
        ("expert_sort", "expert_sort", "", ""),
        ("rmsnorm", "rmsnorm", "if (c < p.h_stride)", "if (c < p.h_stride + 4)"),
    ];
    let mutants =
        mutants.map(|(stem, file, from, to)| Mutant { stem, file, from: from.into(), nth: 0, to });
    for (mutant, found) in mutants.iter().zip(find(&mutants, alone.0)) {
        assert_eq!(found.is_some(), mutant.from != mutant.to, "{}", mutant.name());
    }
}
