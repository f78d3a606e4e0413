//! What a launch asked of the hardware, counted.

use crate::warp::LANES;
use std::ops::AddAssign;

/// Bytes that global memory moves at once.
const SECTOR: u64 = 32;

/// Bytes of a bank of shared memory, of which there are 32.
const BANK: u64 = 4;

/// Counts of a launch, over all of its warps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions that a warp took.
    pub instructions: u64,
    /// Of these, products of matrices.
    pub products: u64,
    /// Of these, barriers of the block.
    pub barriers: u64,
    /// Instructions with less than all of the lanes that had not ended, because branches parted.
    pub parted: u64,
    /// Sectors of 32 bytes of global memory that loads, stores and copies touched, each instruction
    /// by itself.
    pub sectors: u64,
    /// As few sectors as would hold their bytes.
    pub sectors_needed: u64,
    /// Passes that accesses to shared memory took: each bank gives one word a pass.
    pub passes: u64,
    /// As few passes as their width allows.
    pub passes_needed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.products += other.products;
        self.barriers += other.barriers;
        self.parted += other.parted;
        self.sectors += other.sectors;
        self.sectors_needed += other.sectors_needed;
        self.passes += other.passes;
        self.passes_needed += other.passes_needed;
    }
}

impl Counts {
    /// Counts an access of a warp to global memory: where each lane's `bytes` bytes begin. Places
    /// are multiples of their width, so equal or apart, and each in one sector.
    pub(crate) fn global(&mut self, places: &[u64], bytes: u64) {
        let (mut sorted, places) = sorted(places);
        let places = &mut sorted[..places];
        self.sectors_needed += (distinct(places) * bytes).div_ceil(SECTOR);
        places.iter_mut().for_each(|place| *place /= SECTOR);
        self.sectors += distinct(places);
    }

    /// Counts an access of a warp to shared memory: as many lanes at once as 128 bytes take.
    pub(crate) fn shared(&mut self, places: &[u64], bytes: u64) {
        let width = bytes.max(BANK);
        for places in places.chunks((128 / width) as usize) {
            // Places of one width are equal or apart, and of each the banks side by side.
            let (sorted, count) = sorted(places);
            let (mut banks, mut last) = ([0u8; 32], None);
            for place in sorted[..count].iter().map(|at| at / width) {
                if last != Some(place) {
                    banks[(place % (128 / width)) as usize] += 1;
                    last = Some(place);
                }
            }
            self.passes += u64::from(banks.into_iter().max().unwrap_or(0));
            self.passes_needed += 1;
        }
    }
}

/// Returns the places of a warp's lanes in order, and how many they are.
fn sorted(places: &[u64]) -> ([u64; LANES], usize) {
    let (mut sorted, count) = ([0; LANES], places.len().min(LANES));
    sorted[..count].copy_from_slice(&places[..count]);
    if !sorted[..count].is_sorted() {
        sorted[..count].sort_unstable();
    }
    (sorted, count)
}

/// Returns how many different numbers there are among sorted ones.
fn distinct(sorted: &[u64]) -> u64 {
    let steps = sorted.windows(2).filter(|pair| pair[0] != pair[1]).count();
    (steps + usize::from(!sorted.is_empty())) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 128 bytes without a shift meet in one bank; of 144 bytes in none.
    #[test]
    fn rows_that_meet_in_banks() {
        for (stride, passes) in [(128, 8), (144, 1), (136, 2)] {
            let mut counts = Counts::default();
            let places: Vec<u64> = (0..8).map(|row| row * stride / 16 * 16).collect();
            counts.shared(&places, 16);
            assert_eq!((counts.passes, counts.passes_needed), (passes, 1), "{stride}");
        }
    }

    #[test]
    fn sectors_of_strides() {
        for (stride, sectors) in [(4, 4), (8, 8), (32, 32), (0, 1)] {
            let mut counts = Counts::default();
            let places: Vec<u64> = (0..32).map(|lane| 64 + lane * stride).collect();
            counts.global(&places, 4);
            let needed = if stride == 0 { 1 } else { 4 };
            assert_eq!((counts.sectors, counts.sectors_needed), (sectors, needed), "{stride}");
        }
    }
}
