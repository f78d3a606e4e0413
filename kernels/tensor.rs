//! Tensors in global memory that TMA copies boxes of, on Hopper; `TensorMap` in ptx_hopper.cuh.

use crate::driver::Driver;
use crate::params::Pointer;
use gritlm_model::ops::Result;

/// Most dimensions that a tensor can have.
const RANK: usize = 5;

/// A dimension of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dimension {
    /// Elements of the tensor; beyond, a copy brings zeros.
    pub(crate) size: u32,
    /// Elements from one to the next: 1 in the first dimension, a multiple of 8 in the others. They
    /// need not grow, so that a tensor can be a matrix whose rows come in another order.
    pub(crate) stride: u64,
    /// Elements of a box, at most 256.
    pub(crate) extent: u32,
}

/// Returns a dimension.
pub(crate) fn dimension(size: u32, stride: u64, extent: u32) -> Dimension {
    Dimension { size, stride, extent }
}

/// A tensor of bf16 whose boxes have 64 columns, swizzled by 128 bytes in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    /// Its first element, at a multiple of 16 bytes.
    pub(crate) first: Pointer,
    /// Its dimensions, the innermost first; two at least.
    pub(crate) dimensions: &'a [Dimension],
}

/// What a kernel gives to TMA: the driver's `CUtensorMap`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);

impl Tensor<'_> {
    /// Returns the map of a tensor for the kernels of a GPU.
    ///
    /// # Errors
    /// When the driver refuses it.
    pub(crate) fn map(&self, driver: &Driver) -> Result<TensorMap> {
        driver.tensor_map(self)
    }

    /// Returns sizes, strides in bytes and boxes of all five dimensions, 1, 0 and 1 beyond the last.
    pub(crate) fn all(&self) -> ([u64; RANK], [u64; RANK], [u32; RANK]) {
        let (mut sizes, mut strides, mut boxes) = ([1; RANK], [0; RANK], [1; RANK]);
        for (i, d) in self.dimensions.iter().enumerate() {
            (sizes[i], strides[i], boxes[i]) = (u64::from(d.size), 2 * d.stride, d.extent);
        }
        (sizes, strides, boxes)
    }

    /// Returns the map that the interpreter of PTX and the emulator understand, in place of the
    /// driver's, of which nobody knows the bits: address; rank, bytes of an element and swizzle;
    /// sizes; strides but the first; boxes; a mark (emulator/README.md).
    pub(crate) fn map_of_interpreter(&self) -> TensorMap {
        const MARK: u64 = 0x5041_4d54_4c52_4947;
        let (sizes, strides, boxes) = self.all();
        let mut words = [0; 16];
        words[0] = self.first.0;
        words[1] = self.dimensions.len() as u64 | 2 << 8 | 1 << 16;
        words[2..7].copy_from_slice(&sizes);
        words[7..11].copy_from_slice(&strides[1..]);
        for (i, &extent) in boxes.iter().enumerate() {
            words[11 + i / 2] |= u64::from(extent) << (32 * (i % 2));
        }
        words[15] = MARK;
        TensorMap(words)
    }
}
