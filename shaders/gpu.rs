//! The device: buffers that come back, launches recorded and submitted in one go, results read.
//!
//! * **Recording.** [`Gpu::launch`] notes a dispatch; nothing runs before [`Gpu::submit`] or a read
//!   sends everything noted in one command buffer. Parameters of all launches lie in one uniform
//!   buffer, each at its own offset.
//! * **Steady state.** A buffer that is dropped is kept and handed out again, pipelines and bind
//!   groups are kept by what they are made of, so a step like the last one creates nothing;
//!   [`Gpu::created`] counts, and a test holds it to that.
//! * **Errors.** Whatever the driver reports is kept and comes back from the next read or submit, as
//!   one line that says what to do. After a lost device every call says so.

use crate::adapter::{self, Adapter};
use crate::pipeline::{Pipeline, Pipelines};
use crate::profile::{Profile, Work};
use crate::shader::{Shader, Variant};
use gritlm_model::ops::{Created, DeviceError, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use wgpu::{BufferUsages, Features, PollType};

/// Bytes of the uniform buffer: 2048 launches at the usual alignment, several times a step.
const PARAMS: u64 = 512 << 10;

/// Free buffers larger than this are given up when a new one does not fit into any.
const LARGE: u64 = 1 << 20;

/// What a buffer is for; buffers come back only to their own kind.
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

/// A pipeline, and of each binding the buffer, offset and size.
type GroupKey = (u64, Vec<(u64, u64, u64)>);

/// Buffers that nobody uses now, by use and size.
type Free = HashMap<(Use, u64), Vec<(u64, wgpu::Buffer)>>;

/// A buffer on the device. Dropping it keeps it for the next that asks for its size.
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
    /// Bytes `offset..offset + size`.
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

/// How many workgroups.
#[derive(Clone, Debug)]
pub(crate) enum Grid {
    Of(u32, u32),
    /// Three words of a buffer from this byte on.
    On(Arc<Raw>, u64),
}

impl Grid {
    /// `n` workgroups, in two dimensions where one would not hold them.
    pub(crate) fn flat(n: u32) -> Self {
        let wide = n.min(u32::from(u16::MAX));
        Self::Of(wide, n.div_ceil(wide.max(1)))
    }
}

/// One noted command.
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

/// What has gone wrong so far.
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
    // Whatever panicked while it held the lock has left a whole value.
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
            // Dropping the device at the end is no trouble, and nobody asks afterwards.
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

    /// Bytes that one binding and one buffer may have.
    pub(crate) fn largest(&self) -> u64 {
        let largest = self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size);
        // Whole vectors, for every alignment that a driver may ask for.
        largest & !255
    }

    pub(crate) fn created(&self) -> Created {
        *lock(&self.counts)
    }

    /// A buffer of at least `bytes`, its contents undefined.
    pub(crate) fn buffer(&self, what: Use, bytes: u64) -> Result<Arc<Raw>> {
        let size = size_class(bytes).min(self.largest().max(bytes.next_multiple_of(16)));
        if what != Use::Lasting {
            let mut free = lock(&self.free);
            if let Some((id, buffer)) = free.get_mut(&(what, size)).and_then(Vec::pop) {
                return Ok(Arc::new(Raw { buffer, id, what, free: Arc::clone(&self.free) }));
            }
            if size > LARGE {
                free.retain(|(_, size), _| *size <= LARGE);
                // Bind groups keep their buffers alive.
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

    /// A buffer with these words, for launches that are noted from now on.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Arc<Raw>> {
        let raw = self.buffer(Use::Sent, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(raw);
        }
        self.write(&raw, 0, bytes);
        Ok(raw)
    }

    /// Writes to a buffer before anything that is noted from now on.
    pub(crate) fn write(&self, to: &Arc<Raw>, at: u64, bytes: &[u8]) {
        self.queue.write_buffer(&to.buffer, at, bytes);
        if to.what == Use::Sent {
            lock(&self.state).sent.push(Arc::clone(to));
        }
    }

    /// Keeps a problem for the next read or submit.
    pub(crate) fn fail(&self, DeviceError(problem): DeviceError) {
        lock(&self.trouble).first.get_or_insert(problem);
    }

    /// Fills a buffer with zeros.
    pub(crate) fn clear(&self, raw: &Arc<Raw>) {
        lock(&self.state).commands.push(Command::Clear(raw.buffer.clone()));
    }

    /// Notes a copy of `bytes` bytes.
    pub(crate) fn copy(&self, from: &Arc<Raw>, at: u64, to: &Arc<Raw>, to_at: u64, bytes: u64) {
        if bytes > 0 {
            let (from, to) = (from.buffer.clone(), to.buffer.clone());
            lock(&self.state).commands.push(Command::Copy { from, at, to, to_at, bytes });
        }
    }

    /// The least number of invocations in a subgroup; 0 without subgroups.
    pub(crate) fn subgroup(&self) -> u32 {
        self.adapter.subgroups.map_or(0, |(least, _)| least)
    }

    /// Notes a launch, with subgroups where shader and adapter have them.
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

    /// Notes a launch. A shader that does not compile is kept as trouble.
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

    /// Sends what has been noted.
    ///
    /// # Errors
    /// With what has gone wrong since the last read or submit.
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
                    // All launches up to the next copy are one pass, but with a profile each is
                    // its own: time stamps stand at the ends of passes.
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
        // The queue holds on to what it needs; from here on the host may write them again.
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

    /// Brings back bytes of a buffer, whatever was noted before done.
    pub(crate) fn read(&self, from: &Arc<Raw>, at: u64, bytes: u64) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.submit()?;
            return Ok(Vec::new());
        }
        let back = self.buffer(Use::Back, bytes)?;
        self.copy(from, at, &back, 0, bytes.next_multiple_of(4));
        self.map(&back, bytes)
    }

    /// The first bytes of a buffer of use [`Use::Back`], whatever was noted before done.
    pub(crate) fn map(&self, back: &Arc<Raw>, bytes: u64) -> Result<Vec<u8>> {
        self.submit()?;
        let slice = back.buffer.slice(0..bytes.next_multiple_of(4));
        let (done, result) = mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |r| {
            // Nobody listens any more only where the wait has failed.
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

    /// Waits for all that was submitted.
    pub(crate) fn wait(&self) -> Result<()> {
        let waited = self.device.poll(PollType::wait_indefinitely());
        self.check()?;
        waited.map(|_| ()).map_err(|e| DeviceError(format!("{}: {e}", self.adapter.label())))
    }

    /// Lets the callbacks run of what is done.
    pub(crate) fn look(&self) -> Result<()> {
        // Only a wait can fail.
        let _ = self.device.poll(PollType::Poll);
        self.check()
    }

    /// The first trouble since the last call; a lost device always.
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

    /// Gives the device up, as a driver that resets does.
    pub(crate) fn lose(&self) {
        self.device.destroy();
        // The callback runs when the device is looked at.
        let _ = self.device.poll(PollType::Poll);
    }
}

/// The next size with three significant bits, so that batches of about the same size share.
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

/// An error and its causes in one line.
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
