//! Compiled kernels. They come from a folder of prebuilt ones if one is given, else from the
//! cache folder, and NVRTC compiles what the cache lacks. This is the only file with `unsafe`
//! calls into NVRTC.

use crate::prebuilt;
use crate::source::{self, Source, hash};
use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys::{self, nvrtcProgram};
use gritlm_model::files::{cache_folder, keep};
use gritlm_model::ops::{DeviceError, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

/// Returns the compiler options for all sources. With `-v` the log has the numbers of [`Usage`].
/// `--split-compile`, which compiles one source on several cores, is left out because it leaves
/// calls, and with them stack frames, where everything would otherwise be inlined.
fn options(arch: &str) -> [String; 3] {
    let arch = format!("--gpu-architecture={arch}");
    [arch, "--std=c++17".into(), "--ptxas-options=-v".into()]
}

/// The oldest NVRTC that supports everything the sources use.
const OLDEST: (i32, i32) = (12, 0);

/// A source compiled for one architecture.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Binary that the driver loads.
    pub cubin: Vec<u8>,
    /// Resources that each entry point uses.
    pub usage: Vec<Usage>,
    /// What the compiler had to say beside that, a line each.
    pub said: Vec<String>,
}

/// Resources of a multiprocessor that an entry point uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Its name.
    pub entry: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes that a thread spills to memory for lack of registers, stores and loads together.
    pub spills: u32,
    /// Bytes of stack per thread.
    pub stack: u32,
}

/// Returns the cubins of all sources by stem, for a device of this compute capability. Where
/// `folder` is given, they come from there only; sources of a user's own are compiled.
///
/// # Errors
/// When the folder lacks some of them or has those of another version; without a folder, when
/// there is no NVRTC that supports the device, or a source does not compile.
pub fn cubins(
    capability: (u32, u32),
    folder: Option<&Path>,
    own: &[Source],
) -> Result<HashMap<&'static str, Vec<u8>>> {
    let mut cubins = match folder {
        Some(folder) => prebuilt::load(folder, &architectures(capability))?,
        None => HashMap::new(),
    };
    let all = source::all().iter().filter(|_| folder.is_none()).chain(own);
    let all: Vec<&Source> = all.collect();
    if !all.is_empty() {
        let nvrtc = Nvrtc::open()?;
        let arch = nvrtc.architecture(capability)?;
        let cache = cache_folder();
        let compiled = all.into_par_iter();
        let compiled = compiled.map(|s| Ok((s.stem, nvrtc.cubin(s, &arch, cache.as_deref())?)));
        // A user's own source follows the one that it replaces.
        cubins.extend(compiled.collect::<Result<Vec<_>>>()?);
    }
    Ok(cubins)
}

/// Returns the architectures whose cubins a device can run, best first: its own (on Hopper, first
/// the one with the instructions that only Hopper has), then older ones of its major version.
fn architectures((major, minor): (u32, u32)) -> Vec<String> {
    let own = ((major, minor) == (9, 0)).then(|| "sm_90a".into());
    own.into_iter().chain((0..=minor).rev().map(|minor| format!("sm_{major}{minor}"))).collect()
}

/// NVIDIA's compiler library, NVRTC.
#[derive(Debug)]
pub struct Nvrtc {
    version: (i32, i32),
    /// Architectures that it compiles for: 80 for `sm_80`.
    known: Vec<c_int>,
}

impl Nvrtc {
    /// Loads NVRTC from the system's library path, else from where CUDA is usually installed.
    ///
    /// # Errors
    /// When it is missing or too old.
    pub fn open() -> Result<Self> {
        // SAFETY: this loads NVRTC, whose initialisers are NVIDIA's.
        let present = || unsafe { sys::is_culib_present() };
        if !present() {
            load_installed();
            if !present() {
                return Err(DeviceError(
                    "NVRTC, which compiles the CUDA kernels, is not found (libnvrtc of CUDA 12 or \
                     13; LD_LIBRARY_PATH or CUDA_HOME may say where); install it, or take kernels \
                     built elsewhere with --kernels DIR"
                        .into(),
                ));
            }
        }
        let (mut version, mut count) = ((0, 0), 0);
        // SAFETY: each call writes no more than it is given room for.
        let known = unsafe {
            said(sys::nvrtcVersion(&mut version.0, &mut version.1).result())?;
            if version < OLDEST {
                return Err(DeviceError(format!(
                    "NVRTC {}.{} is too old for the CUDA kernels; install {}.{} or newer, or take \
                     kernels built elsewhere with --kernels DIR",
                    version.0, version.1, OLDEST.0, OLDEST.1
                )));
            }
            said(sys::nvrtcGetNumSupportedArchs(&mut count).result())?;
            let mut known = vec![0; count.max(0) as usize];
            said(sys::nvrtcGetSupportedArchs(known.as_mut_ptr()).result())?;
            known
        };
        Ok(Self { version, known })
    }

