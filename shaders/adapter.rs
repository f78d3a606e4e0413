//! The adapters of this machine, and how one is chosen.

use crate::gpu::one_line;
use gritlm_model::ops::{DeviceError, Result};
use wgpu::{Backends, DeviceType, Features};

/// Storage buffers that the widest shader of a forward pass binds (`qkv`). That of a backward pass,
/// `attention_dkv`, binds eight, as many as WebGPU guarantees.
const STORAGE_BUFFERS: u32 = 7;

/// Description of an adapter, to be printed and to choose by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Its name, as the driver reports it.
    pub name: String,
    /// Graphics API: vulkan, metal, dx12, gl, or the browser's.
    pub backend: String,
    /// Driver and version.
    pub driver: String,
    /// Whether it is a software adapter that runs on the CPU.
    pub cpu: bool,
    /// Whether it is a discrete GPU with memory of its own.
    pub discrete: bool,
    /// What it lacks that every model needs; `None` if it can be used.
    pub lacks: Option<String>,
    /// Minimum and maximum subgroup size; `None` without subgroups.
    pub subgroups: Option<(u32, u32)>,
    /// Whether shaders have half-precision arithmetic.
    pub f16: bool,
    /// Cooperative matrices that it supports, such as "16x16x16 f16 to f32".
    pub matrices: Vec<String>,
    /// Maximum bytes of one binding.
    pub binding_bytes: u64,
    /// Maximum bytes of one buffer.
    pub buffer_bytes: u64,
    /// Maximum bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Whether passes can write timestamps, for `--profile`.
    pub timestamps: bool,
    /// Whether compiled pipelines can be kept on disk.
    pub pipeline_cache: bool,
}

impl Adapter {
    fn of(adapter: &wgpu::Adapter) -> Self {
        let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let subgroups = (info.subgroup_min_size, info.subgroup_max_size);
        let matrices = adapter.cooperative_matrix_properties().into_iter().map(|m| {
            let (a, c) = (format!("{:?}", m.ab_type), format!("{:?}", m.cr_type));
            format!("{}x{}x{} {a} to {c}", m.m_size, m.n_size, m.k_size).to_lowercase()
        });
        // Browsers mostly keep it to themselves.
        let name = if info.name.is_empty() { "unnamed" } else { &info.name };
        Self {
            name: name.into(),
            backend: format!("{:?}", info.backend).to_lowercase(),
            driver: [info.driver.as_str(), &info.driver_info].join(" ").trim().into(),
            cpu: info.device_type == DeviceType::Cpu,
            discrete: info.device_type == DeviceType::DiscreteGpu,
            lacks: lacks(adapter),
            subgroups: features.contains(Features::SUBGROUP).then_some(subgroups),
            f16: features.contains(Features::SHADER_F16),
            matrices: matrices.collect(),
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            timestamps: features.contains(Features::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(Features::PIPELINE_CACHE),
        }
    }

    /// Returns the subgroup size if all subgroups have one size and can multiply 16×16×16
    /// matrices of f16 into f32.
    pub(crate) fn matrix_lanes(&self) -> Option<u32> {
        let offered = self.matrices.iter().any(|m| m == "16x16x16 f16 to f32");
        match self.subgroups {
            Some((least, most)) if offered && self.f16 && least == most => Some(least),
            _ => None,
        }
    }

    /// Returns name and backend, the text that `--device wgpu:NAME` searches.
    pub fn label(&self) -> String {
        format!("{} ({})", self.name, self.backend)
    }
}

/// Returns what an adapter lacks that every variant needs.
fn lacks(adapter: &wgpu::Adapter) -> Option<String> {
    let limits = adapter.limits();
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("it has no compute shaders".into());
    }
    if !flags.contains(wgpu::DownlevelFlags::INDIRECT_EXECUTION) {
        return Some("it has no indirect dispatch".into());
    }
    if !flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32) {
        return Some("its shaders cannot unpack 16-bit numbers".into());
    }
    let needed = [
        ("storage buffers", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
        ("invocations per workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16384),
    ];
    let short = needed.into_iter().find(|(_, found, expected)| found < expected);
    short.map(|(what, found, expected)| format!("expected {expected} {what}, found {found}"))
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // This crate's own shader writes the indirect grids; checking them would cost a pass each.
    descriptor.flags.remove(wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL);
    wgpu::Instance::new(descriptor)
}

/// Returns adapters, best first: discrete GPUs, then integrated and virtual ones, then adapters
/// of unknown type, then CPUs.
async fn enumerate(backends: Backends) -> Vec<wgpu::Adapter> {
    let mut adapters = instance().enumerate_adapters(backends).await;
    adapters.sort_by_key(|a| {
        let info = a.get_info();
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu | DeviceType::VirtualGpu => 1,
            DeviceType::Other => 2,
            DeviceType::Cpu => 3,
        };
        // Among software adapters lavapipe is the fastest.
        (kind, info.name.contains("SwiftShader"))
    });
    adapters
}

