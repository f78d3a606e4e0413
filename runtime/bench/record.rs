//! Defines the results of a benchmark run as one JSON object. The table, the page and the
//! comparison read it; scripts that measure peers can write it too.

use serde::{Deserialize, Serialize};

/// Version of the format; other versions are refused.
pub const VERSION: u32 = 1;

/// The results of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Time of the run, as in `2026-11-25T17:00:00Z`.
    pub date: String,
    /// Version of the program and, if known, its commit.
    pub program: String,
    /// The machine: CPU, threads, operating system.
    pub host: String,
    /// The devices that were measured.
    #[serde(default)]
    pub devices: Vec<Limits>,
    /// The figures that were measured.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Breakdowns of a step by op.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Figures of other programs, from `--peer` files.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// What was requested and could not be measured, a line each: `cuda: there is no NVIDIA
    /// driver`.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A device and its limits, measured at the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The device as `--device` takes it.
    pub device: String,
    /// Human-readable name of the device.
    pub name: String,
    /// Rate of a copy larger than the caches, in 10⁹ bytes per second, reads and writes both
    /// counted.
    pub copy_gb_s: f64,
    /// Rate of a large matrix product, in 10⁹ operations per second.
    pub matmul_gflop_s: f64,
    /// Whose product that is: a peer's, or what the device's maker publishes; empty if it is our
    /// own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub matmul_by: String,
    /// Rate of a copy to the device from pinned memory, in 10⁹ bytes per second, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_gb_s: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The device as `--device` takes it.
    pub device: String,
    /// `ops`, `model`, `load` or `rag`.
    pub suite: String,
    /// Name of the op; `decode`, `prefill`, `embed`, `first token`; `load cold`.
    pub op: String,
    /// Shape as text. Equal texts mean equal work, on every device and for every peer.
    pub shape: String,
    /// Median time in microseconds.
    pub us: f64,
    /// (Third quartile − first quartile) / median of the repeats' times.
    pub spread: f64,
    /// Number of timed repeats.
    pub repeats: u32,
    /// Lower bound of the bytes read and written.
    pub bytes: f64,
    /// Additions and multiplications.
    pub flops: f64,
    /// What limits the rate: `copy` or `matmul`; for loading, `reading` the files or a `pinned`
    /// copy; empty if nothing does.
    pub limit: String,
    /// The rate as a share of that limit.
    pub share: f64,
    /// Tokens per second, if the op produces tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_s: Option<f64>,
    /// Kernels and launch shapes that the device chose.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Further information; for an answer, how many tokens were computed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Relative error against the CPU backend, checked before timing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Row {
    /// Returns the rate in 10⁹ bytes per second.
    pub fn gb_s(&self) -> f64 {
        self.bytes / self.us / 1e3
    }

    /// Returns the rate in 10⁹ operations per second.
    pub fn gflop_s(&self) -> f64 {
        self.flops / self.us / 1e3
    }
}

/// How the time of one step of a model is divided among its ops.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The device as `--device` takes it.
    pub device: String,
    /// Name of the step, as in `decode, batch 1, context 1024 of gritlm-7b`.
    pub step: String,
    /// The ops, longest time first.
    pub ops: Vec<StepOp>,
}

/// One op of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOp {
    /// Name of the op.
    pub op: String,
    /// Number of launches.
    pub launches: u64,
    /// Time in microseconds.
    pub us: f64,
    /// Lower bound of the bytes read and written.
    pub bytes: f64,
    /// Additions and multiplications.
    pub flops: f64,
}

/// A figure of another program for the same work on the same kind of device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Name and version of the program, as in `torch.matmul 2.11`.
    pub peer: String,
    /// Human-readable name of the device it ran on.
    pub device: String,
    /// Corresponds to [`Row::op`].
    pub op: String,
    /// Corresponds to [`Row::shape`].
    pub shape: String,
    /// Median time in microseconds.
    pub us: f64,
}
