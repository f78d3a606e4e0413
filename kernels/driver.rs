//! Safe functions over the CUDA driver. This is the only file with `unsafe` calls into it.
//!
//! In place of a GPU, kernels can run on the interpreter of PTX, or nowhere; see [`Place`].
//!
//! There is one context and one stream, and all work runs in the order of the calls, so memory
//! can be freed and reused without waiting. cudarc's own tracking of reads and writes is off.

use crate::interpreter::{self, Interpreter};
use crate::params::Pointer;
use crate::send::Pinned;
use crate::tensor::{Tensor, TensorMap};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUevent_flags, CUfunction_attribute,
    CUgraphInstantiate_flags, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUstreamCaptureMode, is_culib_present,
};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr,
};
use cudarc::nvrtc::Ptx;
use gritlm_model::ops::{DeviceError, Result};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Properties of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number, from 0.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor: (9, 0) for Hopper.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Number of multiprocessors.
    pub sms: u32,
    /// Bytes of shared memory that a block may use.
    pub shared: u32,
}

/// Launch shape: blocks, threads per block, and bytes of shared memory per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

/// A range of device memory.
#[derive(Debug)]
pub(crate) struct Memory {
    held: Held,
    first: u64,
    bytes: u64,
}

/// What frees memory.
#[derive(Debug)]
enum Held {
    Live {
        _freed: CudaSlice<u8>,
    },
    Interpreted(Arc<Interpreter>),
    /// A planned GPU has only addresses.
    Planned,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Held::Interpreted(interpreter) = &self.held {
            interpreter.free(self.first);
        }
    }
}

