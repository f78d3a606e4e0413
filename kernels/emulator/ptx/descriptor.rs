//! Where `wgmma` finds the numbers of a matrix in shared memory.
//!
//! Sources: PTX ISA, "Matrix descriptor format" and "Strides"; CUTLASS, include/cute/arch/
//! mma_sm90_desc.hpp (the fields) and include/cute/atom/mma_traits_sm90_gmma.hpp (the canonical
//! layouts, which are in the comments of `place`, with T = 8 numbers in 16 bytes).

use crate::tma::swizzled;
use crate::{Error, Result};

/// A matrix of bf16 in shared memory: 16 numbers deep, along which is summed, and m or n wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    swizzles: bool,
    /// Whether numbers side by side lie across, along m or n, instead of along the depth.
    is_across: bool,
}

impl Descriptor {
    /// Bits 0 to 13: address; 16 to 29 and 32 to 45: leading and stride offset, all in 16 bytes; 49
    /// to 51: base offset; 62 and 63: swizzle, 0 none, 1 of 128 bytes.
    ///
    /// # Errors
    /// When it is swizzled in another way, or does not begin where the pattern of the swizzle does.
    pub(crate) fn new(word: u64, is_across: bool) -> Result<Self> {
        let field = |first: u32| (word >> first & 0x3fff) << 4;
        let (start, leading, stride) = (field(0), field(16), field(32));
        let (base, layout) = (word >> 49 & 7, word >> 62);
        if layout > 1 {
            let bytes = if layout == 2 { 64 } else { 32 };
            return Err(Error(format!("a wgmma with a swizzle of {bytes} bytes: not known here")));
        }
        let swizzles = layout == 1;
        // Rows of 128 bytes are counted from an address that is a multiple of 1024; where the
        // matrix begins in between, the base offset says so, and the tile is another.
        if base != 0 || swizzles && start & 0x380 != 0 {
            return Err(Error(format!(
                "a wgmma whose matrix begins at {start} of shared memory, with base offset {base}: \
                 tiles of rows of 128 bytes must begin at multiples of 1024"
            )));
        }
        Ok(Self { start, leading, stride, swizzles, is_across })
    }

    /// Returns where number (`across`, `deep`) lies; seven more lie behind a multiple of 8.
    pub(crate) fn place(&self, across: u64, deep: u64) -> u64 {
        let Self { leading, stride, .. } = self;
        let offset = match (self.is_across, self.swizzles) {
            // ((8,m),(T,2)) : ((8T,SBO),(1,T))
            (false, true) => across % 8 * 128 + across / 8 * stride + deep * 2,
            // ((8,m),(T,2)) : ((1T,SBO),(1,LBO))
            (false, false) => {
                across % 8 * 16 + across / 8 * stride + deep % 8 * 2 + deep / 8 * leading
            }
            // ((T,8,m),(8,k)) : ((1,T,LBO),(8T,SBO))
            (true, true) => {
                across % 64 * 2 + across / 64 * leading + deep % 8 * 128 + deep / 8 * stride
            }
            // ((T,1,m),(8,k)) : ((1,T,SBO),(1T,LBO))
            (true, false) => {
                across % 8 * 2 + across / 8 * stride + deep % 8 * 16 + deep / 8 * leading
            }
        };
        let at = self.start + offset;
        if self.swizzles { swizzled(at) } else { at }
    }

    /// Returns where each 16 bytes of a matrix lie that is so wide: eight numbers, and the first of
    /// them (across, deep).
    pub(crate) fn parts(self, width: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let (across, deep) = if self.is_across { (8, 1) } else { (1, 8) };
        (0..16 / deep).flat_map(move |d| {
            (0..width / across).map(move |a| {
                let (a, d) = (a * across, d * deep);
                (self.place(a, d), a, d)
            })
        })
    }

    /// Whether numbers side by side lie across.
    pub(crate) fn is_across(&self) -> bool {
        self.is_across
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(at: u64, leading: u64, stride: u64, layout: u64, is_across: bool) -> Descriptor {
        let word = at >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | layout << 62;
        Descriptor::new(word, is_across).unwrap()
    }

    /// Rows of 128 bytes: row 9 is the second of the second eight, and its second 16 bytes are
    /// where the first would be without a swizzle. Sixteen numbers on are 32 bytes on.
    #[test]
    fn rows_side_by_side() {
        let rows = descriptor(2048, 16, 1024, 1, false);
        assert_eq!(rows.place(9, 8), 2048 + 1024 + 128);
        let on = descriptor(2048 + 32, 16, 1024, 1, false);
        assert_eq!(on.place(9, 0), rows.place(9, 16));
        // The leading offset is not read.
        assert_eq!(descriptor(2048, 512, 1024, 1, false).place(9, 8), rows.place(9, 8));
    }

    /// Values: 64 columns a tile, tiles `leading` apart, eight rows of a tile 1024 bytes.
    #[test]
    fn columns_side_by_side() {
        let columns = descriptor(0, 16384, 1024, 1, true);
        assert_eq!(columns.place(64 + 8, 9), 16384 + 1024 + 128);
        assert_ne!(columns.place(64, 0), descriptor(0, 1024, 16384, 1, true).place(64, 0));
        assert_eq!(columns.place(3, 0), 6);
    }

    #[test]
    fn without_a_swizzle() {
        assert_eq!(descriptor(0, 128, 256, 0, false).place(9, 9), 256 + 16 + 128 + 2);
        assert_eq!(descriptor(0, 128, 256, 0, true).place(9, 9), 256 + 2 + 128 + 16);
    }

    #[test]
    fn every_part_once() {
        for is_across in [false, true] {
            let all = descriptor(1024, 8192, 1024, 1, is_across).parts(128);
            let mut places: Vec<u64> = all.map(|(at, ..)| at).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 128 * 16 / 8, "{is_across}");
        }
    }

    #[test]
    fn what_is_not_known() {
        for word in [2 << 62, 3 << 62, 1 << 62 | 128 >> 4, 1 << 62 | 1 << 49] {
            assert!(Descriptor::new(word, false).is_err(), "{word:x}");
        }
    }
}
