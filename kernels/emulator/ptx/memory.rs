//! Global and shared memory, and what may not be done to them.

use crate::order::{By, Conflict, Order, Sets, Stamp};
use crate::{Error, Result};

/// The device's memory.
pub trait Global: Sync {
    /// Returns the allocation that an address lies in: where it begins and ends. Its bytes can be
    /// read and written until the launch ends.
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
    let within = |(first, end): (u64, u64)| first <= at && at < end && bytes <= end - at;
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

/// Who has touched two bytes of shared memory.
#[derive(Clone, Copy, Default, PartialEq)]
struct Mark {
    /// Who has written last; of atomic instructions, all since the last other write.
    written: Stamp,
    /// Who has read since.
    read: Stamp,
    is: Is,
}

/// What two bytes of shared memory are, beside their value.
#[derive(Clone, Copy, Default, PartialEq)]
enum Is {
    #[default]
    Plain,
    /// Last written by an atomic instruction.
    Atomic,
    /// The destination of a `cp.async` that is under way.
    UnderWay,
    /// Part of an mbarrier.
    Barrier,
}

/// The shared memory of a block.
pub(crate) struct Shared {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
}

impl Shared {
    /// Returns memory in which nothing has been written.
    pub(crate) fn new(bytes: usize) -> Self {
        let marks = vec![Mark::default(); bytes.div_ceil(2)];
        Self { bytes: vec![0xff; bytes], marks }
    }

    /// Returns bytes that may be touched.
    ///
    /// # Errors
    /// When they are outside, misaligned, never written, the destination of a copy that nobody has
    /// waited for, part of an mbarrier, or touched by another without a barrier between.
    pub(crate) fn touch(
        &mut self,
        by: (&mut Sets, By<'_>),
        at: u64,
        bytes: u64,
        access: Access,
    ) -> Result<&mut [u8]> {
        if bytes == 0 || !at.is_multiple_of(bytes) {
            let does = access.name();
            let place = format!("{does} {bytes} bytes at {at} of shared memory");
            return Err(Error(format!("{place}, misaligned")));
        }
        self.range(by, at, bytes, access)
    }

    /// The same, without a look at how the bytes are aligned.
    pub(crate) fn range(
        &mut self,
        (sets, by): (&mut Sets, By<'_>),
        at: u64,
        bytes: u64,
        access: Access,
    ) -> Result<&mut [u8]> {
        let (does, all) = (access.name(), self.size());
        let place = || format!("{does} {bytes} bytes at {at} of shared memory");
        if at >= all || bytes > all - at {
            return Err(Error(format!("{}, outside its {all} bytes", place())));
        }
        // Bytes that are touched together were mostly touched together before.
        let mut last = (Mark::default(), Mark::default());
        let mut is_first = true;
        for mark in &mut self.marks[at as usize / 2..(at + bytes).div_ceil(2) as usize] {
            if is_first || *mark != last.0 {
                let next = mark.touched(sets, by, access);
                let next = next.map_err(|why| Error(format!("{}{why}", place())))?;
                (last, is_first) = ((*mark, next), false);
            }
            *mark = last.1;
        }
        Ok(&mut self.bytes[at as usize..(at + bytes) as usize])
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn become_of(&mut self, at: u64, bytes: u64, is: Is) {
        let end = ((at + bytes).div_ceil(2) as usize).min(self.marks.len());
        for mark in &mut self.marks[(at as usize / 2).min(end)..end] {
            mark.is = is;
        }
    }

    /// Marks the destination of a copy that begins, or that has been waited for.
    pub(crate) fn under_way(&mut self, at: u64, bytes: u64, is: bool) {
        self.become_of(at, bytes, if is { Is::UnderWay } else { Is::Plain });
    }

    /// Marks the bytes of an mbarrier that begins or ends.
    pub(crate) fn barrier(&mut self, at: u64, is: bool) {
        self.become_of(at, 8, if is { Is::Barrier } else { Is::Plain });
    }

    /// Returns bytes without a check, as far as they are there.
    pub(crate) fn bytes(&mut self, at: u64, bytes: u64) -> &mut [u8] {
        let end = ((at + bytes) as usize).min(self.bytes.len());
        &mut self.bytes[(at as usize).min(end)..end]
    }
}

impl Mark {
    /// Returns the mark behind an access; the error says why it may not be.
    #[inline]
    fn touched(
        self,
        sets: &mut Sets,
        by: By<'_>,
        access: Access,
    ) -> std::result::Result<Self, String> {
        match self.is {
            Is::UnderWay => return Err(", where a cp.async is under way".into()),
            Is::Barrier => return Err(", where an mbarrier is".into()),
            Is::Plain | Is::Atomic => {}
        }
        if access == Access::Read && self.written == Stamp::NOBODY {
            return Err(", never written".into());
        }
        let both_atomic = access == Access::Atomic && self.is == Is::Atomic;
        if let Some(conflict) = by.conflict(sets, self.written).filter(|_| !both_atomic) {
            let who = match self.is {
                Is::Atomic => "an atomic instruction has".into(),
                _ => conflict.who(sets, by.warps),
            };
            return Err(match conflict {
                Conflict::Race(_) => {
                    format!(": race, {who} written it and no barrier lies between")
                }
                Conflict::Unfenced(_) => {
                    format!(" by the async proxy: {who} written it, and no fence.proxy.async since")
                }
            });
        }
        if access == Access::Read {
            let read = match by.knows(sets, self.read) {
                true => by.stamp,
                false => sets.with(self.read, by.stamp),
            };
            return Ok(Self { read, ..self });
        }
        // A copy may follow reads without a fence; a barrier is enough.
        if !by.knows(sets, self.read) {
            let who = Order::name(sets, by.warps, self.read);
            return Err(format!(": race, {who} read it and no barrier lies between"));
        }
        Ok(match access {
            Access::Atomic if both_atomic => {
                let written = sets.with(self.written, by.stamp);
                Self { written, read: Stamp::NOBODY, is: Is::Atomic }
            }
            Access::Atomic => Self { written: by.stamp, read: Stamp::NOBODY, is: Is::Atomic },
            _ => Self { written: by.stamp, read: Stamp::NOBODY, is: Is::Plain },
        })
    }
}
