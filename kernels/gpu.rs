//! The GPU: buffers that are reused, launches that are recorded and submitted together, and steps
//! that are replayed as CUDA graphs.
//!
//! * **Recording.** [`Gpu::launch`] records a launch; nothing runs before [`Gpu::submit`] or a
//!   read. A submit first writes what the host sends, which is safe because nothing else can use
//!   those buffers until then.
//! * **Graphs.** A submit whose launches equal those of the previous submit, down to the last
//!   parameter, is captured as a CUDA graph. From then on it is replayed, at a fraction of the
//!   cost on the host (some 2 µs a launch). What changes from step to step travels in the buffers
//!   that the host sends. Every launch is compared, so a graph is never replayed for a different
//!   step.
//! * **Steady state.** A dropped buffer is kept and handed out again, lowest address first. A
//!   step like the previous one therefore gets the same addresses, in whatever order the buffers
//!   came back, and allocates nothing; [`Gpu::created`] holds the counts.
//! * **Errors.** The first error is kept and returned by the next read or submit.

use crate::driver::{Driver, Function, Graph, Grid, Memory, Module};
use crate::params::Pointer;
use crate::plan::{Plan, Planned};
use crate::send::Sending;
use bytemuck::Pod;
use cudarc::driver::CudaEvent;
use gritlm_model::measure::{Created, OpTime};
use gritlm_model::ops::{DeviceError, Result};
use memchr::memmem;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Minimum number of launches for which a graph is worthwhile.
const FEW_LAUNCHES: usize = 8;

/// Maximum number of graphs; the oldest is evicted. Decode at one batch size needs a graph for
/// each number of attention tiles, which doubles as the context grows.
const GRAPHS: usize = 16;

/// What a buffer is used for. A dropped buffer is reused only for the same use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// Weights and KV pages. They are not reused but freed, once everything recorded before they
    /// were dropped has been submitted.
    Lasting,
    /// Written and read by kernels, in the order of the stream.
    Work,
    /// Written by the host before the launches of a submit.
    Sent,
}

/// Memory that no buffer holds any more.
#[derive(Debug, Default)]
struct Free {
    /// Memory to hand out again, by use and size, then by address.
    kept: HashMap<(Use, u64), BTreeMap<Pointer, Arc<Memory>>>,
    /// Memory to free; launches that are recorded but not yet submitted may still refer to it.
    dropped: Vec<Arc<Memory>>,
}

/// A buffer on the GPU. Dropping it keeps its memory for the next request of the same use and
/// size, unless its use is `Lasting`.
#[derive(Debug)]
pub(crate) struct Raw {
    memory: Arc<Memory>,
    what: Use,
    free: Arc<Mutex<Free>>,
}

impl Raw {
    pub(crate) fn pointer(&self) -> Pointer {
        self.memory.pointer(0)
    }

    /// Returns the address of a byte of the buffer.
    pub(crate) fn at(&self, byte: u64) -> Pointer {
        self.memory.pointer(byte)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let memory = Arc::clone(&self.memory);
        let mut free = lock(&self.free);
        match self.what {
            Use::Lasting => free.dropped.push(memory),
            what => {
                let key = (what, memory.bytes());
                free.kept.entry(key).or_default().insert(self.pointer(), memory);
            }
        }
    }
}

/// Names a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// File stem of its source.
    pub(crate) source: &'static str,
    /// Its entry point.
    pub(crate) entry: Cow<'static, str>,
}

/// The op that a launch belongs to, and lower bounds of what it moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Name of the op.
    pub(crate) op: &'static str,
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// Additions and multiplications.
    pub(crate) flops: u64,
    /// Iterations of the kernel's main loop, for predictions.
    pub(crate) steps: Steps,
}

/// How often the blocks of a launch run their main loop; all zero where nobody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Steps {
    /// In the mean over all blocks.
    pub(crate) mean: u32,
    /// The block that runs it most often.
    pub(crate) most: u32,
    /// Multiply-adds of the tensor cores in an iteration of a block, padding included.
    pub(crate) products: u64,
    /// Tiles of the block that has most, where one has several after each other.
    pub(crate) tiles: u32,
    /// Bytes that a block's copies by TMA ask for in an iteration.
    pub(crate) copied: u32,
}