    /// Returns the major and the minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Returns the best architecture for a device of this compute capability.
    ///
    /// # Errors
    /// When this NVRTC is older than the device.
    pub fn architecture(&self, capability: (u32, u32)) -> Result<String> {
        let all = architectures(capability);
        let known = all.iter().find(|arch| self.knows(arch));
        known.cloned().ok_or_else(|| {
            let DeviceError(problem) = self.unknown(&all[0]);
            DeviceError(format!(
                "{problem}; install a newer one, or take kernels built elsewhere with --kernels DIR"
            ))
        })
    }

    /// Checks that NVRTC compiles for this architecture and that the kernels support it.
    ///
    /// # Errors
    /// When they do not. The error lists the supported architectures.
    pub fn check(&self, arch: &str) -> Result<()> {
        if self.knows(arch) { Ok(()) } else { Err(self.unknown(arch)) }
    }

    fn knows(&self, arch: &str) -> bool {
        let number = arch.strip_prefix("sm_").map(|n| n.strip_suffix('a').unwrap_or(n));
        number.and_then(|n| n.parse().ok()).is_some_and(|n| self.known.contains(&n) && n >= 80)
    }

    fn unknown(&self, arch: &str) -> DeviceError {
        let known: Vec<String> =
            self.known.iter().filter(|n| **n >= 80).map(|n| format!("sm_{n}")).collect();
        DeviceError(format!(
            "architecture {arch}: expected one that NVRTC {}.{} and the CUDA kernels know: {}",
            self.version.0,
            self.version.1,
            known.join(", ")
        ))
    }

    /// Returns the cubin from the cache, or compiles it and stores it there. A cached file that
    /// is incomplete, or that belongs to another source, compiler or architecture, is ignored.
    ///
    /// # Errors
    /// When the source does not compile.
    pub fn cubin(&self, source: &Source, arch: &str, cache: Option<&Path>) -> Result<Vec<u8>> {
        self.kept(source, arch, cache, "cubin", || Ok(self.compile(source, arch)?.cubin))
    }

    /// Does what [`Nvrtc::cubin`] does, for [`Nvrtc::ptx`].
    ///
    /// # Errors
    /// As [`Nvrtc::cubin`].
    pub fn cached_ptx(&self, source: &Source, arch: &str, cache: Option<&Path>) -> Result<Vec<u8>> {
        self.kept(source, arch, cache, "ptx", || self.ptx(source, arch))
    }

    fn kept(
        &self,
        source: &Source,
        arch: &str,
        cache: Option<&Path>,
        kind: &str,
        make: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let mut parts = vec![source::key(source, arch), format!("{:?}", self.version)];
        parts.extend(options(arch));
        let key = hash(parts.iter().map(String::as_bytes));
        let name = format!("{}.{arch}.{key}.{kind}", source.stem);
        // What a user's own source includes is not in the key.
        let cache = cache.filter(|_| source.path.is_none());
        let file = cache.map(|folder| folder.join("kernels").join(name));
        if let Some(compiled) = file.as_deref().and_then(|file| kept(file, &key)) {
            return Ok(compiled);
        }
        let compiled = make()?;
        if let Some(file) = file {
            // A full disk costs only another compilation.
            let _ = keep(&file, &[head(&key, &compiled).as_bytes(), &compiled].concat());
        }
        Ok(compiled)
    }

    /// Compiles a source.
    ///
    /// # Errors
    /// When it does not compile for this architecture. The error quotes the first error of the
    /// compiler's log.
    pub fn compile(&self, source: &Source, arch: &str) -> Result<Compiled> {
        self.check(arch)?;
        let (program, log) = self.program(source, options(arch).into())?;
        let mut size = 0;
        // SAFETY: the program is alive, and every length is the one that NVRTC reports.
        let cubin = unsafe {
            said(sys::nvrtcGetCUBINSize(program.0, &mut size).result())?;
            let mut cubin = vec![0; size];
            said(sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()).result())?;
            cubin
        };
        let lines = log.lines().filter(|line| !is_usage(line) && !line.trim().is_empty());
        Ok(Compiled { cubin, usage: usage(&log), said: lines.map(str::to_string).collect() })
    }

    /// Compiles a source as far as PTX for an architecture, `sm_80`; the text ends with a zero.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`].
    pub fn ptx(&self, source: &Source, arch: &str) -> Result<Vec<u8>> {
        self.check(arch)?;
        let virtual_arch = arch.replacen("sm_", "compute_", 1);
        let (program, _) = self.program(source, options(&virtual_arch)[..2].to_vec())?;
        let mut size = 0;
        // SAFETY: as above.
        unsafe {
            said(sys::nvrtcGetPTXSize(program.0, &mut size).result())?;
            let mut text = vec![0; size];
            said(sys::nvrtcGetPTX(program.0, text.as_mut_ptr().cast()).result())?;
            Ok(text)
        }
    }

    /// Compiles a source with these options, and returns the compiler's log with it.
    fn program(&self, source: &Source, mut options: Vec<String>) -> Result<(Program, String)> {
        let program = Program::new(source)?;
        let folder = source.folder().map(|folder| format!("--include-path={}", folder.display()));
        options.extend(folder);
        // SAFETY: the program is alive.
        let (compiled, log) = unsafe {
            let compiled = result::compile_program(program.0, &options);
            (compiled, said(result::get_program_log(program.0))?)
        };
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        let log = String::from_utf8_lossy(&log).replace('\0', "");
        compiled.map_err(|e| {
            let line = log.lines().find(|line| line.contains("error"));
            let why = match &source.path {
                // Whoever writes a kernel wants all that the compiler says.
                Some(_) => format!(":\n{}", log.trim_end()),
                None => format!(" ({})", line.map_or_else(|| e.to_string(), |l| l.trim().into())),
            };
            DeviceError(format!(
                "NVRTC {}.{} does not compile {} with {}{why}",
                self.version.0,
                self.version.1,
                name(source),
                options[0]
            ))
        })?;
        Ok((program, log))
    }
}

