//! Copies of boxes of a tensor in global memory to shared memory (TMA).
//!
//! A tensor map is 128 bytes that only the driver writes. Those of the emulator's driver and of the
//! interpreter as a device are laid out here, since CUDA says nothing of it.

use crate::cluster::Cluster;
use crate::mbarrier::Place;
use crate::memory::{Access, global};
use crate::order::Stamp;
use crate::{Error, Result};

/// Where parameters are, of all addresses; no memory lies there.
pub(crate) const PARAMETERS: u64 = 1 << 60;

/// The last word of a map, which says that it is one.
const MARK: u64 = 0x5041_4d54_4c52_4947;

/// Alignment of a copy's destination (PTX ISA, "cp.async.bulk.tensor").
const ALIGN: u64 = 128;

/// A tensor map.
#[derive(Debug)]
struct Map {
    address: u64,
    rank: usize,
    /// Bytes of an element.
    element: u64,
    /// Whether 16-byte parts of rows are swizzled within 128 bytes.
    swizzles: bool,
    /// In elements, innermost first.
    sizes: [u64; 5],
    /// Bytes from element to element along each dimension.
    strides: [u64; 5],
    boxes: [u64; 5],
}

impl Map {
    /// Word 0: the address. 1: rank, bytes of an element from bit 8, swizzle from bit 16 (0 none, 1
    /// 128 bytes). 2 to 6: sizes. 7 to 10: strides in bytes, from the second dimension. 11 to 13:
    /// the box, two sizes a word. 15: the mark.
    fn new(words: &[u64; 16]) -> Result<Self> {
        let [rank, element, swizzle] = [words[1] & 0xff, words[1] >> 8 & 0xff, words[1] >> 16];
        let is_map = words[15] == MARK && (1..=5).contains(&rank) && element > 0 && swizzle < 2;
        if !is_map {
            return Err(Error("what should be a tensor map is none".into()));
        }
        let size = |i: usize| words[2 + i];
        let stride = |i: usize| if i == 0 { element } else { words[6 + i] };
        let side = |i: usize| words[11 + i / 2] >> (i % 2 * 32) & u64::from(u32::MAX);
        let map = Self {
            address: words[0],
            rank: rank as usize,
            element,
            swizzles: swizzle == 1,
            sizes: std::array::from_fn(size),
            strides: std::array::from_fn(stride),
            boxes: std::array::from_fn(side),
        };
        let fits = map.boxes.iter().all(|side| (1..=256).contains(side));
        match fits && map.sizes.iter().all(|size| (1..=1 << 32).contains(size)) {
            true => Ok(map),
            false => {
                let Self { sizes, boxes, .. } = map;
                Err(Error(format!("a tensor map of sizes {sizes:?} and boxes {boxes:?}")))
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.boxes.iter().product::<u64>() * self.element
    }

    /// Returns the rows of the box at `at` that lie in the tensor: where each begins in the box,
    /// where in memory, and its bytes.
    fn rows(&self, at: &[i32]) -> Vec<(u64, u64, u64)> {
        let first: [i64; 5] = std::array::from_fn(|i| at.get(i).copied().map_or(0, i64::from));
        let row = self.boxes[0] * self.element;
        let mut rows = Vec::new();
        // Of the innermost dimension, from where to where.
        let from = first[0].clamp(0, self.sizes[0] as i64);
        let to = (first[0] + self.boxes[0] as i64).clamp(from, self.sizes[0] as i64);
        for i in 0..self.boxes[1..].iter().product::<u64>() {
            let (mut rest, mut inside) = (i, from < to);
            let mut place = self.address.wrapping_add(from as u64 * self.element);
            for (d, first) in first.iter().enumerate().skip(1) {
                let x = first + (rest % self.boxes[d]) as i64;
                rest /= self.boxes[d];
                inside &= (0..self.sizes[d] as i64).contains(&x);
                place = place.wrapping_add((x as u64).wrapping_mul(self.strides[d]));
            }
            if inside {
                let into = i * row + (from - first[0]) as u64 * self.element;
                rows.push((into, place, (to - from) as u64 * self.element));
            }
        }
        rows
    }
}

/// Moves the 16-byte parts of 128 bytes around, by the number of the 128 bytes in 1024: bits 4 to 6
/// of an address are changed by bits 7 to 9. (CUTLASS, `Swizzle<3, 4, 3>` in
/// include/cute/atom/mma_traits_sm90_gmma.hpp; PTX ISA, "Swizzling modes".)
pub(crate) fn swizzled(at: u64) -> u64 {
    at ^ (at >> 3 & 0x70)
}

/// A copy that is under way.
pub(crate) struct Copy {
    /// The barrier that counts its bytes; the destination is in the same block.
    pub(crate) barrier: Place,
    to: u64,
    pub(crate) bytes: u64,
    rows: Vec<(u64, u64, u64)>,
    swizzles: bool,
    /// Where it stands in the text.
    pub(crate) line: u32,
}

/// What a copy is asked for.
pub(crate) struct Request<'a> {
    /// The map's address.
    pub(crate) map: u64,
    /// The box, innermost first.
    pub(crate) at: &'a [i32],
    /// Where to, and the barrier.
    pub(crate) to: Place,
    pub(crate) barrier: Place,
    /// The blocks that get it, by bits; `None` for that of `to`.
    pub(crate) blocks: Option<u64>,
}

impl Cluster<'_> {
    fn map(&self, at: u64) -> Result<Map> {
        if !at.is_multiple_of(64) {
            return Err(Error("a tensor map that is not aligned to 64 bytes".into()));
        }
        let mut bytes = [0; 128];
        if at >= PARAMETERS {
            let first = (at - PARAMETERS) as usize;
            let found = self.launch.params.get(first..first.saturating_add(128));
            bytes.copy_from_slice(
                found.ok_or_else(|| Error(format!("a tensor map at {first} of the parameters")))?,
            );
        } else {
            for (part, at) in bytes.chunks_mut(64).zip([at, at + 64]) {
                let from = global(self.launch.memory, &mut (0, 0), at, 64, Access::Read)?;
                // SAFETY: the bytes lie in an allocation.
                unsafe { from.copy_to_nonoverlapping(part.as_mut_ptr(), 64) };
            }
        }
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Map::new(&words)
    }

