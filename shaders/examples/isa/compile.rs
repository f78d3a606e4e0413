//! Compiles variants as the backend does, but through wgpu-hal: a null device has no queue and no
//! memory, which wgpu itself takes for a lost device.

use gritlm_shaders::Own;
use gritlm_shaders::shader::{Variant, runtime_checks, shaders};
use std::borrow::Cow;
use std::process::ExitCode;
use wgpu::hal::{self, Adapter as _, Device as _, api::Vulkan, vulkan};
use wgpu::naga::front::wgsl;
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

/// What stderr says before a variant, before the error of one that does not compile, after each, and
/// before the driver's version.
pub(crate) const BEGIN: &str = "VARIANT ";
pub(crate) const FAILED: &str = "FAILED ";
pub(crate) const END: &str = "COMPILED";
pub(crate) const DRIVER: &str = "DRIVER ";

/// Compiles variants, with a user's files in place of ours, with the first Vulkan adapter, which writes
/// its counts to stderr.
pub(crate) fn compile(variants: &[Variant], own: &[Own]) -> ExitCode {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let Some(adapter) = adapters.into_iter().next() else {
        eprintln!("no Vulkan adapter");
        return ExitCode::FAILURE;
    };
    eprintln!("{DRIVER}{}", adapter.get_info().driver_info);
    let wanted = wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16;
    let features = adapter.features() & wanted;
    // SAFETY: nothing else uses the adapter, and the features and limits are its own.
    let opened = unsafe {
        adapter
            .as_hal::<Vulkan>()
            .map(|hal| hal.open(features, &adapter.limits(), &wgpu::MemoryHints::default()))
    };
    let Some(Ok(opened)) = opened else {
        eprintln!("the adapter cannot be opened: {:?}", opened.and_then(Result::err));
        return ExitCode::FAILURE;
    };
    for variant in variants {
        eprintln!("{BEGIN}{variant}");
        if let Err(problem) = pipeline(&opened.device, variant, own) {
            eprintln!("{FAILED}{}", problem.replace('\n', " "));
        }
        eprintln!("{END}");
    }
    // Ends without destroying what it has made, pipelines among it.
    std::process::exit(0);
}

/// Makes the pipeline of a variant, as `pipeline.rs` of the backend does through wgpu.
fn pipeline(device: &vulkan::Device, variant: &Variant, own: &[Own]) -> Result<(), String> {
    let shader = shaders().into_iter().find(|shader| shader.name == variant.shader);
    let shader = shader.ok_or("no such shader")?;
    shader.check_with(variant.subgroups, own).map_err(|e| e.to_string())?;
    let source = shader.source_with(variant.subgroups, own);
    let module = wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(&source))?;
    let input = hal::ShaderInput::Naga(hal::NagaShader {
        module: Cow::Owned(module),
        info,
        debug_source: None,
    });
    let module = hal::ShaderModuleDescriptor { label: None, runtime_checks: runtime_checks() };
    let entries = shader.layout();
    let flags = hal::BindGroupLayoutFlags::empty();
    let group = hal::BindGroupLayoutDescriptor { label: None, flags, entries: &entries };
    let constants = variant.constants.iter().map(|(name, value)| (name.to_string(), *value));
    let constants = constants.collect();
    // SAFETY: the module is valid, it is made for this device like the layouts, whose entries are the
    // shader's own bindings, and nothing runs.
    let made = unsafe {
        let module = device.create_shader_module(&module, input).map_err(|e| e.to_string())?;
        let group = device.create_bind_group_layout(&group).map_err(|e| e.to_string())?;
        let layout = device.create_pipeline_layout(&hal::PipelineLayoutDescriptor {
            label: None,
            flags: hal::PipelineLayoutFlags::empty(),
            bind_group_layouts: &[Some(&group)],
            immediate_size: 0,
        });
        device.create_compute_pipeline(&hal::ComputePipelineDescriptor {
            label: None,
            layout: &layout.map_err(|e| e.to_string())?,
            stage: hal::ProgrammableStage {
                module: &module,
                entry_point: "main",
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None::<&vulkan::PipelineCache>,
        })
    };
    made.map(|_| ()).map_err(|e| format!("{e:?}"))
}
