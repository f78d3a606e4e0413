//! Predicts the time of a CUDA kernel from its SASS, without a GPU.
//!
//! * [`disassemble`] runs NVIDIA's `nvdisasm`, and [`parse`] reads what it prints: instructions with
//!   the stall counts and scoreboards that the compiler gave them.
//! * [`Path`] is the way of one warp through a kernel.
//! * [`Multiprocessor`] runs several warps along their path, cycle by cycle.
//! * [`Gpu::predict`] makes a launch's time of it: waves of blocks, and what memory allows.
//!
//! The model knows four schedulers that issue one instruction a cycle each, the pipes and their
//! rates, barriers, asynchronous copies, and one queue of bytes from memory. It does not know
//! caches: what share of the bytes comes from memory is computed from what the launch needs at
//! least. What it says is a prediction. Its one check is a kernel of FlashAttention-2's structure: 397
//! TFLOP/s predicted, 370 published for an H100; take it as ± 15 %.

mod instruction;
mod multiprocessor;
mod path;
mod predict;
mod warpgroups;

pub use instruction::{Instruction, Kernel, Unit, disassemble, parse};
pub use multiprocessor::{Memory, Multiprocessor};
pub use path::{Path, Work};
pub use predict::{Block, Gpu, Launch, Prediction};
pub use warpgroups::MainLoops;
