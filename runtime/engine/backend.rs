//! Chooses and opens the device that computes. This is the only file that knows which backends
//! exist.

use crate::cache::KvPool;
use crate::forward::{Forward, Model};
use crate::{Error, Options, Result, synth};
use gritlm_model::config::Config;
use gritlm_model::cpu::Cpu;
use gritlm_model::measure::Measure;
use gritlm_model::ops::{Backward, Ops};
use gritlm_model::weights::Weights;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use web_time::Instant;

/// The requested device: `auto`, `cpu`, `cuda[:N]` or `wgpu[:NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first NVIDIA GPU through CUDA, else the best wgpu adapter that is not a CPU, else the
    /// CPU.
    #[default]
    Auto,
    /// The CPU, in plain Rust.
    Cpu,
    /// An NVIDIA GPU, by its number from 0.
    Cuda(u32),
    /// The first usable adapter whose name or backend contains this text, in any case; the best
    /// adapter if the text is empty.
    Wgpu(String),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let wrong = || Error::Option {
            option: "device",
            expected: "auto, cpu, cuda, cuda:N, wgpu or wgpu:NAME".into(),
            found: text.into(),
        };
        match kind {
            "auto" if text == kind => Ok(Self::Auto),
            "cpu" if text == kind => Ok(Self::Cpu),
            "cuda" if text == kind => Ok(Self::Cuda(0)),
            "cuda" => rest.parse().map(Self::Cuda).map_err(|_| wrong()),
            "wgpu" => Ok(Self::Wgpu(rest.into())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Wgpu(name) if name.is_empty() => f.write_str("wgpu"),
            Self::Wgpu(name) => write!(f, "wgpu:{name}"),
        }
    }
}

/// A device, or a backend that has none, and whether it can be used on this machine.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// Name of the device, as `--device` takes it.
    pub device: String,
    /// Whether it can be opened.
    pub available: bool,
    /// Name and properties of the device, or the reason why it cannot be opened.
    pub description: String,
}

/// Returns the devices of every backend, after opening each adapter of wgpu once. A backend that finds
/// none, or is not built in, has one entry that says so.
pub fn devices() -> Vec<DeviceInfo> {
    pollster::block_on(devices_async())
}

/// Does what [`devices`] does, for async code.
pub async fn devices_async() -> Vec<DeviceInfo> {
    let info = |device: &str, available, description: String| DeviceInfo {
        device: device.into(),
        available,
        description,
    };
    let mut all = vec![info("cpu", true, Cpu.device())];
    all.extend(cuda::devices());
    all.extend(wgpu::devices().await);
    all
}

/// Visitor that loads a model onto the device that was opened.
pub(crate) struct Load<'a> {
    pub(crate) options: &'a Options,
    pub(crate) config: &'a Config,
    /// The checkpoint's weights, or `None` for random ones.
    pub(crate) weights: Option<&'a Weights>,
    pub(crate) frequencies: Vec<f32>,
    pub(crate) pool: &'a Arc<KvPool>,
    pub(crate) pages: usize,
}

impl Visit for Load<'_> {
    type Out = Loaded;
    type Error = Error;

    async fn visit<O: Measure + 'static>(self, ops: O, why: String) -> Result<Loaded> {
        let made;
        let weights = match self.weights {
            Some(weights) => weights,
            None => {
                synth::check_memory(&ops, self.config, self.options)?;
                made = synth::weights(self.config, ops.in_place())?;
                &made
            }
        };
        let start = Instant::now();
        let model = Box::new(Forward::load(ops, self, weights).await?);
        let loading = Loading { bytes: weights.bytes(), time: start.elapsed() };
        Ok(Loaded { model, why, loading, threads: O::THREADS })
    }
}

/// A model loaded onto a device.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn Model>,
    /// Why this device was chosen.
    pub(crate) why: String,
    pub(crate) loading: Loading,
    /// [`Ops::THREADS`] of the backend.
    pub(crate) threads: bool,
}