    /// Looks whether there is a map.
    pub(crate) fn prefetch(&self, at: u64) -> Result<()> {
        self.map(at).map(drop)
    }

    /// Starts a copy for a warp.
    ///
    /// # Errors
    /// When its source is outside of allocations, when its destination is misaligned, outside, or still
    /// in use, or when the barrier is not one.
    pub(crate) fn copy(&mut self, warp: usize, request: &Request<'_>) -> Result<()> {
        let map = self.map(request.map)?;
        if map.rank != request.at.len() {
            let (copy, map) = (request.at.len(), map.rank);
            return Err(Error(format!("a copy of rank {copy} with a map of rank {map}")));
        }
        let ((block, to), (of, barrier)) = (request.to, request.barrier);
        if block != of {
            return Err(Error("a copy whose barrier is in another block".into()));
        }
        if !to.is_multiple_of(ALIGN) {
            return Err(Error(format!(
                "a copy by TMA to {to} of shared memory, which is not aligned to {ALIGN} bytes"
            )));
        }
        let all = self.blocks[block].shared.size();
        if map.bytes() > all {
            let bytes = map.bytes();
            return Err(Error(format!("a box of {bytes} bytes for {all} bytes of shared memory")));
        }
        let rows = map.rows(request.at);
        let mut known = (0, 0);
        for (_, from, bytes) in &rows {
            // Only what is read must be there.
            global(self.launch.memory, &mut known, *from, 1, Access::Read)?;
            if from + bytes > known.1 {
                return Err(Error(format!(
                    "a copy by TMA reads {bytes} bytes at {from:#x} of global memory, beyond the end \
                     of an allocation"
                )));
            }
        }
        let blocks = match request.blocks {
            Some(blocks) if blocks >> self.blocks.len() != 0 || blocks == 0 => {
                let count = self.blocks.len();
                return Err(Error(format!("a copy to blocks {blocks:#x} of {count}")));
            }
            Some(blocks) => (0..self.blocks.len()).filter(|i| blocks >> i & 1 != 0).collect(),
            None => vec![block],
        };
        for block in blocks {
            let place = (block, barrier);
            let counter = self.shown_barrier(warp, place)?;
            let stamp = Stamp::new(counter.agent, counter.phase + 1)?;
            if block != self.block_of(warp) {
                self.touched_by(block, stamp)?;
            }
            let clock = self.order.clock(warp).clone();
            let by = self.order.by_async(&clock, stamp);
            let bytes = map.bytes();
            self.blocks[block].shared.range(by, to, bytes, Access::Write)?.fill(0xff);
            let (rows, line) = (rows.clone(), self.line);
            let swizzles = map.swizzles;
            self.copies.push(Copy { barrier: place, to, bytes, rows, swizzles, line });
        }
        Ok(())
    }

