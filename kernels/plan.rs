//! A GPU that is not there: what it would be asked to launch, and how long each launch would take.
//!
//! The forward pass runs on it as on any other device and says itself what it launches, so that no
//! second list of kernels and grids can disagree with it. Times come from the compiled kernels
//! through the model in `gritlm-sass`; they are predictions.

use crate::Cuda;
use crate::compile::{Nvrtc, Usage};
use crate::driver::{Device, Driver, Grid};
use crate::gpu::{Gpu, Kernel, Steps, Work};
use crate::matrix::Ring;
use crate::source::{self, Source};
use gritlm_model::files::cache_folder;
use gritlm_model::ops::{DeviceError, Result};
use gritlm_sass as sass;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// A launch that a planned GPU was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Name of the op.
    pub op: &'static str,
    /// File stem of the kernel's source.
    pub source: &'static str,
    /// Its entry point.
    pub entry: Cow<'static, str>,
    /// Number of blocks.
    pub blocks: u64,
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared: u32,
    /// Bytes that have to be read and written at least.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
    steps: Steps,
}

impl Planned {
    /// Whether the tensor cores do the work.
    pub fn has_products(&self) -> bool {
        self.steps.products > 0
    }

    pub(crate) fn of(kernel: Kernel, grid: Grid, work: Work) -> Self {
        let Grid { blocks, threads, shared } = grid;
        Self {
            op: work.op,
            source: kernel.source,
            entry: kernel.entry,
            blocks: blocks.into_iter().map(u64::from).product(),
            threads,
            shared,
            bytes: work.bytes,
            flops: work.flops,
            steps: work.steps,
        }
    }
}

/// What a planned GPU was asked to launch, in order.
pub type Plan = Arc<Mutex<Vec<Planned>>>;

/// A GPU's model, and the kernels compiled for it.
#[derive(Debug)]
pub struct Predictor {
    gpu: sass::Gpu,
    arch: String,
    kernels: HashMap<String, (sass::Kernel, Usage)>,
    stems: HashSet<&'static str>,
    nvrtc: Nvrtc,
}

/// What is known of an architecture's largest GPU, and its compute capability and shared memory for
/// a block.
const GPUS: [(&str, sass::Gpu, (u32, u32), u32); 2] =
    [("sm_80", sass::Gpu::A100, (8, 0), 163 << 10), ("sm_90a", sass::Gpu::H200, (9, 0), 227 << 10)];

/// Returns the model of an architecture's largest GPU, and its properties.
///
/// # Errors
/// When the architecture has no model.
fn modelled(arch: &str) -> Result<(sass::Gpu, Device)> {
    let found = GPUS.into_iter().find(|(name, ..)| *name == arch);
    let Some((_, gpu, capability, shared)) = found else {
        let names: Vec<&str> = GPUS.iter().map(|(name, ..)| *name).collect();
        return Err(DeviceError(format!(
            "architecture {arch}: expected one with a model: {}",
            names.join(", ")
        )));
    };
    let (name, sms) = (gpu.name.into(), gpu.multiprocessors);
    // Weights of any size fit, because a planned GPU's take none.
    let device = Device { ordinal: 0, name, capability, memory: 1 << 40, sms, shared };
    Ok((gpu, device))
}

impl Cuda {
    /// Returns the largest GPU of this architecture as the interpreter of PTX plays it: every launch
    /// is chosen as for that GPU and runs on the CPU, from the text that NVRTC writes. `own` are
    /// sources in place of those with the same stems.
    ///
    /// # Errors
    /// When the architecture has no model, NVRTC is missing or does not know it, or a source does not
    /// compile or needs what the interpreter lacks.
    pub fn interpreted(arch: &str, own: &[Source]) -> Result<Self> {
        let (_, device) = modelled(arch)?;
        let nvrtc = Nvrtc::open()?;
        let replaced = |s: &&Source| !own.iter().any(|own| own.stem == s.stem);
        let all: Vec<&Source> = source::all().iter().filter(replaced).chain(own).collect();
        let cache = cache_folder();
        let text = |s: &Source| Ok((s.stem, nvrtc.cached_ptx(s, arch, cache.as_deref())?));
        let texts = all.into_par_iter().map(text);
        let texts = texts.collect::<Result<HashMap<_, _>>>()?;
        Self::on(Driver::interpreted(device), texts)
    }