/// Returns the name of a source in the compiler's lines.
fn name(source: &Source) -> String {
    let own = source.path.as_ref().map(|path| path.display().to_string());
    own.unwrap_or_else(|| format!("{}.cu", source.stem))
}

/// A program of NVRTC, destroyed on drop.
struct Program(nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Self> {
        let name = name(source);
        let c = |text: &str| {
            CString::new(text).map_err(|e| DeviceError(format!("{name} holds a zero: {e}")))
        };
        let names = source.headers().map(|(name, _)| c(name)).collect::<Result<Vec<_>>>()?;
        let texts = source.headers().map(|(_, text)| c(text)).collect::<Result<Vec<_>>>()?;
        let pointers = |all: &[CString]| -> Vec<*const c_char> {
            all.iter().map(|one| CStr::as_ptr(one)).collect()
        };
        let mut program = null_mut();
        // SAFETY: all texts end with a zero and outlive the call, which copies them.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                c(&source::text(source))?.as_ptr(),
                c(&name)?.as_ptr(),
                names.len() as c_int,
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            )
        };
        said(created.result())?;
        Ok(Self(program))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once. Nothing can be done about an
        // error.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn said<T>(by_nvrtc: std::result::Result<T, NvrtcError>) -> Result<T> {
    by_nvrtc.map_err(|e| DeviceError(format!("NVRTC, which compiles the CUDA kernels: {e}")))
}

/// Loads NVRTC from where CUDA is usually installed. From then on the system finds it by name.
fn load_installed() {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let homes: Vec<PathBuf> = homes.map(PathBuf::from).chain(usual).collect();
    for folder in homes.iter().flat_map(|home| [home.join("lib64"), home.join("lib")]) {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let wanted = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libnvrtc") && name.contains(".so") && !name.contains(".alt.")
        };
        let mut libraries: Vec<PathBuf> = names.map(|f| f.path()).filter(wanted).collect();
        // Sorting puts `libnvrtc-builtins` first, which NVRTC looks for by name only.
        libraries.sort();
        for library in libraries {
            // SAFETY: NVIDIA's library, as above; it stays loaded.
            if let Ok(library) = unsafe { libloading::Library::new(library) } {
                std::mem::forget(library);
            }
        }
    }
}

/// Whether a line of the log is one that [`usage`] reads, or announces one.
fn is_usage(line: &str) -> bool {
    line.starts_with("ptxas info") || line.contains(" bytes stack frame")
}

/// Parses the log of `--ptxas-options=-v` into the resources of each entry point.
fn usage(log: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in log.lines() {
        // Parses the number in front of `words`.
        let number = |words: &str| -> u32 {
            let before =
                line.split_once(words).and_then(|(before, _)| before.split(' ').next_back());
            before.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or(rest).into();
            all.push(Usage { entry, ..Usage::default() });
        } else if let Some(last) = all.last_mut() {
            // Functions that are called instead of inlined follow their entry point in the log.
            last.registers = last.registers.max(number(" registers"));
            last.stack += number(" bytes stack frame");
            last.spills += number(" bytes spill stores") + number(" bytes spill loads");
        }
    }
    all
}

/// Returns the header line of a cached cubin.
fn head(key: &str, cubin: &[u8]) -> String {
    format!("gritlm kernel {key} {}\n", hash([cubin]))
}

/// Reads a cubin from the cache, if it is complete and has this key.
fn kept(file: &Path, key: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let cubin = bytes.split_off(bytes.iter().position(|byte| *byte == b'\n')? + 1);
    (bytes == head(key, &cubin).as_bytes()).then_some(cubin)
}
