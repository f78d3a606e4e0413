//! Compiled shaders, cached by variant in memory and by adapter on disk.

use crate::gpu::{Binding, Scopes, one_line};
use crate::own::Own;
use crate::shader::{Shader, Variant, runtime_checks};
use gritlm_model::files::{cache_folder, keep};
use gritlm_model::ops::{DeviceError, Result};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::Features;

/// A compiled variant.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    pub(crate) id: u64,
    /// Readable name: the shader and its constants.
    pub(crate) name: String,
}

/// All compiled variants of one device.
pub(crate) struct Pipelines {
    made: Mutex<HashMap<String, Arc<Pipeline>>>,
    /// The driver's pipeline cache and its file, if the driver has one.
    cache: Option<(wgpu::PipelineCache, PathBuf)>,
    own: Vec<Own>,
}

impl Pipelines {
    pub(crate) fn new(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        features: Features,
        own: Vec<Own>,
    ) -> Self {
        let file = features
            .contains(Features::PIPELINE_CACHE)
            .then(|| Some(cache_folder()?.join(wgpu::util::pipeline_cache_key(info)?)))
            .flatten();
        let cache = file.map(|file| {
            let data = std::fs::read(&file).ok();
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: None,
                data: data.as_deref(),
                // A cache that another driver or version has written is not used.
                fallback: true,
            };
            // SAFETY: only `save` writes the file, whole (it is renamed into place), from
            // `get_data` of a cache with this key. wgpu checks its own header, and the driver
            // checks its part.
            let cache = unsafe { device.create_pipeline_cache(&descriptor) };
            (cache, file)
        });
        Self { made: Mutex::default(), cache, own }
    }

    /// Returns the compiled variant, and whether this call has compiled it.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        scopes: &Scopes,
        shader: &'static Shader,
        variant: Variant,
    ) -> Result<(Arc<Pipeline>, bool)> {
        let key = format!("{variant:?}");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&key) {
            return Ok((Arc::clone(pipeline), false));
        }
        let source = shader.source_with(variant.subgroups, &self.own);
        let cache = self.cache.as_ref().map(|(cache, _)| cache);
        let id = made.len() as u64;
        let pipeline = Arc::new(compile(device, scopes, shader, &variant, &source, cache, id)?);
        made.insert(key, Arc::clone(&pipeline));
        Ok((pipeline, true))
    }

    /// Returns whether the shader has one of the user's own files.
    pub(crate) fn has_own(&self, shader: &Shader, subgroups: bool) -> bool {
        shader.has_any(subgroups, &self.own)
    }

    /// Saves what the driver has compiled for the next start. A full disk costs only time.
    fn save(&self) {
        let Some((cache, file)) = &self.cache else { return };
        let Some(data) = cache.get_data() else { return };
        if !std::fs::read(file).is_ok_and(|old| old == data) {
            let _ = keep(file, &data);
        }
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        self.save();
    }
}

/// Compiles a variant. An error names the shader and quotes the driver; where the driver answers later,
/// `scopes` has it.
pub(crate) fn compile(
    device: &wgpu::Device,
    scopes: &Scopes,
    shader: &'static Shader,
    variant: &Variant,
    source: &str,
    cache: Option<&wgpu::PipelineCache>,
    id: u64,
) -> Result<Pipeline> {
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(shader.name),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    };
    // SAFETY: the text is this crate's own, or a user's for whom `Options::own` says the same. Its loops are counted, up to a parameter or a constant,
    // with steps above zero; its divisors are parameters that the launching code makes at least 1.
    // Accesses stay checked.
    let module = unsafe { device.create_shader_module_trusted(descriptor, runtime_checks()) };
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(shader.name),
        entries: &shader.layout(),
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(shader.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(shader.name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &variant.constants,
            // Every workgroup variable is written before it is read.
            zero_initialize_workgroup_memory: false,
        },
        cache,
    });
    let (validation, internal, name) = (validation.pop(), internal.pop(), shader.name);
    let error = scopes.look(async move {
        let (validation, internal) = (validation.await, internal.await);
        validation.or(internal).map(|error| {
            DeviceError(format!(
                "shader {name} does not compile for this adapter ({}); please report it, and use \
                 `device` cpu until then",
                one_line(&error)
            ))
        })
    });
    match error {
        None => Ok(Pipeline { pipeline, layout, id, name: variant.to_string() }),
        Some(error) => Err(error),
    }
}

impl Pipeline {
    /// Binds `params` bytes of the uniform buffer, then the op's buffers.
    pub(crate) fn group(
        &self,
        device: &wgpu::Device,
        uniform: &wgpu::Buffer,
        params: u64,
        bindings: &[Binding<'_>],
    ) -> wgpu::BindGroup {
        let part = |buffer, offset, size| {
            let size = wgpu::BufferSize::new(size);
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
        };
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: part(uniform, 0, params) }];
        entries.extend((1..).zip(bindings).map(|(binding, b)| {
            let (buffer, offset, size) = b.parts();
            wgpu::BindGroupEntry { binding, resource: part(buffer, offset, size) }
        }));
        let label = None;
        let layout = &self.layout;
        device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout, entries: &entries })
    }
}