/// One recorded launch. `params` is its range of words in [`Step::params`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Launch {
    function: usize,
    grid: Grid,
    params: (usize, usize),
}

/// Launches that are submitted together, and their parameters.
#[derive(Clone, Debug, Default, PartialEq)]
struct Step {
    launches: Vec<Launch>,
    params: Vec<u64>,
}

#[derive(Default)]
struct State {
    step: Step,
    work: Vec<Work>,
    /// Buffers that the host writes before the launches, and the bytes for them.
    sent: Vec<(Arc<Raw>, Vec<u8>)>,
    sending: Sending,
    /// The last step that ran without a graph; an equal one that follows is captured.
    last: Step,
    graphs: Vec<(Step, Graph)>,
    modules: HashMap<&'static str, Module>,
    /// Numbers of the kernels by entry point, then the kernels by number, with their sources' stems.
    numbers: HashMap<Cow<'static, str>, usize>,
    functions: Vec<(&'static str, Function)>,
    timed: Vec<(Work, CudaEvent, CudaEvent)>,
    /// The launches of the last timed submit.
    launched: Vec<Launch>,
}

/// An opened GPU with its kernels.
pub(crate) struct Gpu {
    pub(crate) driver: Driver,
    profile: bool,
    state: Mutex<State>,
    free: Arc<Mutex<Free>>,
    trouble: Mutex<Option<DeviceError>>,
    counts: Mutex<Created>,
    /// What a planned GPU was asked to launch.
    planned: Plan,
    /// Stems of the sources that have kernels for Hopper.
    hopper: HashSet<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while it held the lock has left a consistent value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Loads compiled kernels, which are given by file stem.
    pub(crate) fn new(
        driver: Driver,
        cubins: HashMap<&'static str, Vec<u8>>,
        profile: bool,
    ) -> Result<Self> {
        // Their names are in the file, be it a cubin or PTX.
        let has = |(stem, file): &(&&'static str, &Vec<u8>)| {
            memmem::find(file, format!("{stem}_hopper").as_bytes()).is_some()
        };
        let hopper = cubins.iter().filter(has).map(|(stem, _)| *stem).collect();
        let load = |(stem, cubin)| Ok((stem, driver.module(cubin)?));
        let modules = cubins.into_iter().map(load).collect::<Result<_>>()?;
        Ok(Self {
            driver,
            profile,
            state: Mutex::new(State { modules, ..State::default() }),
            free: Arc::default(),
            trouble: Mutex::default(),
            counts: Mutex::default(),
            planned: Plan::default(),
            hopper,
        })
    }

    /// Returns what a planned GPU is asked to launch, now and later.
    pub(crate) fn plan(&self) -> Plan {
        Arc::clone(&self.planned)
    }

    /// Returns the number of multiprocessors.
    pub(crate) fn sms(&self) -> u32 {
        self.driver.device.sms
    }

    /// Whether a source has kernels for Hopper; those of a planned GPU are not there to ask.
    pub(crate) fn has_hopper(&self, stem: &str) -> bool {
        let planned = self.driver.is_planned() && self.driver.device.capability == (9, 0);
        planned || self.hopper.contains(stem)
    }

    /// Returns the bytes of shared memory that a block may use.
    pub(crate) fn shared_limit(&self) -> u32 {
        self.driver.device.shared
    }

    pub(crate) fn created(&self) -> Created {
        *lock(&self.counts)
    }

    /// Allocates a buffer of at least `bytes` for kernels to work with, with undefined contents.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<Arc<Raw>> {
        self.buffer_for(Use::Work, bytes)
    }

    pub(crate) fn buffer_for(&self, what: Use, bytes: u64) -> Result<Arc<Raw>> {
        let size = match what {
            Use::Lasting => bytes.next_multiple_of(256).max(256),
            // Eight sizes per doubling waste at most an eighth and make sizes recur.
            _ => {
                let grain = (bytes.max(2048).next_power_of_two() / 16).max(256);
                bytes.max(1).next_multiple_of(grain)
            }
        };
        let raw =
            |memory: Arc<Memory>| Arc::new(Raw { memory, what, free: Arc::clone(&self.free) });
        if what != Use::Lasting
            && let Some(free) = lock(&self.free).kept.get_mut(&(what, size))
            && let Some((_, memory)) = free.pop_first()
        {
            return Ok(raw(memory));
        }
        let mut memory = self.driver.alloc(size)?;
        if memory.is_none() {
            // Free the memory that is kept for reuse and try again.
            self.submit()?;
            self.driver.wait()?;
            *lock(&self.free) = Free::default();
            memory = self.driver.alloc(size)?;
        }
        let Some(memory) = memory else {
            let (free, all) = self.driver.free_memory()?;
            return Err(DeviceError(format!(
                "{} has no room for {:.1} MiB more ({} of {} MiB are free); use a smaller \
                 `kv_tokens` or `batch_tokens`, or another `device`",
                self.driver.device.name,
                size as f64 / f64::from(1 << 20),
                free >> 20,
                all >> 20
            )));
        };
        lock(&self.counts).buffers += 1;
        Ok(raw(Arc::new(memory)))
    }

