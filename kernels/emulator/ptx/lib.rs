//! Runs PTX, as NVRTC writes it, on a CPU: the judge of the text that a GPU is given, inline
//! assembly included, of which the emulator of the sources (the parent folder) knows nothing.
//!
//! A warp takes an instruction for all lanes whose branches agree; the lanes that are furthest
//! behind go first. The warps of a block, or of a cluster's blocks, run one after the other, each
//! until it waits for others, in an order that is drawn from the launch's seed; clusters run on all
//! cores.
//!
//! What it finds: accesses outside of allocations and of shared memory, misaligned ones, shared
//! memory that nobody has written, races in shared memory between warps (`order`: by vector clocks,
//! so in any order of the warps), destinations of `cp.async` that are touched before the wait, ends
//! without a wait, barriers that not all threads reach, instructions of the warp that not all of
//! its lanes reach. Copies arrive as late as they may, registers and memory begin as bits that are
//! no number.
//!
//! Of Hopper: copies by TMA and products of a warpgroup are late, too, and touch shared memory as
//! one more agent each, so whoever does not wait for the mbarrier or for the group races with them;
//! what stores write is theirs only behind `fence.proxy.async`. Registers of a product under way
//! must not be touched, and not without `wgmma.fence` before one. Bytes that an mbarrier expects
//! and that do not come, parities that never come, barriers that are too few: nobody can go on,
//! which says who waits for what.
//!
//! What it does not model: time, caches, the rounding of approximations (`ex2`, `rsqrt` are rounded
//! correctly), the order of sums within `mma` and `wgmma`, races within a warp and in global
//! memory.
//!
//! ```
//! let text = "
//!     .visible .entry twice(.param .u64 to) {
//!         .reg .b32 %r<3>; .reg .b64 %rd<4>;
//!         ld.param.u64 %rd1, [to];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         add.s32 %r2, %r1, %r1;
//!         st.global.u32 [%rd3], %r2;
//!         ret;
//!     }";
//! struct Memory(Vec<u32>);
//! impl gritlm_ptx::Global for Memory {
//!     fn allocation(&self, _: u64) -> Option<(u64, u64)> {
//!         let first = self.0.as_ptr() as u64;
//!         Some((first, first + 4 * self.0.len() as u64))
//!     }
//! }
//! let entries = gritlm_ptx::parse(text)?;
//! let memory = Memory(vec![0; 64]);
//! let params = (memory.0.as_ptr() as u64).to_le_bytes();
//! let launch = gritlm_ptx::Launch {
//!     entry: &entries[0], grid: [1; 3], block: [64, 1, 1], shared: 0, params: &params,
//!     memory: &memory, seed: 0,
//! };
//! let counts = launch.run()?;
//! assert_eq!(memory.0[63], 126);
//! assert_eq!((counts.instructions, counts.parted), (14, 0));
//! # Ok::<(), gritlm_ptx::Error>(())
//! ```

mod access;
mod barrier;
mod cluster;
mod compute;
mod counts;
mod descriptor;
mod hopper;
mod matrix;
mod mbarrier;
mod memory;
mod op;
mod order;
mod parse;
mod registers;
mod slots;
mod step;
#[cfg(test)]
mod tests;
mod tma;
mod token;
mod value;
mod warp;
mod wgmma;

pub mod hook;

pub use counts::Counts;
pub use memory::Global;
pub use parse::{Entry, parse};

use cluster::Cluster;
use rayon::prelude::*;
use std::fmt;

/// A text that is not understood, or a fault of a kernel; one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A launch of a kernel.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub entry: &'a Entry,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory, beside what the kernel declares.
    pub shared: usize,
    /// The parameters' bytes.
    pub params: &'a [u8],
    /// The device's memory.
    pub memory: &'a dyn Global,
    /// The order of the warps is drawn from it.
    pub seed: u64,
}

impl Launch<'_> {
    /// Runs all blocks, and returns what they asked of the hardware.
    ///
    /// # Errors
    /// At a fault of the kernel, and when the grid is not one of whole clusters.
    pub fn run(&self) -> Result<Counts> {
        let [x, y, z] = self.grid.map(u64::from);
        let (name, size) = (&self.entry.name, u64::from(self.entry.cluster));
        if !x.is_multiple_of(size) {
            return Err(Error(format!("{name}: a grid of {x} blocks for clusters of {size}")));
        }
        let (x, clusters) = (x / size, (0..x / size * y * z).into_par_iter());
        let counts = clusters.map(|i| {
            let first = [(i % x * size) as u32, (i / x % y) as u32, (i / (x * y)) as u32];
            Cluster::run(self, first)
        });
        counts.try_reduce(Counts::default, |mut all, one| {
            all += one;
            Ok(all)
        })
    }
}