    /// Lets one of the copies land; returns whether there was one.
    pub(crate) fn land(&mut self) -> Result<bool> {
        if self.copies.is_empty() {
            return Ok(false);
        }
        let drawn = self.draw() % self.copies.len();
        let copy = self.copies.swap_remove(drawn);
        // The copy may be larger than what is swizzled at once, so each part finds its own place.
        let mut image = vec![0; copy.bytes as usize];
        for (into, from, bytes) in &copy.rows {
            let into = &mut image[*into as usize..(into + bytes) as usize];
            // SAFETY: `copy` has found the row in an allocation, which stays until the launch has
            // ended.
            unsafe { (*from as *const u8).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        }
        let shared = &mut self.blocks[copy.barrier.0].shared;
        for (i, part) in image.chunks(16).enumerate() {
            let at = copy.to + 16 * i as u64;
            let at = if copy.swizzles { swizzled(at) } else { at };
            let to = shared.bytes(at, part.len() as u64);
            to.copy_from_slice(&part[..to.len()]);
        }
        let entry = &self.launch.entry.name;
        let fault = |Error(e)| Error(format!("{entry}, line {} of the PTX: {e}", copy.line));
        self.landed(copy.barrier, copy.bytes).map_err(fault)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rank: u64, swizzle: u64) -> Map {
        let mut words = [0; 16];
        (words[0], words[1], words[15]) = (1 << 20, rank | 2 << 8 | swizzle << 16, MARK);
        (words[2], words[3], words[4], words[5], words[6]) = (100, 5, 1, 1, 1);
        words[7] = 256;
        (words[11], words[12], words[13]) = (64 | 4 << 32, 1 | 1 << 32, 1);
        Map::new(&words).unwrap()
    }

    /// The last column of boxes and the last row are cut, and what lies before the tensor.
    #[test]
    fn boxes_that_reach_out_of_the_tensor() {
        let map = map(2, 1);
        assert_eq!(map.bytes(), 512);
        let first = 1 << 20;
        assert_eq!(map.rows(&[64, 4]), [(0, first + 128 + 4 * 256, 72)]);
        assert_eq!(map.rows(&[-2, -3]), [(3 * 128 + 4, first, 124)]);
        assert_eq!(map.rows(&[0, 1]).len(), 4);
        assert!(map.rows(&[100, 0]).is_empty() && map.rows(&[0, 5]).is_empty());
    }

    #[test]
    fn what_is_no_map() {
        for (word, value) in [(15, 0), (1, 0), (1, 6 | 2 << 8), (1, 2), (11, 257 | 1 << 32)] {
            let mut words = [1; 16];
            (words[1], words[15]) = (2 | 2 << 8, MARK);
            (words[11], words[12], words[13]) = (1 | 1 << 32, 1 | 1 << 32, 1);
            assert!(Map::new(&words).is_ok());
            words[word] = value;
            assert!(Map::new(&words).is_err(), "{word}");
        }
    }

    /// Every 16 bytes of 1024 get a place of their own, and rows stay rows.
    #[test]
    fn swizzles_are_permutations() {
        let mut places: Vec<u64> = (0..64).map(|i| swizzled(16 * i)).collect();
        assert!((0..64).all(|i| places[i as usize] / 128 == 16 * i / 128));
        assert_eq!(places[9], 128);
        places.sort_unstable();
        assert!(places.iter().enumerate().all(|(i, place)| *place == 16 * i as u64));
    }
}