impl Memory {
    pub(crate) fn pointer(&self, at: u64) -> Pointer {
        Pointer(self.first + at)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A GPU, and where its work runs.
pub(crate) struct Driver {
    pub(crate) device: Device,
    place: Place,
}

/// Where work runs.
enum Place {
    /// On the GPU.
    Live(Live),
    /// On the interpreter of PTX.
    Interpreted(Arc<Interpreter>),
    /// Nowhere: memory has addresses, the next of which this is, but no bytes. What is written is
    /// lost, and what is read is zero.
    Planned(AtomicU64),
}

/// A compiled source.
#[derive(Clone)]
pub(crate) enum Module {
    Live(Arc<CudaModule>),
    Interpreted(Arc<Vec<gritlm_ptx::Entry>>),
}

/// A kernel of a module.
pub(crate) enum Function {
    Live(CudaFunction),
    Interpreted(interpreter::Function),
}

/// What an opened GPU has.
struct Live {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Held while memory is allocated, and while a graph is captured, of which the allocation of
    /// another thread would become a part.
    allocating: Mutex<()>,
    /// Whether a launch may come while the one before ends (programmatic dependent launch): its kernel
    /// waits itself. From compute capability 9.0 on; graphs keep it since CUDA 12.3.
    early: bool,
}

/// A graph of launches. It is used only under the lock of [`crate::gpu::Gpu`].
pub(crate) struct Graph(CudaGraph);

// SAFETY: any thread may use a graph, one thread at a time, and it is reached only through a
// mutex.
unsafe impl Send for Graph {}

/// Returns an error that says what the driver does and names its error code.
pub(crate) fn said(doing: &str, error: DriverError) -> DeviceError {
    let name = error.error_name().map(|n| n.to_string_lossy().into_owned());
    DeviceError(format!("the CUDA driver {doing}: {}", name.unwrap_or_else(|_| "unknown".into())))
}

/// Checks that there is a driver.
fn present() -> Result<()> {
    // SAFETY: this loads the driver's library, whose initialisers are NVIDIA's.
    if unsafe { is_culib_present() } {
        return Ok(());
    }
    let library = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so" };
    Err(DeviceError(format!("there is no NVIDIA driver: {library} is not found")))
}

/// Returns the GPUs that the driver reports.
///
/// # Errors
/// When there is no driver, or it refuses to start or to describe a GPU.
pub fn devices() -> Result<Vec<Device>> {
    present()?;
    let refuses = |e| said("refuses to start", e);
    result::init().map_err(refuses)?;
    let count = result::device::get_count().map_err(refuses)?;
    (0..count.max(0) as u32).map(describe).collect()
}

fn describe(ordinal: u32) -> Result<Device> {
    let refuses = |e| said("does not describe the GPU", e);
    let device = result::device::get(ordinal as i32).map_err(refuses)?;
    let attribute = |which: Attribute| -> Result<u32> {
        // SAFETY: the driver has just returned `device`.
        let value = unsafe { result::device::get_attribute(device, which) };
        value.map(|v| v.max(0) as u32).map_err(refuses)
    };
    Ok(Device {
        ordinal,
        name: result::device::get_name(device).map_err(refuses)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.map_err(refuses)? as u64,
        sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

impl Driver {
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        let all = devices()?;
        let device = all.get(ordinal as usize).cloned().ok_or_else(|| {
            let found = match all.len() {
                0 => "no GPU".into(),
                1 => "one GPU, number 0".into(),
                n => format!("{n} GPUs, numbers 0 to {}", n - 1),
            };
            DeviceError(format!("expected a GPU number {ordinal}, found {found}"))
        })?;
        if device.capability < (8, 0) {
            let (major, minor) = device.capability;
            return Err(DeviceError(format!(
                "the CUDA kernels need compute capability 8.0 (Ampere) or newer, and {} has \
                 {major}.{minor}; use `device` wgpu",
                device.name
            )));
        }
        let refuses = |e| said("refuses to open the GPU", e);
        let context = CudaContext::new(ordinal as usize).map_err(refuses)?;
        // SAFETY: there is one stream, so nothing has to be ordered by events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(refuses)?;
        let mut version = 0;
        // SAFETY: the driver writes one number.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(refuses)?;
        let early = device.capability >= (9, 0) && version >= 12_030;
        let live = Live { context, stream, allocating: Mutex::new(()), early };
        Ok(Self { device, place: Place::Live(live) })
    }

    /// Returns a GPU with these properties that is not there.
    pub(crate) fn planned(device: Device) -> Self {
        Self { device, place: Place::Planned(AtomicU64::new(1 << 20)) }
    }

    /// Returns a GPU with these properties whose work runs on the interpreter.
    pub(crate) fn interpreted(device: Device) -> Self {
        Self { device, place: Place::Interpreted(Arc::default()) }
    }

    /// Whether nothing runs on this GPU.
    pub(crate) fn is_planned(&self) -> bool {
        matches!(self.place, Place::Planned(_))
    }

    /// Whether this is a GPU that is there.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.place, Place::Live(_))
    }

    fn live(&self) -> Result<&Live> {
        match &self.place {
            Place::Live(live) => Ok(live),
            _ => Err(DeviceError("there is no GPU".into())),
        }
    }

    /// Directs this thread's calls to this GPU.
    pub(crate) fn bind(&self) -> Result<()> {
        let Place::Live(live) = &self.place else { return Ok(()) };
        live.context.bind_to_thread().map_err(|e| said("does not take this thread", e))
    }

    /// Allocates memory with undefined contents. Returns `None` if there is no room.
    pub(crate) fn alloc(&self, bytes: u64) -> Result<Option<Memory>> {
        let live = match &self.place {
            Place::Live(live) => live,
            Place::Interpreted(interpreter) => {
                let (first, held) = (interpreter.alloc(bytes)?, Arc::clone(interpreter));
                return Ok(Some(Memory { held: Held::Interpreted(held), first, bytes }));
            }
            Place::Planned(next) => {
                let first = next.fetch_add(bytes.next_multiple_of(256), Ordering::Relaxed);
                return Ok(Some(Memory { held: Held::Planned, first, bytes }));
            }
        };
        let _order = live.allocating.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: undefined contents are what this function promises.
        match unsafe { live.stream.alloc::<u8>(bytes as usize) } {
            Ok(slice) => {
                let first = slice.device_ptr(&live.stream).0;
                Ok(Some(Memory { held: Held::Live { _freed: slice }, first, bytes }))
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(said("refuses memory", e)),
        }
    }

    /// Returns the free bytes and the total bytes of the GPU's memory.
    pub(crate) fn free_memory(&self) -> Result<(u64, u64)> {
        let Place::Live(live) = &self.place else {
            return Ok((self.device.memory, self.device.memory));
        };
        let (free, all) =
            live.context.mem_get_info().map_err(|e| said("does not tell the memory", e))?;
        Ok((free as u64, all as u64))
    }

    /// Allocates pinned, write-combined memory, from which the GPU copies at full speed; any memory
    /// where there is no GPU.
    pub(crate) fn pinned(&self, bytes: usize) -> Result<Pinned> {
        let Place::Live(live) = &self.place else { return Ok(Pinned::Any(vec![0; bytes])) };
        // SAFETY: bytes have no invalid values, and it is written before it is read.
        unsafe { live.context.alloc_pinned::<u8>(bytes) }
            .map(Pinned::Live)
            .map_err(|e| said("refuses pinned memory", e))
    }

    /// Writes `bytes` from byte `at` on. The caller may change them as soon as this returns,
    /// because the driver has its own copy; pinned bytes may change only once an event recorded
    /// now has completed.
    pub(crate) fn upload(&self, to: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
        debug_assert!(at + bytes.len() as u64 <= to.bytes());
        let live = match &self.place {
            Place::Live(live) => live,
            Place::Interpreted(interpreter) => return interpreter.write(to.first + at, bytes),
            Place::Planned(_) => return Ok(()),
        };
        self.bind()?;
        // SAFETY: the range is inside the allocation, which outlives the copy: it is freed in the
        // order of the same stream.
        unsafe { result::memcpy_htod_async(to.first + at, bytes, live.stream.cu_stream()) }
            .map_err(|e| said("cannot write to the GPU", e))
    }

    /// Records an event at this point of the stream; `None` where everything is done at once.
    pub(crate) fn event(&self) -> Result<Option<CudaEvent>> {
        let Place::Live(live) = &self.place else { return Ok(None) };
        live.stream.record_event(None).map(Some).map_err(|e| said("cannot record an event", e))
    }

    /// Reads from byte `at` on, after all work that was submitted before.
    pub(crate) fn download(&self, from: &Memory, at: u64, to: &mut [u8]) -> Result<()> {
        debug_assert!(at + to.len() as u64 <= from.bytes());
        let live = match &self.place {
            Place::Live(live) => live,
            Place::Interpreted(interpreter) => return interpreter.read(from.first + at, to),
            Place::Planned(_) => {
                to.fill(0);
                return Ok(());
            }
        };
        self.bind()?;
        // SAFETY: the range is inside the allocation; `to` is borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(to, from.first + at, live.stream.cu_stream()) }
            .map_err(|e| said("cannot read from the GPU", e))?;
        self.wait()
    }

    /// Copies `bytes` bytes within the device.
    pub(crate) fn copy(&self, from: (&Memory, u64), to: (&Memory, u64), bytes: u64) -> Result<()> {
        debug_assert!(from.1 + bytes <= from.0.bytes() && to.1 + bytes <= to.0.bytes());
        let (from, to) = (from.0.pointer(from.1), to.0.pointer(to.1));
        let live = match &self.place {
            Place::Live(live) => live,
            Place::Interpreted(it) => return it.copy(from.0, to.0, bytes as usize),
            Place::Planned(_) => return Ok(()),
        };
        self.bind()?;
        // SAFETY: both ranges are inside allocations that outlive the copy in the stream's order.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes as usize, live.stream.cu_stream()) }
            .map_err(|e| said("cannot copy on the GPU", e))
    }

    /// Waits for all submitted work.
    pub(crate) fn wait(&self) -> Result<()> {
        let Place::Live(live) = &self.place else { return Ok(()) };
        live.stream.synchronize().map_err(|e| {
            let DeviceError(text) = said("reports a failed kernel", e);
            DeviceError(format!("{text}; the program has to be started again"))
        })
    }

    /// Returns what TMA takes for a tensor.
    pub(crate) fn tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap> {
        if !self.is_live() {
            return Ok(tensor.map_of_interpreter());
        }
        let (sizes, strides, boxes) = tensor.all();
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the driver reads as many numbers as there are dimensions, five at most, and writes the
        // map. It does not touch the tensor.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                tensor.dimensions.len() as u32,
                tensor.first.0 as *mut _,
                sizes.as_ptr(),
                strides[1..].as_ptr(),
                boxes.as_ptr(),
                [1; 5].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| said(&format!("refuses the map of {tensor:?}"), e))?;
        Ok(TensorMap(map.opaque))
    }

    /// Loads a compiled source: a cubin, or PTX for the interpreter.
    pub(crate) fn module(&self, compiled: Vec<u8>) -> Result<Module> {
        if let Place::Interpreted(interpreter) = &self.place {
            return interpreter.module(&compiled).map(Module::Interpreted);
        }
        let module = self.live()?.context.load_module(Ptx::from_binary(compiled));
        module.map(Module::Live).map_err(|e| said("refuses a compiled kernel", e))
    }

    /// Returns a kernel of a module, allowed to use all the shared memory that a block can have.
    pub(crate) fn function(&self, module: &Module, entry: &str) -> Result<Function> {
        let module = match module {
            Module::Live(module) => module,
            Module::Interpreted(module) => {
                return interpreter::Function::new(module, entry).map(Function::Interpreted);
            }
        };
        let refuses = |e| said(&format!("does not find the kernel {entry}"), e);
        let function = module.load_function(entry).map_err(refuses)?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, self.device.shared as i32).map_err(refuses)?;
        Ok(Function::Live(function))
    }

    /// Launches a kernel. With `timed`, returns the events recorded before and after it.
    pub(crate) fn launch(
        &self,
        function: &Function,
        grid: Grid,
        params: &[u64],
        timed: bool,
    ) -> Result<Option<(CudaEvent, CudaEvent)>> {
        let function = match (function, &self.place) {
            (Function::Live(function), _) => function,
            (Function::Interpreted(function), Place::Interpreted(interpreter)) => {
                return interpreter.launch(function, grid, params).map(|()| None);
            }
            (Function::Interpreted(_), _) => {
                return Err(DeviceError("a kernel of the interpreter on another device".into()));
            }
        };
        let refuses = |e| said("refuses a launch", e);
        let live = self.live()?;
        self.bind()?;
        let event = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            timed.then(|| live.stream.record_event(flags).map_err(refuses)).transpose()
        };
        let mut early = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = grid.blocks;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: live.stream.cu_stream(),
            attrs: &raw mut early,
            // A launch that is timed begins when the one before has ended.
            numAttrs: u32::from(live.early && !timed),
        };
        // The kernel's only parameter is the struct that these words are.
        let mut all = [params.as_ptr().cast_mut().cast()];
        let start = event()?;
        // SAFETY: every entry takes one struct by value; its layout is asserted when the kernel is
        // compiled (`source::text`), its pointers come from buffers that are alive until the stream
        // has passed this launch, and its sizes are those of the buffers (`Gpu::launch`). What the
        // launches before write, a kernel touches only behind `wait_for_previous`.
        unsafe {
            sys::cuLaunchKernelEx(&config, function.cu_function(), all.as_mut_ptr(), null_mut())
        }
        .result()
        .map_err(refuses)?;
        Ok(start.zip(event()?))
    }