/// What loading a model took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Bytes of the weights.
    pub bytes: u64,
    /// Time from the open device to the loaded model. The CPU computes on the mapped files, so
    /// there it is close to zero.
    pub time: Duration,
}

/// An action on an open device, generic over the backend.
pub trait Visit {
    /// Result of the action.
    type Out;
    /// Error of the action.
    type Error: From<Error>;

    /// Runs the action. `why` says why this device was chosen.
    ///
    /// # Errors
    /// As the visitor defines.
    fn visit<O: Measure + 'static>(
        self,
        ops: O,
        why: String,
    ) -> impl Future<Output = Result<Self::Out, Self::Error>>;
}

/// Opens the device that the options ask for and passes it to the visitor.
///
/// # Errors
/// When the device does not exist or cannot be opened, or the visitor fails.
pub fn open<V: Visit>(options: &Options, visitor: V) -> Result<V::Out, V::Error> {
    pollster::block_on(open_async(options, visitor))
}

/// Does what [`open`] does, for async code.
///
/// # Errors
/// As [`open`].
pub async fn open_async<V: Visit>(options: &Options, visitor: V) -> Result<V::Out, V::Error> {
    let asked = &options.device;
    let missing = |problem: String| Error::NoDevice {
        asked: asked.to_string(),
        problem: format!("{problem}; use `device` cpu"),
    };
    match asked {
        Device::Cuda(n) => {
            let device = cuda::open(*n, options).map_err(missing)?;
            visitor.visit(device, "as asked for".into()).await
        }
        Device::Cpu => visitor.visit(Cpu, "as asked for".into()).await,
        Device::Wgpu(name) => {
            let (device, why) = wgpu::open(name, options).await.map_err(missing)?;
            visitor.visit(device, why).await
        }
        Device::Auto => match cuda::open_gpu(options) {
            Some(Ok(device)) => visitor.visit(device, "the first NVIDIA GPU".into()).await,
            // Another driver may reach the same GPU.
            Some(Err(problem)) => {
                open_other(options, visitor, format!("; not CUDA: {problem}")).await
            }
            None => open_other(options, visitor, String::new()).await,
        },
    }
}

/// Opens the best GPU that wgpu reaches, else the CPU. `but` says why CUDA was not used, if it
/// has a GPU.
async fn open_other<V: Visit>(
    options: &Options,
    visitor: V,
    but: String,
) -> Result<V::Out, V::Error> {
    match wgpu::open_gpu(options).await {
        Some(Ok((device, why))) => visitor.visit(device, why + &but).await,
        Some(Err(problem)) => {
            visitor.visit(Cpu, format!("the GPU cannot be used: {problem}{but}")).await
        }
        None => visitor.visit(Cpu, format!("there is no GPU{but}")).await,
    }
}

/// An action on an open device that computes gradients, generic over the backend.
pub trait VisitTraining {
    /// Result of the action.
    type Out;
    /// Error of the action.
    type Error: From<Error>;

    /// Runs the action.
    ///
    /// # Errors
    /// As the visitor defines.
    fn visit<O: Backward>(self, ops: O) -> Result<Self::Out, Self::Error>;
}

/// Opens the device that the options ask for and passes it to the visitor; [`Device::Auto`] is the
/// CPU, since training on it is what has been measured.
///
/// # Errors
/// When the device does not exist, cannot be opened or computes no gradients, or the visitor fails.
pub fn open_training<V: VisitTraining>(options: &Options, visitor: V) -> Result<V::Out, V::Error> {
    let asked = &options.device;
    let missing = |problem: String| Error::NoDevice { asked: asked.to_string(), problem };
    match asked {
        Device::Auto | Device::Cpu => visitor.visit(Cpu),
        Device::Wgpu(name) => {
            let (device, _) = pollster::block_on(wgpu::open(name, options))
                .map_err(|problem| missing(format!("{problem}; use `device` cpu")))?;
            visitor.visit(device)
        }
        Device::Cuda(_) => {
            let problem = "there are no CUDA kernels for training yet; use `device` wgpu or cpu";
            Err(missing(problem.into()).into())
        }
    }
}

