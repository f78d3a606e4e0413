//! How a warp reads and writes memory.

use crate::cluster::Cluster;
use crate::memory::{Access, global};
use crate::op::{Space, Type};
use crate::parse::Operand;
use crate::value::low;
use crate::warp::{Copy, LANES, Lanes, Warp, each};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

impl Warp<'_> {
    /// Finishes a copy.
    pub(crate) fn arrive(&mut self, copy: Copy, cluster: &mut Cluster<'_>) -> Result<()> {
        let Copy { to, from, read, bytes } = copy;
        cluster.blocks[self.rank].shared.under_way(to, bytes, false);
        let mut data = [0; 16];
        let data = &mut data[..bytes as usize];
        if read > 0 {
            let place = global(self.launch.memory, &mut self.known, from, bytes, Access::Read);
            // Only what is read must be there.
            let place = match place {
                Ok(place) => place,
                Err(_) if from.is_multiple_of(bytes) => {
                    let (_, end) = self.launch.memory.allocation(from).unwrap_or_default();
                    if read > end.saturating_sub(from) {
                        return Err(Error(format!(
                            "a cp.async reads {read} bytes at {from:#x} of global memory, outside \
                             every allocation"
                        )));
                    }
                    from as *mut u8
                }
                Err(error) => return Err(error),
            };
            // SAFETY: the bytes that are read lie in an allocation.
            unsafe { place.copy_to_nonoverlapping(data.as_mut_ptr(), read as usize) };
        }
        cluster.touch(self.rank, self.agent, to, bytes, Access::Write)?.copy_from_slice(data);
        Ok(())
    }

    pub(crate) fn load(
        &mut self,
        space: Space,
        at: u64,
        lane: usize,
        to: &mut [u8],
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let bytes = to.len() as u64;
        match space {
            Space::Global => {
                let from = global(self.launch.memory, &mut self.known, at, bytes, Access::Read)?;
                // SAFETY: the bytes lie in an allocation.
                unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
            }
            Space::Shared => {
                to.copy_from_slice(cluster.touch(
                    self.rank,
                    self.agent,
                    at,
                    bytes,
                    Access::Read,
                )?);
            }
            Space::Param => {
                let end = (at as usize).saturating_add(to.len());
                let found = self.launch.params.get(at as usize..end);
                to.copy_from_slice(found.ok_or_else(|| Error(format!("no parameter at {at}")))?);
            }
            Space::Local => to.copy_from_slice(self.local(at, lane, bytes)?),
        }
        Ok(())
    }

    pub(crate) fn store(
        &mut self,
        space: Space,
        at: u64,
        lane: usize,
        from: &[u8],
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let bytes = from.len() as u64;
        match space {
            Space::Global => {
                let to = global(self.launch.memory, &mut self.known, at, bytes, Access::Write)?;
                // SAFETY: as above.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
            }
            Space::Shared => {
                let to = cluster.touch(self.rank, self.agent, at, bytes, Access::Write)?;
                to.copy_from_slice(from);
            }
            Space::Local => self.local(at, lane, bytes)?.copy_from_slice(from),
            Space::Param => return Err(Error("writes a parameter".into())),
        }
        Ok(())
    }

    fn local(&mut self, at: u64, lane: usize, bytes: u64) -> Result<&mut [u8]> {
        let size = self.launch.entry.local;
        let (first, end) = (at as usize, at.saturating_add(bytes) as usize);
        if end > size || !at.is_multiple_of(bytes) {
            return Err(Error(format!("touches {bytes} bytes at {at} of {size} bytes of its own")));
        }
        Ok(&mut self.local[lane * size..][first..end])
    }

    #[expect(clippy::too_many_arguments, reason = "what an atomic instruction is made of")]
    pub(crate) fn atomic(
        &mut self,
        space: Space,
        kind: Type,
        at: &Lanes,
        active: u32,
        change: &dyn Fn(u64, usize) -> u64,
        to: &Operand,
        cluster: &mut Cluster<'_>,
    ) -> Result<()> {
        let mut found = [0; LANES];
        for lane in each(active) {
            self.at.1 = lane;
            let bytes = kind.bytes();
            found[lane] = match space {
                Space::Shared => {
                    let place =
                        cluster.touch(self.rank, self.agent, at[lane], bytes, Access::Atomic)?;
                    let mut word = [0; 8];
                    word[..place.len()].copy_from_slice(place);
                    let old = u64::from_le_bytes(word);
                    let length = place.len();
                    place.copy_from_slice(&change(old, lane).to_le_bytes()[..length]);
                    old
                }
                Space::Global => {
                    let place = global(
                        self.launch.memory,
                        &mut self.known,
                        at[lane],
                        bytes,
                        Access::Atomic,
                    )?;
                    let next = |old: u64| low(change(old, lane), kind.bits());
                    let order = Ordering::SeqCst;
                    // SAFETY: the bytes lie in an allocation and are aligned. Blocks that run at
                    // the same time touch them by atomic instructions only, if the kernel is right.
                    let old = unsafe {
                        match bytes {
                            4 => {
                                let place = AtomicU32::from_ptr(place.cast());
                                let next = |old| Some(next(u64::from(old)) as u32);
                                place.fetch_update(order, order, next).map(u64::from).ok()
                            }
                            8 => {
                                let place = AtomicU64::from_ptr(place.cast());
                                place.fetch_update(order, order, |old| Some(next(old))).ok()
                            }
                            _ => None,
                        }
                    };
                    old.ok_or_else(|| Error(format!("an atomic instruction of {bytes} bytes")))?
                }
                space => return Err(Error(format!("an atomic instruction in {space:?}"))),
            };
        }
        self.write(to, &found, active);
        Ok(())
    }
}