    /// Returns the milliseconds between two events, once the second has completed.
    pub(crate) fn elapsed(&self, start: &CudaEvent, end: &CudaEvent) -> Result<f32> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let cannot = |e| said("cannot time a launch", e);
        self.bind()?;
        end.synchronize().map_err(cannot)?;
        let mut milliseconds = 0.0;
        // SAFETY: the function has this type. It goes by the name that every driver knows: cudarc's own
        // call needs that of CUDA 12.8 and panics where it is missing.
        unsafe {
            let function = sys::culib().get::<Elapsed>(b"cuEventElapsedTime");
            let function = function.map_err(|e| DeviceError(format!("the CUDA driver: {e}")))?;
            function(&mut milliseconds, start.cu_event(), end.cu_event())
        }
        .result()
        .map_err(cannot)?;
        Ok(milliseconds)
    }

    /// Captures what `launches` launches in a graph instead of running it; `None` if it has run,
    /// because there are no graphs here.
    pub(crate) fn capture(&self, launches: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        if !self.is_live() {
            return launches().map(|()| None);
        }
        let refuses = |e| said("refuses a graph", e);
        let live = self.live()?;
        let _order = live.allocating.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        live.stream.begin_capture(mode).map_err(refuses)?;
        let launched = launches();
        let flags = CUgraphInstantiate_flags(0);
        let graph = live.stream.end_capture(flags).map_err(refuses)?;
        launched?;
        Ok(graph.map(Graph))
    }

    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        graph.0.launch().map_err(|e| said("refuses a graph", e))
    }
}
