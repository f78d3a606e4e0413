//! Buffers on the device. A dropped buffer is kept and handed out again for the same use and size,
//! so that a step like the previous one creates none.

use super::{Gpu, lock};
use gritlm_model::ops::{DeviceError, Result};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use wgpu::BufferUsages;

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

/// Free buffers and their ids, by use and size.
pub(super) type Free = HashMap<(Use, u64), Vec<(u64, wgpu::Buffer)>>;

/// A buffer on the device. Dropping it keeps it for the next request of the same use and size,
/// unless its use is `Lasting`.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) buffer: wgpu::Buffer,
    pub(super) id: u64,
    pub(super) what: Use,
    pub(super) free: Arc<Mutex<Free>>,
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
    pub(super) raw: &'a Arc<Raw>,
    pub(super) offset: u64,
    pub(super) size: u64,
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

impl Gpu {
    /// Returns the maximum bytes that both a binding and a buffer may have.
    pub(crate) fn largest(&self) -> u64 {
        let largest = self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size);
        // A multiple of 256 bytes holds whole vectors at every alignment that a driver may
        // require.
        largest & !255
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
        let (memory, full) = (memory.pop(), room("out of device memory"));
        if let Some(error) = self.scopes.look(async move { memory.await.map(|_| full) }) {
            return Err(error);
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
}

/// Rounds up to a size with three significant bits, so that batches of similar size share
/// buffers.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = 1 << (bytes.ilog2() - 2);
    bytes.next_multiple_of(step)
}
