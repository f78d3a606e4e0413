//! The device: buffers that are reused, launches that are recorded and submitted together, and
//! results that are read back.
//!
//! * **Recording.** [`Gpu::launch`] records a dispatch; nothing runs before [`Gpu::submit`] or a
//!   read sends everything recorded in one command buffer. The parameters of all launches lie in
//!   one uniform buffer, each at its own offset.
//! * **Steady state.** A dropped buffer is kept and handed out again, and pipelines and bind
//!   groups are cached by what they are made of. A step like the previous one therefore creates
//!   nothing; [`Gpu::created`] holds the counts, and a test checks them.
//! * **Errors.** The first error that the driver reports is kept and returned by the next read or
//!   submit, as one line that says what to do. Once the device is lost, every call returns that
//!   error.

use crate::adapter::{self, Adapter};
use crate::pipeline::{Pipeline, Pipelines};
use crate::profile::{Profile, Work};
use crate::shader::{Shader, Variant};
use gritlm_model::measure::Created;
use gritlm_model::ops::{DeviceError, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use wgpu::{BufferUsages, Features, PollType};

/// Bytes of the uniform buffer: 2048 launches at the usual alignment, several times as many as a
/// step has.
const PARAMS: u64 = 512 << 10;

/// Free buffers larger than this are released when a new one of such a size cannot reuse one.
const LARGE: u64 = 1 << 20;

/// What a buffer is used for. A dropped buffer is reused only for the same use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// Weights and KV pages: written by copies, read and written by shaders.
    Lasting,
    /// Written and read by shaders, in the order of the queue.
    Work,
    /// Written by the host before the launches that read it; kept until they are submitted.
    Sent,
    /// Read by the host.
    Back,
    /// Written by a shader, read as the size of a grid.
    Grid,
}

impl Use {
    fn usages(self) -> BufferUsages {
        let storage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        match self {
            Self::Lasting | Self::Work | Self::Sent => storage,
            Self::Back => BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            Self::Grid => BufferUsages::STORAGE | BufferUsages::INDIRECT,
        }
    }
}

/// A pipeline, and the buffer, offset and size of each binding.
type GroupKey = (u64, Vec<(u64, u64, u64)>);

/// Free buffers and their ids, by use and size.
type Free = HashMap<(Use, u64), Vec<(u64, wgpu::Buffer)>>;

/// A buffer on the device. Dropping it keeps it for the next request of the same use and size,
/// unless its use is `Lasting`.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) buffer: wgpu::Buffer,
    id: u64,
    what: Use,
    free: Arc<Mutex<Free>>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.what == Use::Lasting {
            return;
        }
        let key = (self.what, self.buffer.size());
        lock(&self.free).entry(key).or_default().push((self.id, self.buffer.clone()));
    }
}

/// A part of a buffer that a launch binds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding<'a> {
    raw: &'a Arc<Raw>,
    offset: u64,
    size: u64,
}

impl Binding<'_> {
    /// Binds bytes `offset..offset + size`.
    pub(crate) fn part(raw: &Arc<Raw>, offset: u64, size: u64) -> Binding<'_> {
        Binding { raw, offset, size }
    }

    pub(crate) fn parts(&self) -> (&wgpu::Buffer, u64, u64) {
        (&self.raw.buffer, self.offset, self.size)
    }
}

impl<'a> From<&'a Arc<Raw>> for Binding<'a> {
    fn from(raw: &'a Arc<Raw>) -> Self {
        Self { raw, offset: 0, size: raw.buffer.size() }
    }
}

/// Number of workgroups.
#[derive(Clone, Debug)]
pub(crate) enum Grid {
    Of(u32, u32),
    /// Read by the device from three words of a buffer, beginning at this byte.
    On(Arc<Raw>, u64),
}

impl Grid {
    /// Returns a grid of at least `n` workgroups, in two dimensions if one cannot hold them.
    pub(crate) fn flat(n: u32) -> Self {
        let wide = n.min(u32::from(u16::MAX));
        Self::Of(wide, n.div_ceil(wide.max(1)))
    }
}

/// One recorded command.
enum Command {
    Launch { pipeline: Arc<Pipeline>, group: wgpu::BindGroup, params: u32, grid: Grid, work: Work },
    Copy { from: wgpu::Buffer, at: u64, to: wgpu::Buffer, to_at: u64, bytes: u64 },
    Clear(wgpu::Buffer),
}

#[derive(Default)]
struct State {
    commands: Vec<Command>,
    params: Vec<u8>,
    /// Buffers that the host has written for these commands.
    sent: Vec<Arc<Raw>>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
}

/// Errors that have not been returned yet, and the loss of the device.
#[derive(Default)]
struct Trouble {
    first: Option<String>,
    lost: Option<String>,
}

