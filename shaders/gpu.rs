//! The device: buffers that are reused, launches that are recorded and submitted together, and
//! results that are read back.
//!
//! * **Recording.** [`Gpu::launch`] records a dispatch; nothing runs before [`Gpu::submit`] or a
//!   read sends everything recorded, in one command buffer or in several of about 100 ms. The
//!   parameters of all launches lie in one uniform buffer, each at its own offset.
//! * **Steady state.** A dropped buffer is kept and handed out again, and pipelines and bind
//!   groups are cached by what they are made of. A step like the previous one therefore creates
//!   nothing; [`Gpu::created`] holds the counts, and a test checks them.
//! * **Errors.** The first error that the driver reports is kept and returned by the next read or
//!   submit, as one line that says what to do. Once the device is lost, every call returns that
//!   error.

mod buffer;
mod pace;
mod record;
mod scope;

use crate::adapter::{self, Adapter};
use crate::options::{Half, Options};
use crate::pipeline::Pipelines;
use crate::profile::Profile;
use buffer::Free;
use futures_channel::oneshot;
use gritlm_model::measure::Created;
use gritlm_model::ops::{DeviceError, Result};
use pace::Pace;
use record::{PARAMS, State};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::{BufferUsages, Features, PollType};

pub(crate) use buffer::{Binding, Raw, Use};
pub(crate) use record::Grid;
pub(crate) use scope::Scopes;

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
    pace: Pace,
    params: Arc<Raw>,
    state: Mutex<State>,
    free: Arc<Mutex<Free>>,
    trouble: Arc<Mutex<Trouble>>,
    scopes: Scopes,
    ids: AtomicU64,
    counts: Mutex<Created>,
    /// While launches are only planned: the variants with a user's own file among them.
    plan: Mutex<Option<BTreeSet<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while it held the lock has left a consistent value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens the first of the chosen adapters that its driver opens.
    pub(crate) async fn open(options: &Options) -> Result<Self> {
        let mut refused = None;
        for (adapter, described) in adapter::choose(&options.name).await? {
            if options.f16 == Half::Required && !described.f16 {
                let problem = "has no f16 in shaders; use `compute` f32";
                return Err(DeviceError(format!("{} {problem}", described.label())));
            }
            match Self::open_adapter(&adapter, &described, options).await {
                Ok(opened) => return Self::with(&adapter, described, opened, options),
                Err(e) => refused = refused.or(Some((described.label(), e))),
            }
        }
        let said = refused.map(|(label, e)| format!("{label} cannot be opened: {}", one_line(&e)));
        Err(DeviceError(said.unwrap_or_default()))
    }

    async fn open_adapter(
        adapter: &wgpu::Adapter,
        described: &Adapter,
        options: &Options,
    ) -> std::result::Result<(wgpu::Device, wgpu::Queue), wgpu::RequestDeviceError> {
        let half = options.f16 != Half::Never && described.f16;
        let features = adapter::features(adapter, options.profile, half);
        let experimental_features = if features.intersects(Features::all_experimental_mask()) {
            // SAFETY: only matrix.wgsl uses an experimental feature; it is this crate's own and
            // accesses workgroup arrays at constant places inside them.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let request = adapter::request(adapter, features);
        let request = wgpu::DeviceDescriptor { experimental_features, ..request };
        adapter.request_device(&request).await
    }

    fn with(
        adapter: &wgpu::Adapter,
        described: Adapter,
        (device, queue): (wgpu::Device, wgpu::Queue),
        options: &Options,
    ) -> Result<Self> {
        let (limits, features) = (adapter.limits(), device.features());
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
        let pipelines = Pipelines::new(&device, &adapter.get_info(), features, options.own.clone());
        let profile =
            options.profile.then(|| Profile::new(&device, &queue, features)).transpose()?;
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
            pace: Pace::new(options.submit_flops.or(pace::FIXED)),
            params,
            state: Mutex::default(),
            free,
            trouble,
            scopes: Scopes::default(),
            ids: AtomicU64::new(1),
            counts: Mutex::default(),
            plan: Mutex::default(),
        })
    }

    pub(crate) fn planned<E>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<BTreeSet<String>, E> {
        *lock(&self.plan) = Some(BTreeSet::new());
        let done = work();
        let plan = lock(&self.plan).take();
        done.map(|()| plan.unwrap_or_default())
    }

    pub(crate) fn created(&self) -> Created {
        *lock(&self.counts)
    }

    /// Keeps an error for the next read or submit, unless there is an earlier one.
    pub(crate) fn fail(&self, DeviceError(problem): DeviceError) {
        lock(&self.trouble).first.get_or_insert(problem);
    }

    /// Returns the minimum subgroup size; 0 without subgroups.
    pub(crate) fn subgroup(&self) -> u32 {
        self.adapter.subgroups.map_or(0, |(least, _)| least)
    }

    /// Reads bytes of a buffer, after everything recorded so far.
    pub(crate) async fn read(&self, from: &Arc<Raw>, at: u64, bytes: u64) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.submit()?;
            return Ok(Vec::new());
        }
        let back = self.buffer(Use::Back, bytes)?;
        self.copy(from, at, &back, 0, bytes.next_multiple_of(4));
        self.map(&back, bytes).await
    }

    /// Reads the first bytes of a buffer of use [`Use::Back`], after everything recorded so far.
    pub(crate) async fn map(&self, back: &Arc<Raw>, bytes: u64) -> Result<Vec<u8>> {
        self.submit()?;
        let slice = back.buffer.slice(0..bytes.next_multiple_of(4));
        let (done, result) = oneshot::channel();
        slice.map_async(wgpu::MapMode::Read, move |r| {
            // The receiver is gone only if the wait has failed.
            let _ = done.send(r);
        });
        self.poll()?;
        let failed = |e: &dyn std::fmt::Display| {
            self.check().err().unwrap_or(DeviceError(format!("reading back failed: {e}")))
        };
        match result.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(&e)),
            Err(e) => return Err(failed(&e)),
        }
        self.settle().await?;
        let view = slice.get_mapped_range().map_err(|e| failed(&e))?;
        let out = view[..bytes as usize].to_vec();
        drop(view);
        back.buffer.unmap();
        self.check()?;
        Ok(out)
    }

    /// Waits for all submitted work.
    pub(crate) async fn wait(&self) -> Result<()> {
        let (done, result) = oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone only if the wait has failed.
            let _ = done.send(());
        });
        self.poll()?;
        result.await.map_err(|e| DeviceError(format!("{}: {e}", self.adapter.label())))?;
        self.settle().await
    }

    /// Waits for the answers of all error scopes that have none yet.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.scopes.settle().await.into_iter().for_each(|problem| self.fail(problem));
        self.check()
    }

    /// Runs the callbacks of all submitted work. Natively this waits until the work is done; in a
    /// browser, which runs them by itself, it returns at once.
    fn poll(&self) -> Result<()> {
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

    /// Returns whether the device is lost.
    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.trouble).lost.is_some()
    }

    /// Destroys the device, as a driver reset does.
    pub(crate) fn lose(&self) {
        self.device.destroy();
        // Polling runs the callback of the lost device.
        let _ = self.device.poll(PollType::Poll);
    }
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
