//! Pinned memory, from which the GPU copies. What the host sends with each step goes through a ring of
//! it: the driver may make a copy from pageable memory wait for everything that was launched before.

use crate::driver::{Driver, Memory, said};
use cudarc::driver::{CudaEvent, PinnedHostSlice};
use gritlm_model::ops::Result;
use std::collections::VecDeque;
use std::ops::Range;

/// Host memory from which the GPU copies.
pub(crate) enum Pinned {
    Live(PinnedHostSlice<u8>),
    Any(Vec<u8>),
}

impl Pinned {
    /// Returns the bytes.
    pub(crate) fn bytes(&mut self) -> Result<&mut [u8]> {
        match self {
            Self::Live(pinned) => {
                pinned.as_mut_slice().map_err(|e| said("gives no pinned memory", e))
            }
            Self::Any(bytes) => Ok(bytes),
        }
    }
}

/// Bytes of the ring: a step sends some 40 bytes a token, so it holds several.
const BYTES: usize = 1 << 20;

/// The ring, and the copies from it that may not be done yet, oldest first.
#[derive(Default)]
pub(crate) struct Sending {
    pinned: Option<Pinned>,
    next: usize,
    copies: VecDeque<(Range<usize>, CudaEvent)>,
}

impl Sending {
    /// Writes bytes to the beginning of the memory; the caller may change them at once.
    pub(crate) fn send(&mut self, driver: &Driver, to: &Memory, bytes: &[u8]) -> Result<()> {
        if bytes.len() > BYTES / 2 {
            return driver.upload(to, 0, bytes);
        }
        if self.next + bytes.len() > BYTES {
            self.next = 0;
        }
        let place = self.next..self.next + bytes.len();
        let meets = |other: &Range<usize>| place.start < other.end && other.start < place.end;
        while self.copies.iter().any(|(other, _)| meets(other)) {
            if let Some((_, copied)) = self.copies.pop_front() {
                copied.synchronize().map_err(|e| said("does not finish a copy", e))?;
            }
        }
        if self.pinned.is_none() {
            self.pinned = Some(driver.pinned(BYTES)?);
        }
        if let Some(pinned) = &mut self.pinned {
            let staged = &mut pinned.bytes()?[place.clone()];
            staged.copy_from_slice(bytes);
            driver.upload(to, 0, staged)?;
        }
        // Addresses of pieces are whole cache lines, as the driver copies them.
        self.next = place.end.next_multiple_of(64);
        self.copies.extend(driver.event()?.map(|copied| (place, copied)));
        Ok(())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        for (_, copied) in self.copies.drain(..) {
            // Pinned memory is freed next; a failed copy has been reported by a read.
            let _ = copied.synchronize();
        }
    }
}
