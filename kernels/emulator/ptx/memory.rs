//! Global and shared memory, and what may not be done to them.

use crate::{Error, Result};

/// The device's memory.
pub trait Global: Sync {
    /// Returns the allocation that an address lies in: where it begins and ends. Its bytes can be read
    /// and written until the launch ends.
    fn allocation(&self, at: u64) -> Option<(u64, u64)>;
}

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
}

impl Access {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Atomic => "changes",
        }
    }
}

/// Returns a pointer to `bytes` bytes of global memory, aligned to their number.
///
/// # Errors
/// When they are not within one allocation, or misaligned.
pub(crate) fn global(
    memory: &dyn Global,
    known: &mut (u64, u64),
    at: u64,
    bytes: u64,
    access: Access,
) -> Result<*mut u8> {
    let does = access.name();
    if bytes == 0 || !at.is_multiple_of(bytes) {
        return Err(Error(format!("{does} {bytes} bytes at {at:#x} of global memory, misaligned")));
    }
    let within = |(first, end): (u64, u64)| first <= at && at + bytes <= end;
    if !within(*known) {
        *known = memory.allocation(at).unwrap_or_default();
        if !within(*known) {
            return Err(Error(format!(
                "{does} {bytes} bytes at {at:#x} of global memory, outside every allocation"
            )));
        }
    }
    Ok(at as *mut u8)
}

/// Who has touched two bytes of shared memory, since which barrier.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// Number of the barrier before the last write, from 1; 0 if nobody has written.
    written: u32,
    writer: u8,
    read: u32,
    reader: u8,
    /// A `cp.async` to here is under way.
    under_way: bool,
}

/// In place of a warp's number: several have read, or an atomic instruction has written.
const SEVERAL: u8 = 255;
const ATOMIC: u8 = 254;

/// The shared memory of a block.
pub(crate) struct Shared {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Number of the last barrier.
    barrier: u32,
}

impl Shared {
    /// Returns memory in which nothing has been written.
    pub(crate) fn new(bytes: usize) -> Self {
        let marks = vec![Mark::default(); bytes.div_ceil(2)];
        Self { bytes: vec![0xff; bytes], marks, barrier: 1 }
    }

    /// All threads have met.
    pub(crate) fn meet(&mut self) {
        self.barrier += 1;
    }

    /// Returns bytes that a warp may touch.
    ///
    /// # Errors
    /// When they are outside, misaligned, never written, the destination of a copy that nobody has
    /// waited for, or touched by another warp without a barrier between.
    pub(crate) fn touch(
        &mut self,
        warp: u8,
        at: u64,
        bytes: u64,
        access: Access,
    ) -> Result<&mut [u8]> {
        let (does, all) = (access.name(), self.bytes.len() as u64);
        let place = || format!("{does} {bytes} bytes at {at} of shared memory");
        if at >= all || at + bytes > all {
            return Err(Error(format!("{}, outside its {all} bytes", place())));
        }
        if !at.is_multiple_of(bytes) {
            return Err(Error(format!("{}, misaligned", place())));
        }
        let barrier = self.barrier;
        for mark in &mut self.marks[at as usize / 2..(at + bytes).div_ceil(2) as usize] {
            if mark.under_way {
                return Err(Error(format!("{}, where a cp.async is under way", place())));
            }
            if access == Access::Read && mark.written == 0 {
                return Err(Error(format!("{}, never written", place())));
            }
            let both_atomic = access == Access::Atomic && mark.writer == ATOMIC;
            let written = mark.written == barrier && mark.writer != warp && !both_atomic;
            let read = access != Access::Read && mark.read == barrier && mark.reader != warp;
            if written || read {
                let other = if written { mark.writer } else { mark.reader };
                let other = match other {
                    SEVERAL => "several warps have".into(),
                    ATOMIC => "an atomic instruction has".into(),
                    warp => format!("warp {warp} has"),
                };
                let verb = if written { "written" } else { "read" };
                return Err(Error(format!(
                    "{}: race, {other} {verb} it and no barrier lies between",
                    place()
                )));
            }
            match access {
                Access::Read if mark.read == barrier && mark.reader != warp => {
                    mark.reader = SEVERAL;
                }
                Access::Read => (mark.read, mark.reader) = (barrier, warp),
                Access::Write => (mark.written, mark.writer) = (barrier, warp),
                Access::Atomic => (mark.written, mark.writer) = (barrier, ATOMIC),
            }
        }
        Ok(&mut self.bytes[at as usize..(at + bytes) as usize])
    }

    /// Marks the destination of a copy that begins, or that has been waited for.
    pub(crate) fn under_way(&mut self, at: u64, bytes: u64, is: bool) {
        for mark in &mut self.marks[at as usize / 2..(at + bytes).div_ceil(2) as usize] {
            mark.under_way = is;
        }
    }
}