pub use cuda::build as build_kernels;
pub use wgpu::row_bytes as wgpu_row_bytes;

/// The CUDA backend, where it is built in.
#[cfg(feature = "cuda")]
mod cuda {
    use super::{DeviceInfo, Options};
    pub use gritlm_kernels::prebuilt::build;
    use gritlm_kernels::{Cuda, Device, devices as gpus};

    pub(super) fn devices() -> Vec<DeviceInfo> {
        match gpus() {
            Ok(gpus) if gpus.is_empty() => vec![unavailable("there is no NVIDIA GPU".into())],
            Ok(gpus) => gpus.iter().map(describe).collect(),
            Err(problem) => vec![unavailable(problem.to_string())],
        }
    }

    fn unavailable(description: String) -> DeviceInfo {
        DeviceInfo { device: "cuda".into(), available: false, description }
    }

    fn describe(gpu: &Device) -> DeviceInfo {
        let (major, minor) = gpu.capability;
        DeviceInfo {
            device: format!("cuda:{}", gpu.ordinal),
            available: gpu.capability >= (8, 0),
            description: format!(
                "{}, compute capability {major}.{minor}, {} MiB, {} multiprocessors, {} KiB of \
                 shared memory a block",
                gpu.name,
                gpu.memory >> 20,
                gpu.sms,
                gpu.shared >> 10
            ),
        }
    }

    pub(super) fn open(ordinal: u32, options: &Options) -> Result<Cuda, String> {
        let options = gritlm_kernels::Options::default()
            .ordinal(ordinal)
            .profile(options.profile)
            .kernels(options.kernels.clone());
        Cuda::open(&options).map_err(|e| e.to_string())
    }

    /// Opens the first GPU; `None` if there is none.
    pub(super) fn open_gpu(options: &Options) -> Option<Result<Cuda, String>> {
        let found = gpus().is_ok_and(|gpus| !gpus.is_empty());
        found.then(|| open(0, options))
    }
}

/// Stub of the CUDA backend, for builds without the feature `cuda`.
#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{Cpu, DeviceInfo, Options};

    const MISSING: &str = "the CUDA backend is not built in (feature cuda)";

    /// Stands in for the CUDA backend's type of the same name.
    pub struct Built {
        /// Architecture it was compiled for.
        pub arch: String,
        /// File stem of the source.
        pub source: &'static str,
        /// Resources that each of its entry points uses.
        pub usage: Vec<Usage>,
        /// Size of the cubin in bytes.
        pub bytes: usize,
    }

    /// Stands in for the CUDA backend's type of the same name.
    pub struct Usage {
        /// Name of the entry point.
        pub entry: String,
        /// Registers per thread.
        pub registers: u32,
        /// Bytes that a thread spills to memory for lack of registers.
        pub spills: u32,
        /// Bytes of stack per thread.
        pub stack: u32,
    }

    /// Fails, because the feature `cuda` is not built in.
    ///
    /// # Errors
    /// Always.
    pub fn build<E: From<gritlm_model::ops::DeviceError>>(
        _archs: &[String],
        _folder: &std::path::Path,
        _progress: impl Fn(u64, u64) -> Result<(), E> + Sync,
    ) -> Result<Vec<Built>, E> {
        Err(gritlm_model::ops::DeviceError(MISSING.into()).into())
    }

    pub(super) fn devices() -> Vec<DeviceInfo> {
        let description = MISSING.into();
        vec![DeviceInfo { device: "cuda".into(), available: false, description }]
    }

    pub(super) fn open(_ordinal: u32, _options: &Options) -> Result<Cpu, String> {
        Err(MISSING.into())
    }

    pub(super) fn open_gpu(_options: &Options) -> Option<Result<Cpu, String>> {
        None
    }
}

