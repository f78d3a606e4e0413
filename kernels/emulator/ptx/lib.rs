//! Runs PTX, as NVRTC writes it, on a CPU: the judge of the text that a GPU is given, inline
//! assembly included, of which the emulator of the sources (the parent folder) knows nothing.
//!
//! A warp takes an instruction for all lanes whose branches agree; the lanes that are furthest behind go
//! first. The warps of a block run one after the other from barrier to barrier, in an order that is
//! drawn from the launch's seed; blocks run on all cores.
//!
//! What it finds: accesses outside of allocations and of shared memory, misaligned ones, shared memory
//! that nobody has written, races between warps in shared memory, destinations of `cp.async` that are
//! touched before the wait, ends without a wait, barriers that not all threads reach, instructions of the
//! warp that not all of its lanes reach. Copies arrive as late as they may, registers and memory begin
//! as bits that are no number.
//!
//! What it does not model: time, caches, the rounding of approximations (`ex2`, `rsqrt` are rounded
//! correctly), the order of sums within `mma`, races within a warp and between blocks.
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
mod counts;
mod matrix;
mod memory;
mod op;
mod parse;
mod step;
mod token;
mod value;
mod warp;

pub mod hook;

pub use counts::Counts;
pub use memory::Global;
pub use parse::{Entry, parse};

use memory::Shared;
use rayon::prelude::*;
use std::fmt;
use warp::{LANES, Stop, Warp};

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
    /// At a fault of the kernel.
    pub fn run(&self) -> Result<Counts> {
        let [x, y, z] = self.grid.map(u64::from);
        let blocks = (0..x * y * z).into_par_iter();
        let counts =
            blocks.map(|i| self.block([(i % x) as u32, (i / x % y) as u32, (i / (x * y)) as u32]));
        counts.try_reduce(Counts::default, |mut all, one| {
            all += one;
            Ok(all)
        })
    }

    fn block(&self, block: [u32; 3]) -> Result<Counts> {
        let threads = self.block.iter().product::<u32>() as usize;
        let mut warps: Vec<Warp<'_>> =
            (0..threads.div_ceil(LANES)).map(|i| Warp::new(self, block, i as u32)).collect();
        let mut shared = Shared::new(self.entry.shared + self.shared);
        let mut turn = self.seed;
        loop {
            let count = warps.len();
            turn = turn.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let (first, backwards) = ((turn >> 33) as usize % count, turn >> 32 & 1 != 0);
            let mut ended = 0;
            for i in 0..count {
                let i = (first + if backwards { count - i } else { i }) % count;
                ended += usize::from(warps[i].run(&mut shared)? == Stop::Ended);
            }
            if ended == count {
                let mut all = Counts::default();
                warps.iter().for_each(|warp| all += warp.counts);
                return Ok(all);
            }
            let waiting: usize = warps.iter().map(Warp::waiting).sum();
            if waiting < threads {
                let [x, y, z] = block;
                return Err(Error(format!(
                    "{}, block {x},{y},{z}: a barrier is reached by {waiting} of {threads} threads; \
                     the others have ended",
                    self.entry.name
                )));
            }
            shared.meet();
            warps.iter_mut().for_each(Warp::pass);
        }
    }
}