/// Returns every adapter, best first. Those of OpenGL come last: they are slower ways to the same
/// chips.
pub async fn adapters() -> Vec<Adapter> {
    let mut all = enumerate(Backends::all() - Backends::GL).await;
    all.extend(enumerate(Backends::GL).await);
    all.iter().map(Adapter::of).collect()
}

/// Returns the best adapter that is not a CPU and has what every model needs; OpenGL is left out.
pub async fn best_gpu() -> Option<Adapter> {
    let all = enumerate(Backends::all() - Backends::GL).await;
    all.iter().map(Adapter::of).find(|a| !a.cpu && a.lacks.is_none())
}

/// Returns every adapter, best first, after opening each that has all that is needed: a driver may list
/// what it cannot open.
pub async fn opened_adapters() -> Vec<Adapter> {
    let mut all = enumerate(Backends::all() - Backends::GL).await;
    all.extend(enumerate(Backends::GL).await);
    let mut described = Vec::with_capacity(all.len());
    for adapter in &all {
        let mut one = Adapter::of(adapter);
        if one.lacks.is_none() {
            let opened = adapter.request_device(&request(adapter, Features::empty())).await;
            one.lacks =
                opened.err().map(|e| format!("the driver does not open it: {}", one_line(&e)));
        }
        described.push(one);
    }
    described
}

/// What a device is asked for: all of the adapter's limits, and these of its features.
pub(crate) fn request(
    adapter: &wgpu::Adapter,
    required_features: Features,
) -> wgpu::DeviceDescriptor<'static> {
    wgpu::DeviceDescriptor {
        label: Some("gritlm"),
        required_features,
        required_limits: adapter.limits(),
        ..Default::default()
    }
}

const NO_ADAPTER: &str = if cfg!(target_family = "wasm") {
    "this browser has no WebGPU, or no adapter for it"
} else {
    "wgpu finds no adapter; a driver is missing (Linux: the GPU's Vulkan driver, or \
     mesa-vulkan-drivers)"
};

/// Chooses the adapters that can be used and whose labels contain `name`, in any case, the best first;
/// all labels contain an empty name. There is at least one.
pub(crate) async fn choose(name: &str) -> Result<Vec<(wgpu::Adapter, Adapter)>> {
    // OpenGL is queried only if nothing else fits, because some of its libraries print messages.
    let wanted = name.to_lowercase();
    let fits = |a: &Adapter| a.label().to_lowercase().contains(&wanted);
    let mut all = enumerate(Backends::all() - Backends::GL).await;
    if !all.iter().map(Adapter::of).any(|a| fits(&a) && a.lacks.is_none()) {
        all.extend(enumerate(Backends::GL).await);
    }
    if all.is_empty() {
        return Err(DeviceError(NO_ADAPTER.into()));
    }
    let found: Vec<(wgpu::Adapter, Adapter)> = (all.into_iter())
        .map(|a| {
            let described = Adapter::of(&a);
            (a, described)
        })
        .collect();
    let known: Vec<String> = found.iter().map(|(_, a)| a.label()).collect();
    let known = known.join(", ");
    let (mut usable, mut lacking) = (Vec::new(), None);
    for (adapter, described) in found {
        if fits(&described) {
            match &described.lacks {
                None => usable.push((adapter, described)),
                Some(lacks) => lacking = Some(format!("{}: {lacks}", described.label())),
            }
        }
    }
    if !usable.is_empty() {
        return Ok(usable);
    }
    Err(DeviceError(match lacking {
        Some(lacks) => format!("no adapter that fits can be used; {lacks}"),
        None => format!("expected the name of an adapter ({known}), found {name:?}"),
    }))
}

/// Returns those optional features that the adapter has.
pub(crate) fn features(adapter: &wgpu::Adapter, profile: bool, f16: bool) -> Features {
    let mut wanted = Features::SUBGROUP | Features::SHADER_F16 | Features::PIPELINE_CACHE;
    if profile {
        wanted |= Features::TIMESTAMP_QUERY;
    }
    if f16 {
        wanted |= Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    }
    adapter.features() & wanted
}
