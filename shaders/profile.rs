//! Profile of a step: timestamps around every launch, with the bytes it moved and what it
//! computed.

use gritlm_model::measure::OpTime;
use gritlm_model::ops::{DeviceError, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, mpsc};
use wgpu::{BufferUsages, Features, QueryType};

/// Maximum launches of one submit that are timed; later ones of the same submit are not.
const LAUNCHES: u32 = 2048;

/// The op that a launch belongs to, and lower bounds of what it moves and computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    /// Name of the op.
    pub(crate) op: &'static str,
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// Additions and multiplications.
    pub(crate) flops: u64,
}

/// Collects timestamps.
pub(crate) struct Profile {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    back: wgpu::Buffer,
    /// Nanoseconds per tick.
    period: f64,
    noted: Mutex<Vec<Work>>,
    /// Readable descriptions of the last submit's launches.
    launched: Mutex<Vec<String>>,
    rows: Mutex<BTreeMap<&'static str, OpTime>>,
}

/// The two timestamps of one launch.
pub(crate) struct Stamps<'a> {
    queries: &'a wgpu::QuerySet,
    first: u32,
}

impl Stamps<'_> {
    pub(crate) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: self.queries,
            beginning_of_pass_write_index: Some(self.first),
            end_of_pass_write_index: Some(self.first + 1),
        }
    }
}

impl Profile {
    pub(crate) fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        features: Features,
    ) -> Result<Self> {
        if !features.contains(Features::TIMESTAMP_QUERY) {
            return Err(DeviceError("this adapter has no time stamps; leave out `profile`".into()));
        }
        let count = 2 * LAUNCHES;
        let size = u64::from(count) * 8;
        let buffer = |usage| {
            let (label, mapped_at_creation) = (Some("profile"), false);
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
        };
        Ok(Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: QueryType::Timestamp,
                count,
            }),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            back: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            period: f64::from(queue.get_timestamp_period()),
            noted: Mutex::default(),
            launched: Mutex::default(),
            rows: Mutex::default(),
        })
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Vec<Work>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stamps(&self, work: Work) -> Option<Stamps<'_>> {
        let mut noted = self.noted();
        let first = 2 * noted.len() as u32;
        (first < 2 * LAUNCHES).then(|| {
            noted.push(work);
            Stamps { queries: &self.queries, first }
        })
    }

    /// Returns the launches of the last submit.
    pub(crate) fn launched(&self) -> Vec<String> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the launches of a submit.
    pub(crate) fn tell(&self, launches: Vec<String>) {
        *self.launched.lock().unwrap_or_else(PoisonError::into_inner) = launches;
    }

    /// Records the copy of this submit's timestamps to the host.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = 2 * self.noted().len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
            let bytes = u64::from(count) * 8;
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.back, 0, bytes);
        }
    }

    /// Waits for the submit and adds its launches to the rows.
    pub(crate) fn collect(&self, device: &wgpu::Device) {
        let noted = std::mem::take(&mut *self.noted());
        if noted.is_empty() {
            return;
        }
        let slice = self.back.slice(0..noted.len() as u64 * 16);
        let (done, result) = mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |r| {
            // The receiver is gone only if the wait has failed.
            let _ = done.send(r);
        });
        // The read that follows reports a lost device.
        let _ = device.poll(wgpu::PollType::wait_indefinitely());
        if !matches!(result.try_recv(), Ok(Ok(()))) {
            return;
        }
        if let Ok(view) = slice.get_mapped_range() {
            let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
            for (work, ticks) in noted.iter().zip(view.as_chunks::<16>().0) {
                let (start, end) = ticks.split_at(8);
                let tick = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
                let new = OpTime { op: work.op, ..OpTime::default() };
                let row = rows.entry(work.op).or_insert(new);
                row.launches += 1;
                row.nanoseconds += tick(end).saturating_sub(tick(start)) as f64 * self.period;
                row.bytes += work.bytes;
                row.flops += work.flops;
            }
        }
        self.back.unmap();
    }

    /// Returns the cost of each op since the last call, slowest first.
    pub(crate) fn take(&self) -> Vec<OpTime> {
        let rows = std::mem::take(&mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner));
        let mut rows: Vec<OpTime> = rows.into_values().collect();
        rows.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
        rows
    }
}