    /// Returns the largest GPU of this architecture, on which nothing runs, and what it will be asked
    /// to launch.
    ///
    /// # Errors
    /// When the architecture has no model.
    pub fn planned(arch: &str) -> Result<(Self, Plan)> {
        let (_, device) = modelled(arch)?;
        let cuda = Self::on(Driver::planned(device), HashMap::new())?;
        let plan = cuda.gpu.plan();
        Ok((cuda, plan))
    }

    /// Returns a GPU that is not there.
    fn on(driver: Driver, compiled: HashMap<&'static str, Vec<u8>>) -> Result<Self> {
        let gpu = Gpu::new(driver, compiled, false)?;
        Ok(Self { gpu, ring: Ring::default(), form: None })
    }
}

/// A launch's prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread spills.
    pub spills: u32,
    /// Time, blocks on a multiprocessor, cycles of a step.
    pub time: sass::Prediction,
}

impl Predictor {
    /// Compiles all kernels for an architecture, and disassembles them.
    ///
    /// # Errors
    /// As [`Predictor::of`].
    pub fn open(arch: &str) -> Result<Self> {
        Self::of(arch, source::all())
    }

    /// Compiles these sources for an architecture, and disassembles them.
    ///
    /// # Errors
    /// When the architecture has no model, NVRTC is missing or does not support it, a source does not
    /// compile, or `nvdisasm` is not on the path.
    pub fn of(arch: &str, sources: &[Source]) -> Result<Self> {
        let (gpu, _) = modelled(arch)?;
        let nvrtc = Nvrtc::open()?;
        nvrtc.check(arch)?;
        let stems = sources.iter().map(|source| source.stem).collect();
        let arch = arch.into();
        let mut predictor = Self { gpu, arch, kernels: HashMap::new(), stems, nvrtc };
        let compiled = sources.par_iter().map(|source| predictor.compile(source));
        predictor.kernels = compiled.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        Ok(predictor)
    }

    /// Whether the kernel of a launch is of one of the sources.
    pub fn has(&self, planned: &Planned) -> bool {
        self.stems.contains(planned.source)
    }

    /// Compiles a source and takes its kernels in place of those with the same names.
    ///
    /// # Errors
    /// When it does not compile, or `nvdisasm` fails.
    pub fn replace(&mut self, source: &Source) -> Result<()> {
        let compiled = self.compile(source)?;
        self.kernels.extend(compiled);
        Ok(())
    }

    fn compile(&self, source: &Source) -> Result<Vec<(String, (sass::Kernel, Usage))>> {
        let compiled = self.nvrtc.compile(source, &self.arch)?;
        let folder =
            tempfile::tempdir().map_err(|e| DeviceError(format!("a folder for cubins: {e}")))?;
        let file = folder.path().join(format!("{}.cubin", source.stem));
        std::fs::write(&file, compiled.cubin)
            .map_err(|e| DeviceError(format!("{}: {e}", file.display())))?;
        let kernels = sass::disassemble(&file).map_err(DeviceError)?;
        let used = |kernel: sass::Kernel| {
            let usage = compiled.usage.iter().find(|u| u.entry == kernel.name).cloned();
            (kernel.name.clone(), (kernel, usage.unwrap_or_default()))
        };
        Ok(kernels.into_iter().map(used).collect())
    }

    /// The architecture that the kernels were compiled for.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Version of the compiler.
    pub fn compiler(&self) -> (i32, i32) {
        self.nvrtc.version()
    }

    /// What the model knows of the GPU.
    pub fn gpu(&self) -> &sass::Gpu {
        &self.gpu
    }

    /// Predicts a launch.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub fn predict(&self, planned: &Planned) -> Result<Predicted> {
        let found = self.kernels.get(planned.entry.as_ref());
        let (kernel, usage) = found.ok_or_else(|| {
            DeviceError(format!("the kernel {} has not been compiled", planned.entry))
        })?;
        let Steps { mean, most, products, tiles, copied } = planned.steps;
        // On Hopper the last warps of a block, or its first four, only copy.
        let warps = planned.threads.div_ceil(32).max(1);
        let warps = f64::from(if copied > 0 { (warps - 1) & !3 } else { warps });
        // A product of 16 by 8 by 16 are so many multiply-adds.
        let products = products as f64 / 2048.0 / warps;
        let launch = sass::Launch {
            blocks: planned.blocks,
            block: sass::Block {
                threads: planned.threads,
                registers: usage.registers,
                shared: planned.shared,
            },
            work: sass::Work { steps: mean, longest: most, products, tiles, copied },
            bytes: planned.bytes,
        };
        Ok(Predicted {
            registers: usage.registers,
            spills: usage.spills,
            time: self.gpu.predict(kernel, &launch),
        })
    }
}
