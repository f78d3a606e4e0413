//! What a bench has measured: one JSON object, which the table, the page and the comparison read,
//! and which peers write, too.

use serde::{Deserialize, Serialize};

/// The version of the format. Another one is refused.
pub const VERSION: u32 = 1;

/// Everything of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// When: `2026-11-25T17:00:00Z`.
    pub date: String,
    /// The program's version and, where it is known, commit.
    pub program: String,
    /// The machine: CPU, threads, system.
    pub host: String,
    /// The devices that were measured.
    #[serde(default)]
    pub devices: Vec<Limits>,
    /// What was measured.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Where the time of a step goes.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What other programs did, from `--peer` files.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// What was asked for and could not be measured, a line each: `cuda: there is no NVIDIA driver`.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A device and its limits, measured at the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// As `--device` takes it.
    pub device: String,
    /// What it is, for people.
    pub name: String,
    /// 10⁹ bytes a second, read and written, of a copy larger than the caches.
    pub copy_gb_s: f64,
    /// 10⁹ operations a second of a large matrix product.
    pub matmul_gflop_s: f64,
    /// 10⁹ bytes a second of a copy to the device from pinned memory, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_gb_s: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// As `--device` takes it.
    pub device: String,
    /// `ops`, `model`, `load` or `rag`.
    pub suite: String,
    /// The op's stem; `decode`, `prefill`, `embed`, `first token`; `load cold`.
    pub op: String,
    /// Its shape, as text: the same text is the same work, on every device and for every peer.
    pub shape: String,
    /// Median time in microseconds.
    pub us: f64,
    /// (Third quartile − first) / median of the repeats' times.
    pub spread: f64,
    /// How often it was timed.
    pub repeats: u32,
    /// Bytes read and written at least.
    pub bytes: f64,
    /// Additions and multiplications.
    pub flops: f64,
    /// What bounds it: `copy` or `matmul`; of loading, `reading` the files or a `pinned` copy; empty
    /// for none of them.
    pub limit: String,
    /// Its rate as a share of that limit.
    pub share: f64,
    /// Tokens a second, where tokens are what it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_s: Option<f64>,
    /// The kernels and launch shapes that the device chose.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// What else is to be known: of an answer, how many tokens were computed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Relative error beside the CPU twin, checked before the timing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Row {
    /// 10⁹ bytes a second.
    pub fn gb_s(&self) -> f64 {
        self.bytes / self.us / 1e3
    }

    /// 10⁹ operations a second.
    pub fn gflop_s(&self) -> f64 {
        self.flops / self.us / 1e3
    }
}

/// Where the time of one step of a model goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// As `--device` takes it.
    pub device: String,
    /// `decode, batch 1, context 1024 of gritlm-7b`.
    pub step: String,
    /// Op by op, those that took longest first.
    pub ops: Vec<StepOp>,
}

/// One op of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOp {
    /// The op's stem.
    pub op: String,
    /// Launches.
    pub launches: u64,
    /// Time in microseconds.
    pub us: f64,
    /// Bytes read and written at least.
    pub bytes: f64,
    /// Additions and multiplications.
    pub flops: f64,
}

/// What another program needs for the same work on the same kind of device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name and version: `torch.matmul 2.11`.
    pub peer: String,
    /// What it ran on, for people.
    pub device: String,
    /// [`Row::op`].
    pub op: String,
    /// [`Row::shape`].
    pub shape: String,
    /// Median time in microseconds.
    pub us: f64,
}
