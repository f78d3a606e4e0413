//! Records launches, copies and clears, and submits them: in one command buffer, or where they would
//! keep the device for too long, in several, which run one after the other (`pace.rs`).
//!
//! Nothing runs before [`Gpu::submit`] or a read. The parameters of all launches lie in one uniform
//! buffer, each at its own offset. Bind groups are cached by the pipeline and the bindings.

use super::{Binding, Gpu, Raw, lock, pace};
use crate::pipeline::Pipeline;
use crate::profile::Work;
use crate::shader::{Shader, Variant};
use gritlm_model::ops::{DeviceError, Result};
use std::collections::HashMap;
use std::sync::Arc;
use web_time::Instant;
use wgpu::PollType;

/// Bytes of the uniform buffer: 2048 launches at the usual alignment, several times as many as a
/// step has.
pub(super) const PARAMS: u64 = 512 << 10;

/// A pipeline, and the buffer, offset and size of each binding.
type GroupKey = (u64, Vec<(u64, u64, u64)>);

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
    Launch {
        pipeline: Arc<Pipeline>,
        group: wgpu::BindGroup,
        params: u32,
        grid: Grid,
        work: Work,
    },
    Copy {
        from: wgpu::Buffer,
        at: u64,
        to: wgpu::Buffer,
        to_at: u64,
        bytes: u64,
    },
    /// Fills these bytes at the beginning, or all, with zeros.
    Clear(wgpu::Buffer, Option<u64>),
}

impl Command {
    fn flops(&self) -> u64 {
        match self {
            Self::Launch { work, .. } => work.flops,
            Self::Copy { .. } | Self::Clear(..) => 0,
        }
    }

    /// Describes a launch.
    fn tell(&self) -> Option<String> {
        match self {
            Self::Launch { pipeline, grid: Grid::Of(x, y), .. } => {
                Some(format!("{} grid {x}x{y}", pipeline.name))
            }
            Self::Launch { pipeline, .. } => Some(format!("{} grid by device", pipeline.name)),
            _ => None,
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    commands: Vec<Command>,
    params: Vec<u8>,
    /// Buffers that the host has written for these commands.
    pub(super) sent: Vec<Arc<Raw>>,
    pub(super) groups: HashMap<GroupKey, wgpu::BindGroup>,
}

impl Gpu {
    /// Records that a buffer is filled with zeros.
    pub(crate) fn clear(&self, raw: &Arc<Raw>) {
        lock(&self.state).commands.push(Command::Clear(raw.buffer.clone(), None));
    }

    /// Records that the first `bytes` bytes of a buffer are filled with zeros.
    pub(crate) fn clear_part(&self, raw: &Arc<Raw>, bytes: u64) {
        if bytes > 0 {
            lock(&self.state).commands.push(Command::Clear(raw.buffer.clone(), Some(bytes)));
        }
    }

    /// Records a copy of `bytes` bytes.
    pub(crate) fn copy(&self, from: &Arc<Raw>, at: u64, to: &Arc<Raw>, to_at: u64, bytes: u64) {
        if bytes > 0 {
            let (from, to) = (from.buffer.clone(), to.buffer.clone());
            lock(&self.state).commands.push(Command::Copy { from, at, to, to_at, bytes });
        }
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
        if let Some(plan) = &mut *lock(&self.plan) {
            if self.pipelines.has_own(shader, subgroups) {
                plan.insert(variant.to_string());
            }
            return;
        }
        let made = self.pipelines.get(&self.device, &self.scopes, shader, variant);
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

    /// Returns how many of the `count` equal parts of a launch with these flops one dispatch may have:
    /// all, unless the whole would keep the device for too long.
    pub(crate) fn share(&self, count: u32, flops: u64) -> u32 {
        pace::share(count, flops, self.pace.budget())
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
        let commands = std::mem::take(&mut state.commands);
        let mut rest = commands.as_slice();
        let (mut submits, mut before, mut since) = (0, None, Instant::now());
        while !rest.is_empty() {
            let budget = self.pace.budget();
            let (count, flops) = pace::piece(rest.iter().map(Command::flops), budget);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            self.encode(&mut encoder, &rest[..count]);
            rest = &rest[count..];
            if let Some(profile) = &self.profile
                && rest.is_empty()
            {
                profile.resolve(&mut encoder);
                let told: Vec<String> = commands.iter().filter_map(Command::tell).collect();
                if !told.is_empty() {
                    profile.tell(told);
                }
            }
            let index = self.queue.submit([encoder.finish()]);
            submits += 1;
            // One submit runs and the next waits behind it, so that the device is never idle.
            if let Some((index, flops)) = before.replace((index, flops)) {
                let waited = PollType::Wait { submission_index: Some(index), timeout: None };
                // The read that follows reports a lost device.
                if self.device.poll(waited).is_ok() {
                    self.pace.learn(flops, since.elapsed());
                }
                since = Instant::now();
            }
        }
        // The queue keeps what it needs, so the host may write to these buffers again.
        state.sent.clear();
        drop(state);
        let is_launch = |c: &&Command| matches!(c, Command::Launch { .. });
        let mut counts = lock(&self.counts);
        counts.submits += submits;
        counts.launches += commands.iter().filter(is_launch).count() as u64;
        drop(counts);
        if let Some(profile) = &self.profile {
            profile.collect(&self.device);
        }
    }

    /// Encodes commands in order.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, commands: &[Command]) {
        let mut rest = commands;
        while let Some(first) = rest.first() {
            match first {
                Command::Copy { from, at, to, to_at, bytes } => {
                    encoder.copy_buffer_to_buffer(from, *at, to, *to_at, *bytes);
                    rest = &rest[1..];
                }
                Command::Clear(buffer, bytes) => {
                    encoder.clear_buffer(buffer, 0, *bytes);
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
                    rest = &rest[count..];
                }
            }
        }
    }
}