/// The WGSL backend, where it is built in.
#[cfg(feature = "wgpu")]
mod wgpu {
    use super::{DeviceInfo, Options};
    use crate::Arithmetic;
    use gritlm_model::ops::Compute;
    pub use gritlm_shaders::row_bytes;
    use gritlm_shaders::{Adapter, Half, Wgpu, best_gpu, opened_adapters};

    /// An open device, and why it was chosen.
    type Opened = (Wgpu, String);

    pub(super) async fn devices() -> Vec<DeviceInfo> {
        let all = opened_adapters().await;
        if all.is_empty() {
            let description = "no adapter: a driver is missing".into();
            return vec![DeviceInfo { device: "wgpu".into(), available: false, description }];
        }
        all.iter().map(describe).collect()
    }

    fn describe(a: &Adapter) -> DeviceInfo {
        let mut parts = vec![a.driver.clone()];
        parts.extend(a.lacks.as_ref().map(|lacks| format!("cannot be used: {lacks}")));
        parts.extend(a.cpu.then(|| "a CPU".into()));
        parts.push(match a.subgroups {
            Some((least, most)) if least == most => format!("subgroups of {least}"),
            Some((least, most)) => format!("subgroups of {least} to {most}"),
            None => "no subgroups".into(),
        });
        parts.extend(a.f16.then(|| "f16".into()));
        parts.extend(a.matrices.iter().map(|m| format!("matrices {m}")));
        parts.push(format!("bindings to {} MiB", a.binding_bytes >> 20));
        parts.push(format!("buffers to {} MiB", a.buffer_bytes >> 20));
        parts.push(format!("workgroup memory {} KiB", a.workgroup_bytes >> 10));
        parts.extend(a.timestamps.then(|| "time stamps".into()));
        parts.extend(a.pipeline_cache.then(|| "pipeline cache".into()));
        parts.retain(|part| !part.is_empty());
        DeviceInfo {
            device: format!("wgpu:{}", a.label()),
            available: a.lacks.is_none(),
            description: parts.join(", "),
        }
    }

    pub(super) async fn open(name: &str, options: &Options) -> Result<Opened, String> {
        let options = gritlm_shaders::Options::default()
            .name(name)
            .profile(options.profile)
            .matrix_bytes(options.matrix_bytes)
            .tune(options.tune)
            .f16(match options.compute {
                Some(Arithmetic::Auto) => Half::IfAvailable,
                Some(Arithmetic::In(Compute::F16)) => Half::Required,
                _ => Half::Never,
            });
        let device = Wgpu::open(&options).await.map_err(|e| e.to_string())?;
        let why = match (name, device.adapter().cpu) {
            ("", true) => "as asked for; there is no GPU, only a CPU that plays one",
            _ => "as asked for",
        };
        Ok((device, why.into()))
    }

    /// Opens the best adapter that is not a CPU; `None` if there is none.
    pub(super) async fn open_gpu(options: &Options) -> Option<Result<Opened, String>> {
        let gpu = best_gpu().await?;
        let opened = open(&gpu.label(), options).await;
        Some(opened.map(|(device, _)| (device, "the best GPU here".into())))
    }
}

/// Stub of the WGSL backend, for builds without the feature `wgpu`.
#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::{Cpu, DeviceInfo, Options};

    const MISSING: &str = "the WGSL backend is not built in (feature wgpu)";

    /// Returns the bytes that a row of a matrix takes in a file, because the feature `wgpu` is not
    /// built in.
    pub fn row_bytes(dtype: gritlm_model::weights::Dtype, cols: usize) -> u64 {
        dtype.bytes(cols) as u64
    }

    pub(super) async fn devices() -> Vec<DeviceInfo> {
        let description = MISSING.into();
        vec![DeviceInfo { device: "wgpu".into(), available: false, description }]
    }

    pub(super) async fn open(_name: &str, _options: &Options) -> Result<(Cpu, String), String> {
        Err(MISSING.into())
    }

    pub(super) async fn open_gpu(_options: &Options) -> Option<Result<(Cpu, String), String>> {
        None
    }
}