    /// Creates a buffer with these bytes, for launches that are recorded from now on.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Arc<Raw>> {
        let raw = self.buffer_for(Use::Sent, bytes.len() as u64)?;
        if !bytes.is_empty() {
            lock(&self.state).sent.push((Arc::clone(&raw), bytes.to_vec()));
        }
        Ok(raw)
    }

    /// Keeps an error for the next read or submit, unless there is an earlier one.
    pub(crate) fn fail(&self, problem: DeviceError) {
        lock(&self.trouble).get_or_insert(problem);
    }

    /// Records a launch, unless its grid is empty.
    pub(crate) fn launch<P: Pod>(&self, kernel: Kernel, grid: Grid, params: &P, work: Work) {
        if grid.blocks.contains(&0) {
            return;
        }
        if self.driver.is_planned() {
            return lock(&self.planned).push(Planned::of(kernel, grid, work));
        }
        let mut state = lock(&self.state);
        let function = match self.number(&mut state, kernel) {
            Ok(function) => function,
            Err(problem) => {
                drop(state);
                return self.fail(problem);
            }
        };
        let first = state.step.params.len();
        let words = bytemuck::bytes_of(params).as_chunks().0;
        state.step.params.extend(words.iter().map(|&word| u64::from_ne_bytes(word)));
        let params = (first, state.step.params.len());
        state.step.launches.push(Launch { function, grid, params });
        state.work.push(work);
    }

    /// Returns the number of a kernel, which is looked up only once.
    fn number(&self, state: &mut State, kernel: Kernel) -> Result<usize> {
        if let Some(&number) = state.numbers.get(&kernel.entry) {
            return Ok(number);
        }
        let module = state.modules.get(kernel.source).ok_or_else(|| {
            DeviceError(format!("the kernel {}.cu has not been compiled", kernel.source))
        })?;
        let function = self.driver.function(module, &kernel.entry)?;
        state.functions.push((kernel.source, function));
        let number = state.functions.len() - 1;
        state.numbers.insert(kernel.entry, number);
        lock(&self.counts).pipelines += 1;
        Ok(number)
    }

    /// Submits everything recorded.
    ///
    /// # Errors
    /// With the first error since the last read or submit.
    pub(crate) fn submit(&self) -> Result<()> {
        let sent = self.send_noted();
        // Freed in the order of the stream, after the launches that use it. A thread that only frees
        // has not been bound yet.
        let dropped = std::mem::take(&mut lock(&self.free).dropped);
        if !dropped.is_empty() {
            self.driver.bind()?;
        }
        drop(dropped);
        sent
    }

    fn send_noted(&self) -> Result<()> {
        if let Some(problem) = lock(&self.trouble).take() {
            let mut state = lock(&self.state);
            (state.step, state.work) = Default::default();
            state.sent.clear();
            return Err(problem);
        }
        let mut state = lock(&self.state);
        let state = &mut *state;
        for (raw, bytes) in state.sent.drain(..) {
            state.sending.send(&self.driver, &raw.memory, &bytes)?;
        }
        if state.step.launches.is_empty() {
            return Ok(());
        }
        let (step, work) = (std::mem::take(&mut state.step), std::mem::take(&mut state.work));
        {
            let mut counts = lock(&self.counts);
            counts.submits += 1;
            counts.launches += step.launches.len() as u64;
        }
        if self.profile {
            for (launch, work) in step.launches.iter().zip(work) {
                if let Some((start, end)) =
                    self.send_launch(&state.functions, &step, launch, true)?
                {
                    state.timed.push((work, start, end));
                }
            }
            state.launched = step.launches;
            return Ok(());
        }
        if let Some((_, graph)) = state.graphs.iter().find(|(known, _)| *known == step) {
            return self.driver.replay(graph);
        }
        let launch_all = || {
            step.launches.iter().try_for_each(|launch| {
                self.send_launch(&state.functions, &step, launch, false).map(|_| ())
            })
        };
        if step.launches.len() < FEW_LAUNCHES || step != state.last {
            launch_all()?;
            state.last = step;
            return Ok(());
        }
        if let Some(graph) = self.driver.capture(launch_all)? {
            self.driver.replay(&graph)?;
            if state.graphs.len() == GRAPHS {
                state.graphs.remove(0);
            }
            lock(&self.counts).graphs += 1;
            state.graphs.push((step, graph));
        }
        Ok(())
    }

    fn send_launch(
        &self,
        functions: &[(&str, Function)],
        step: &Step,
        launch: &Launch,
        timed: bool,
    ) -> Result<Option<(CudaEvent, CudaEvent)>> {
        let params = &step.params[launch.params.0..launch.params.1];
        self.driver.launch(&functions[launch.function].1, launch.grid, params, timed)
    }

    /// Reads bytes of a buffer, after everything recorded so far.
    pub(crate) fn read(&self, from: &Arc<Raw>, at: u64, bytes: u64) -> Result<Vec<u8>> {
        self.submit()?;
        let mut out = vec![0; bytes as usize];
        if bytes > 0 {
            self.driver.download(&from.memory, at, &mut out)?;
        }
        Ok(out)
    }

    /// Writes to a buffer, after everything recorded so far.
    pub(crate) fn write(&self, to: &Arc<Raw>, at: u64, bytes: &[u8]) -> Result<()> {
        self.submit()?;
        self.driver.upload(&to.memory, at, bytes)
    }

    /// Copies `bytes` bytes, after everything recorded so far.
    pub(crate) fn copy(
        &self,
        from: (&Arc<Raw>, u64),
        to: (&Arc<Raw>, u64),
        bytes: u64,
    ) -> Result<()> {
        self.submit()?;
        self.driver.copy((&from.0.memory, from.1), (&to.0.memory, to.1), bytes)
    }

    /// Writes to a buffer that nothing else uses yet, without submitting recorded launches first.
    pub(crate) fn upload(&self, to: &Raw, at: u64, bytes: &[u8]) -> Result<()> {
        self.driver.upload(&to.memory, at, bytes)
    }

    /// Returns the kernels that have been launched: stems and entry points.
    pub(crate) fn entries(&self) -> Vec<(&'static str, String)> {
        let state = lock(&self.state);
        let entry = |(name, number): (&Cow<'_, str>, &usize)| {
            (state.functions[*number].0, name.to_string())
        };
        state.numbers.iter().map(entry).collect()
    }

    /// Returns the kernels of the last timed submit, with their grids.
    pub(crate) fn launched(&self) -> Vec<String> {
        let state = lock(&self.state);
        let name = |number: usize| {
            let found = state.numbers.iter().find(|(_, n)| **n == number);
            found.map_or("", |(name, _)| name)
        };
        let tell = |launch: &Launch| {
            let Grid { blocks: [x, y, z], threads, shared } = launch.grid;
            format!("{} grid {x}x{y}x{z} of {threads}, {shared} B shared", name(launch.function))
        };
        state.launched.iter().map(tell).collect()
    }

    /// Returns the cost of each op since the last call, slowest first.
    pub(crate) fn profile(&self) -> Vec<OpTime> {
        let mut rows: BTreeMap<&str, OpTime> = BTreeMap::new();
        for (work, start, end) in lock(&self.state).timed.drain(..) {
            let new = OpTime { op: work.op, ..OpTime::default() };
            let row = rows.entry(work.op).or_insert(new);
            row.launches += 1;
            // The preceding read has already reported a failed launch.
            let milliseconds = self.driver.elapsed(&start, &end);
            row.nanoseconds += milliseconds.map_or(0.0, |ms| f64::from(ms) * 1e6);
            row.bytes += work.bytes;
            row.flops += work.flops;
        }
        let mut rows: Vec<OpTime> = rows.into_values().collect();
        rows.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
        rows
    }
}