/// An opened device.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) adapter: Adapter,
    pub(crate) pipelines: Pipelines,
    pub(crate) profile: Option<Profile>,
    limits: wgpu::Limits,
    params: Arc<Raw>,
    state: Mutex<State>,
    free: Arc<Mutex<Free>>,
    trouble: Arc<Mutex<Trouble>>,
    ids: AtomicU64,
    counts: Mutex<Created>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while it held the lock has left a consistent value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    pub(crate) fn open(name: &str, profile: bool, f16: bool) -> Result<Self> {
        let (adapter, described) = adapter::choose(name)?;
        let limits = adapter.limits();
        let features = adapter::features(&adapter, profile, f16);
        let label = described.label();
        if f16 && !described.f16 {
            return Err(DeviceError(format!("{label} has no f16 in shaders; leave out `f16`")));
        }
        let experimental_features = if features.intersects(Features::all_experimental_mask()) {
            // SAFETY: only matrix.wgsl uses an experimental feature; it is this crate's own and
            // accesses workgroup arrays at constant places inside them.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let request = wgpu::DeviceDescriptor {
            label: Some("gritlm"),
            experimental_features,
            required_features: features,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|e| DeviceError(format!("{label} cannot be opened: {}", one_line(&e))))?;
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let seen = Arc::clone(&trouble);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&seen).first.get_or_insert(explain(&error));
        }));
        let seen = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, message| {
            // This also runs when the device is dropped at the end, but then nobody reads the
            // error.
            lock(&seen).lost.get_or_insert(format!("{reason:?}: {message}").replace('\n', " "));
        });
        let pipelines = Pipelines::new(&device, &adapter.get_info(), features);
        let profile = profile.then(|| Profile::new(&device, &queue, features)).transpose()?;
        let free = Arc::new(Mutex::new(Free::new()));
        let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: PARAMS,
            usage,
            mapped_at_creation: false,
        });
        let what = Use::Lasting;
        let params = Arc::new(Raw { buffer: params, id: 0, what, free: Arc::clone(&free) });
        Ok(Self {
            device,
            queue,
            adapter: described,
            pipelines,
            profile,
            limits,
            params,
            state: Mutex::default(),
            free,
            trouble,
            ids: AtomicU64::new(1),
            counts: Mutex::default(),
        })
    }

    /// Returns the maximum bytes that both a binding and a buffer may have.
    pub(crate) fn largest(&self) -> u64 {
        let largest = self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size);
        // A multiple of 256 bytes holds whole vectors at every alignment that a driver may
        // require.
        largest & !255
    }

    pub(crate) fn created(&self) -> Created {
        *lock(&self.counts)
    }

    /// Allocates a buffer of at least `bytes`, with undefined contents.
    pub(crate) fn buffer(&self, what: Use, bytes: u64) -> Result<Arc<Raw>> {
        let size = size_class(bytes).min(self.largest().max(bytes.next_multiple_of(16)));
        if what != Use::Lasting {
            let mut free = lock(&self.free);
            if let Some((id, buffer)) = free.get_mut(&(what, size)).and_then(Vec::pop) {
                return Ok(Arc::new(Raw { buffer, id, what, free: Arc::clone(&self.free) }));
            }
            if size > LARGE {
                free.retain(|(_, size), _| *size <= LARGE);
                // Cached bind groups would keep the released buffers alive.
                lock(&self.state).groups.clear();
            }
        }
        let size = if what == Use::Lasting { bytes.next_multiple_of(16).max(16) } else { size };
        let room = |why: &str| {
            let (mib, name) = (size as f64 / f64::from(1 << 20), self.adapter.label());
            DeviceError(format!(
                "{name} has no room for {mib:.1} MiB more ({why}); use a smaller `kv_tokens` or \
                 `batch_tokens`, or another `device`"
            ))
        };
        if size > self.limits.max_buffer_size {
            let limit = self.limits.max_buffer_size >> 20;
            return Err(room(&format!("its largest buffer has {limit} MiB")));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: what.usages(),
            mapped_at_creation: false,
        });
        if pollster::block_on(memory.pop()).is_some() {
            return Err(room("out of device memory"));
        }
        self.check()?;
        lock(&self.counts).buffers += 1;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Raw { buffer, id, what, free: Arc::clone(&self.free) }))
    }

    /// Creates a buffer with these bytes, for launches that are recorded from now on.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Arc<Raw>> {
        let raw = self.buffer(Use::Sent, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(raw);
        }
        self.write(&raw, 0, bytes);
        Ok(raw)
    }

    /// Writes to a buffer, before everything that has not been submitted yet.
    pub(crate) fn write(&self, to: &Arc<Raw>, at: u64, bytes: &[u8]) {
        self.queue.write_buffer(&to.buffer, at, bytes);
        if to.what == Use::Sent {
            lock(&self.state).sent.push(Arc::clone(to));
        }
    }

    /// Keeps an error for the next read or submit, unless there is an earlier one.
    pub(crate) fn fail(&self, DeviceError(problem): DeviceError) {
        lock(&self.trouble).first.get_or_insert(problem);
    }

    /// Records that a buffer is filled with zeros.
    pub(crate) fn clear(&self, raw: &Arc<Raw>) {
        lock(&self.state).commands.push(Command::Clear(raw.buffer.clone()));
    }

    /// Records a copy of `bytes` bytes.
    pub(crate) fn copy(&self, from: &Arc<Raw>, at: u64, to: &Arc<Raw>, to_at: u64, bytes: u64) {
        if bytes > 0 {
            let (from, to) = (from.buffer.clone(), to.buffer.clone());
            lock(&self.state).commands.push(Command::Copy { from, at, to, to_at, bytes });
        }
    }

    /// Returns the minimum subgroup size; 0 without subgroups.
    pub(crate) fn subgroup(&self) -> u32 {
        self.adapter.subgroups.map_or(0, |(least, _)| least)
    }

    /// Records a launch, with subgroups where the shader and the adapter support them.
    pub(crate) fn launch(
        &self,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
        params: &[u8],
        bindings: &[Binding<'_>],
        grid: Grid,
        work: Work,
    ) {
        let subgroups = shader.has_forms() && self.subgroup() > 0;
        self.launch_as(shader, subgroups, constants, params, bindings, grid, work);
    }

    /// Records a launch. If the shader does not compile, the error is kept for the next read or
    /// submit.
    #[expect(clippy::too_many_arguments, reason = "all that a launch is made of")]
    pub(crate) fn launch_as(
        &self,
        shader: &'static Shader,
        subgroups: bool,
        constants: &[(&'static str, f64)],
        params: &[u8],
        bindings: &[Binding<'_>],
        grid: Grid,
        work: Work,
    ) {
        if matches!(grid, Grid::Of(0, _) | Grid::Of(_, 0)) {
            return;
        }
        let constants = constants.to_vec();
        let variant = Variant { shader: shader.name, subgroups, constants };
        let made = self.pipelines.get(&self.device, shader, variant);
        let pipeline = match made {
            Ok((pipeline, new)) => {
                lock(&self.counts).pipelines += u64::from(new);
                pipeline
            }
            Err(DeviceError(problem)) => {
                lock(&self.trouble).first.get_or_insert(problem);
                return;
            }
        };
        let align = u64::from(self.limits.min_uniform_buffer_offset_alignment);
        let mut state = lock(&self.state);
        if (state.params.len() + params.len()) as u64 + align > PARAMS {
            drop(state);
            self.flush();
            state = lock(&self.state);
        }
        let key = bindings.iter().map(|b| (b.raw.id, b.offset, b.size)).collect::<Vec<_>>();
        let group = state.groups.entry((pipeline.id, key)).or_insert_with(|| {
            lock(&self.counts).bind_groups += 1;
            pipeline.group(&self.device, &self.params.buffer, params.len() as u64, bindings)
        });
        let group = group.clone();
        let at = state.params.len() as u32;
        state.params.extend_from_slice(params);
        let end = (state.params.len() as u64).next_multiple_of(align) as usize;
        state.params.resize(end, 0);
        state.commands.push(Command::Launch { pipeline, group, params: at, grid, work });
    }

    /// Submits everything recorded.
    ///
    /// # Errors
    /// With the first error since the last read or submit.
    pub(crate) fn submit(&self) -> Result<()> {
        self.flush();
        self.check()
    }

    fn flush(&self) {
        let mut state = lock(&self.state);
        if state.commands.is_empty() {
            return;
        }
        if !state.params.is_empty() {
            self.queue.write_buffer(&self.params.buffer, 0, &state.params);
            state.params.clear();
        }
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let commands = std::mem::take(&mut state.commands);
        let mut launches = 0;
        let mut rest = commands.as_slice();
        while let Some(first) = rest.first() {
            match first {
                Command::Copy { from, at, to, to_at, bytes } => {
                    encoder.copy_buffer_to_buffer(from, *at, to, *to_at, *bytes);
                    rest = &rest[1..];
                }
                Command::Clear(buffer) => {
                    encoder.clear_buffer(buffer, 0, None);
                    rest = &rest[1..];
                }
                Command::Launch { work, .. } => {
                    // All launches up to the next copy share one pass. With a profile each launch
                    // has its own pass, because timestamps are written at the beginning and the
                    // end of a pass.
                    let is_launch = |c: &&Command| matches!(c, Command::Launch { .. });
                    let count = match self.profile {
                        Some(_) => 1,
                        None => rest.iter().take_while(is_launch).count(),
                    };
                    let stamps = self.profile.as_ref().and_then(|p| p.stamps(*work));
                    let timestamp_writes = stamps.as_ref().map(|s| s.writes());
                    let label = None;
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label,
                        timestamp_writes,
                    });
                    for command in &rest[..count] {
                        if let Command::Launch { pipeline, group, params, grid, .. } = command {
                            pass.set_pipeline(&pipeline.pipeline);
                            pass.set_bind_group(0, group, &[*params]);
                            match grid {
                                Grid::Of(x, y) => pass.dispatch_workgroups(*x, *y, 1),
                                Grid::On(raw, at) => {
                                    pass.dispatch_workgroups_indirect(&raw.buffer, *at);
                                }
                            }
                        }
                    }
                    launches += count as u64;
                    rest = &rest[count..];
                }
            }
        }
        if let Some(profile) = &self.profile {
            profile.resolve(&mut encoder);
            let tell = |command: &Command| match command {
                Command::Launch { pipeline, grid: Grid::Of(x, y), .. } => {
                    Some(format!("{} grid {x}x{y}", pipeline.name))
                }
                Command::Launch { pipeline, .. } => {
                    Some(format!("{} grid by device", pipeline.name))
                }
                _ => None,
            };
            let told: Vec<String> = commands.iter().filter_map(tell).collect();
            if !told.is_empty() {
                profile.tell(told);
            }
        }
        self.queue.submit([encoder.finish()]);
        // The queue keeps what it needs, so the host may write to these buffers again.
        state.sent.clear();
        drop(state);
        let mut counts = lock(&self.counts);
        counts.submits += 1;
        counts.launches += launches;
        drop(counts);
        if let Some(profile) = &self.profile {
            profile.collect(&self.device);
        }
    }

    /// Reads bytes of a buffer, after everything recorded so far.
    pub(crate) fn read(&self, from: &Arc<Raw>, at: u64, bytes: u64) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.submit()?;
            return Ok(Vec::new());
        }
        let back = self.buffer(Use::Back, bytes)?;
        self.copy(from, at, &back, 0, bytes.next_multiple_of(4));
        self.map(&back, bytes)
    }

    /// Reads the first bytes of a buffer of use [`Use::Back`], after everything recorded so far.
    pub(crate) fn map(&self, back: &Arc<Raw>, bytes: u64) -> Result<Vec<u8>> {
        self.submit()?;
        let slice = back.buffer.slice(0..bytes.next_multiple_of(4));
        let (done, result) = mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |r| {
            // The receiver is gone only if the wait has failed.
            let _ = done.send(r);
        });
        self.wait()?;
        let failed = |e: &dyn std::fmt::Display| {
            self.check().err().unwrap_or(DeviceError(format!("reading back failed: {e}")))
        };
        match result.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(&e)),
            Err(e) => return Err(failed(&e)),
        }
        let view = slice.get_mapped_range().map_err(|e| failed(&e))?;
        let out = view[..bytes as usize].to_vec();
        drop(view);
        back.buffer.unmap();
        self.check()?;
        Ok(out)
    }

    /// Waits for all submitted work.
    pub(crate) fn wait(&self) -> Result<()> {
        let waited = self.device.poll(PollType::wait_indefinitely());
        self.check()?;
        waited.map(|_| ()).map_err(|e| DeviceError(format!("{}: {e}", self.adapter.label())))
    }

    /// Runs the callbacks of finished work, without waiting.
    pub(crate) fn look(&self) -> Result<()> {
        // Only a poll that waits can fail.
        let _ = self.device.poll(PollType::Poll);
        self.check()
    }

    /// Returns the first error since the last call, if any; a lost device is reported every time.
    pub(crate) fn check(&self) -> Result<()> {
        let mut trouble = lock(&self.trouble);
        let name = self.adapter.label();
        if let Some(lost) = &trouble.lost {
            return Err(DeviceError(format!(
                "{name} was lost ({lost}); open the model again, or use `device` cpu"
            )));
        }
        match trouble.first.take() {
            Some(problem) => Err(DeviceError(format!("{name}: {problem}"))),
            None => Ok(()),
        }
    }

    /// Destroys the device, as a driver reset does.
    pub(crate) fn lose(&self) {
        self.device.destroy();
        // Polling runs the callback of the lost device.
        let _ = self.device.poll(PollType::Poll);
    }
}

/// Rounds up to a size with three significant bits, so that batches of similar size share
/// buffers.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = 1 << (bytes.ilog2() - 2);
    bytes.next_multiple_of(step)
}

fn explain(error: &wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => {
            "out of device memory; use a smaller `kv_tokens` or `batch_tokens`, or another \
             `device`"
                .into()
        }
        other => format!("the driver refuses: {}", one_line(other)),
    }
}

/// Formats an error and its causes in one line.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
