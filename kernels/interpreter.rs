//! A GPU that is the PTX interpreter: memory and launches of `gritlm-ptx`, on the CPU.
//!
//! Where no GPU is, a kernel can so be checked as it would be given to one, inline assembly included.
//! Launches run one after the other, when they are submitted. Speed says nothing.

use crate::driver::Grid;
use gritlm_model::ops::{DeviceError, Result};
use gritlm_ptx::{Entry, Global, Launch};
use std::alloc::{self, Layout};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of an allocation, as the driver's.
const ALIGN: usize = 256;

/// The memory of the GPU: where allocations begin, and their layouts. Whoever holds some holds this, too.
#[derive(Debug, Default)]
pub(crate) struct Interpreter(Mutex<BTreeMap<u64, Layout>>);

/// A kernel of a module.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    module: Arc<Vec<Entry>>,
    entry: usize,
}

impl Function {
    /// Returns the entry point of this name.
    pub(crate) fn new(module: &Arc<Vec<Entry>>, name: &str) -> Result<Self> {
        let found = module.iter().position(|entry| entry.name == name);
        let entry =
            found.ok_or_else(|| DeviceError(format!("the kernel {name} is not in its source")))?;
        Ok(Self { module: Arc::clone(module), entry })
    }
}

impl Interpreter {
    /// Allocates memory that holds NaN in every format, and returns its address.
    pub(crate) fn alloc(&self, bytes: u64) -> Result<u64> {
        let layout = Layout::from_size_align(bytes.max(1) as usize, ALIGN)
            .map_err(|e| DeviceError(format!("{bytes} bytes: {e}")))?;
        // SAFETY: the layout is not empty, and the bytes written are those allocated.
        let first = unsafe {
            let first = alloc::alloc(layout);
            if first.is_null() {
                return Err(DeviceError(format!("the interpreter has no room for {bytes} bytes")));
            }
            first.write_bytes(0xff, layout.size());
            first as u64
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(first, layout);
        Ok(first)
    }

    /// Frees memory that [`Interpreter::alloc`] has returned.
    pub(crate) fn free(&self, first: u64) {
        let layout = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&first);
        if let Some(layout) = layout {
            // SAFETY: it was allocated with this layout, and is removed once.
            unsafe { alloc::dealloc(first as *mut u8, layout) };
        }
    }

    /// Returns a pointer to bytes that lie within one allocation.
    fn range(&self, at: u64, bytes: usize) -> Result<*mut u8> {
        match self.allocation(at) {
            Some((_, end)) if at + bytes as u64 <= end => Ok(at as *mut u8),
            _ => Err(DeviceError(format!("{bytes} bytes at {at:#x} are outside every allocation"))),
        }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let to = self.range(at, bytes.len())?;
        // SAFETY: the range is allocated; `bytes` are the caller's.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    pub(crate) fn read(&self, at: u64, to: &mut [u8]) -> Result<()> {
        let from = self.range(at, to.len())?;
        // SAFETY: as above; every byte has been written, if only by `alloc`.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, to.len()) };
        Ok(())
    }

    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let (from, to) = (self.range(from, bytes)?, self.range(to, bytes)?);
        // SAFETY: both ranges are allocated.
        unsafe { to.copy_from(from, bytes) };
        Ok(())
    }

    /// Takes a module apart; its text ends with a zero.
    pub(crate) fn module(&self, ptx: &[u8]) -> Result<Arc<Vec<Entry>>> {
        let text = String::from_utf8_lossy(ptx);
        let entries = gritlm_ptx::parse(text.trim_end_matches('\0'));
        entries.map(Arc::new).map_err(|e| DeviceError(e.to_string()))
    }

    /// Runs a launch to its end.
    pub(crate) fn launch(&self, function: &Function, grid: Grid, params: &[u64]) -> Result<()> {
        let entry = &function.module[function.entry];
        let bytes: &[u8] = bytemuck::cast_slice(params);
        if bytes.len() != entry.params || (entry.threads > 0 && grid.threads > entry.threads) {
            return Err(DeviceError(format!(
                "{}: expected {} bytes of parameters and at least {} threads a block, found {} and {}",
                entry.name,
                bytes.len(),
                grid.threads,
                entry.params,
                entry.threads
            )));
        }
        let launch = Launch {
            entry,
            grid: grid.blocks,
            block: [grid.threads, 1, 1],
            shared: grid.shared as usize,
            params: bytes,
            memory: self,
            seed: 0,
        };
        launch.run().map(drop).map_err(|e| DeviceError(e.to_string()))
    }
}

impl Global for Interpreter {
    fn allocation(&self, at: u64) -> Option<(u64, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (&first, layout) = all.range(..=at).next_back()?;
        let end = first + layout.size() as u64;
        (at < end).then_some((first, end))
    }
}
