//! Which device computes. The only file that knows which backends there are.

use crate::cache::Pool;
use crate::forward::{Forward, Model};
use crate::{Error, Result};
use gritlm_model::config::Config;
use gritlm_model::cpu::Cpu;
use gritlm_model::ops::Ops;
use gritlm_model::weights::Weights;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A device as asked for: `auto`, `cpu`, `cuda[:N]` or `wgpu[:NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// CUDA, else the best wgpu adapter that is not a CPU, else the CPU.
    #[default]
    Auto,
    /// Plain Rust.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(u32),
    /// The first adapter whose name contains this; the best one where it is empty.
    Wgpu(String),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let wrong = || Error::Option {
            option: "--device",
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

/// One backend, and whether it can be used here.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// As `--device` takes it.
    pub device: String,
    /// Whether it can be opened.
    pub available: bool,
    /// What it is, or why it cannot be opened.
    pub description: String,
}

/// Every backend.
pub fn devices() -> Vec<DeviceInfo> {
    let info = |device: &str, available, description: String| DeviceInfo {
        device: device.into(),
        available,
        description,
    };
    vec![
        info("cpu", true, Cpu.device()),
        info("cuda", false, gritlm_kernels::NOT_BUILT.into()),
        info("wgpu", false, gritlm_shaders::NOT_BUILT.into()),
    ]
}

/// Loads the model onto the device. Also says why this one, where the choice was ours.
pub(crate) fn load(
    device: &Device,
    config: &Config,
    weights: &Weights,
    frequencies: Vec<f32>,
    pool: &Arc<Pool>,
    pages: usize,
) -> Result<(Box<dyn Model>, &'static str)> {
    let missing = |problem: &str| {
        Err(Error::NoDevice {
            asked: device.to_string(),
            problem: format!("{problem}; use --device cpu"),
        })
    };
    let why = match device {
        Device::Cuda(_) => return missing(gritlm_kernels::NOT_BUILT),
        Device::Wgpu(_) => return missing(gritlm_shaders::NOT_BUILT),
        Device::Cpu => "as asked for",
        Device::Auto => "no GPU backend is built yet",
    };
    Ok((Box::new(Forward::load(Cpu, config, weights, frequencies, pool, pages)?), why))
}
