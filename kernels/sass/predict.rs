//! The time of a launch.

use crate::path::Shape;
use crate::warpgroups::Roles;
use crate::{Kernel, Memory, Multiprocessor, Unit, Work};

/// A GPU, as far as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Cycles a second under load.
    pub clock: f64,
    /// Cycles a second where the products of warpgroups keep all tensor cores busy: what the power
    /// allows.
    pub heavy: f64,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: u32,
    /// Bytes a second of a copy, read and written together.
    pub copy: f64,
    /// Operations a second that the best libraries reach in products of bf16.
    pub products: f64,
    /// The same in attention over 4,096 tokens, causal and in both directions.
    pub attention: [f64; 2],
    /// Whose rates of attention these are.
    pub attention_by: &'static str,
    /// Cycles between two products of a tensor core.
    tensor: u64,
}

/// Bytes a cycle that a multiprocessor gets from L2.
const L2_RATE: f64 = 48.0;

/// Cycles from a request to its bytes, from L2 and what memory adds.
const L2_LATENCY: f64 = 300.0;
const MEMORY_LATENCY: f64 = 400.0;

/// Seconds between the end of a launch and the first instruction of the next one in a graph.
pub(crate) const BETWEEN: f64 = 1.2e-6;

/// Iterations of the main loop that are run, of which the second half tells what another one takes.
const RUN: u32 = 16;

impl Memory {
    /// What a multiprocessor gets that has so many bytes a cycle of the memory, where this share of its
    /// bytes comes from there and the rest from L2.
    pub(crate) fn of(ours: f64, fresh: f64) -> Self {
        Self {
            rate: L2_RATE.min(ours / fresh.max(1e-9)),
            latency: (L2_LATENCY + fresh * MEMORY_LATENCY) as u64,
        }
    }
}

impl Gpu {
    /// An H200 with 141 GB. The rates were measured on one with PyTorch 2.11. Under full load by `wgmma`
    /// kernels are published that compute 8192³ and more at 799 to 823 TFLOP/s on an H100 (cuBLAS, and
    /// fast.cu by P. Shankhdhar): 0.97 of what the tensor cores give at 1.58 GHz.
    pub const H200: Self = Self {
        name: "H200",
        multiprocessors: 132,
        clock: 1.755e9,
        heavy: 1.58e9,
        shared: 228 << 10,
        copy: 4.3e12,
        products: 788e12,
        attention: [591e12, 671e12],
        attention_by: "cuDNN",
        tensor: 6,
    };

    /// An A100 with 80 GB. Published: cuBLAS about 0.85 of the 312 TFLOP/s that the tensor cores give,
    /// FlashAttention-2 up to 227 TFLOP/s, a copy of 1.7 of 2.04 TB/s.
    pub const A100: Self = Self {
        name: "A100",
        multiprocessors: 108,
        clock: 1.41e9,
        heavy: 1.41e9,
        shared: 164 << 10,
        copy: 1.7e12,
        products: 265e12,
        attention: [200e12, 227e12],
        attention_by: "FlashAttention-2",
        tensor: 8,
    };
}

/// What a block takes of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Threads.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared: u32,
}

/// A launch to predict.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Launch {
    /// Number of blocks.
    pub blocks: u64,
    /// What each takes.
    pub block: Block,
    /// What a warp does.
    pub work: Work,
    /// Bytes that have to be read and written at least.
    pub bytes: u64,
}

/// What the model says about a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Seconds, the pause before it included; infinite where the model does not know the kernel's
    /// structure.
    pub seconds: f64,
    /// Blocks on a multiprocessor at a time.
    pub resident: u32,
    /// Cycles of an iteration of the main loop by all of them; 0 where it runs once.
    pub step: f64,
    /// Instructions of an iteration by a warp.
    pub instructions: u32,
}

impl Gpu {
    /// Returns how many such blocks a multiprocessor holds at a time.
    pub fn resident(&self, block: Block) -> u32 {
        let warps = block.threads.div_ceil(32).max(1);
        // Registers are given to warps in units of 256, shared memory to blocks in KiB, and one KiB
        // of each block is the system's.
        let registers = 65_536 / (warps * (block.registers.max(1) * 32).next_multiple_of(256));
        let shared = self.shared / (block.shared.next_multiple_of(1 << 10) + (1 << 10));
        registers.min(shared).min(64 / warps).clamp(1, 32)
    }

    /// Predicts a launch of this kernel.
    pub fn predict(&self, kernel: &Kernel, launch: &Launch) -> Prediction {
        if let Some(roles) = Roles::of(kernel, launch.work) {
            return self.predict_roles(kernel, &roles, launch);
        }
        let shape = Shape::of(kernel, launch.work);
        let resident = self.resident(launch.block);
        let wave = u64::from(self.multiprocessors) * u64::from(resident);
        let (waves, rest) = (launch.blocks / wave, launch.blocks % wave);
        // Blocks of unequal length follow each other where they are many; where they are few, the
        // longest one ends last.
        let steps = if waves > 0 { launch.work.steps } else { launch.work.longest };
        let trips = shape.trips(steps.max(1));
        let warps = launch.block.threads.div_ceil(32).max(1);
        let (few, many) = (RUN / 2, RUN);
        let asked = self.asked(kernel, &shape, trips) * f64::from(warps) * launch.blocks as f64;
        let fresh = (launch.bytes as f64 / asked.max(1.0)).min(1.0);

        let mut prediction = Prediction { resident, ..Prediction::default() };
        // Cycles of so many blocks on each of so many multiprocessors, and of an iteration of all.
        let cycles = |blocks: u32, active: u64| -> (f64, f64) {
            let ours = self.copy / self.clock / active as f64;
            let memory = Memory::of(ours, fresh);
            let multiprocessor = Multiprocessor { tensor: self.tensor, memory };
            let run = |trips| {
                let path = shape.path(kernel, trips);
                multiprocessor.run(&kernel.code, &path, warps, blocks) as f64
            };
            if trips <= many {
                return (run(trips), 0.0);
            }
            let (first, second) = (run(few), run(many));
            let each = (second - first) / f64::from(many - few);
            (second + each * f64::from(trips - many), each)
        };
        let mut total = 0.0;
        if waves > 0 {
            let (wave, step) = cycles(resident, u64::from(self.multiprocessors));
            total += waves as f64 * wave;
            prediction.step = step;
        }
        if rest > 0 {
            let active = rest.min(u64::from(self.multiprocessors));
            let blocks = rest.div_ceil(active) as u32;
            let (cycles, step) = cycles(blocks, active);
            total += cycles;
            if waves == 0 {
                prediction.step = step;
            }
        }
        let one = shape.path(kernel, 2).0.len() - shape.path(kernel, 1).0.len();
        prediction.instructions = one as u32;
        // However the blocks are spread, memory gives no more than this.
        let least = launch.bytes as f64 / self.copy;
        prediction.seconds = (total / self.clock).max(least) + BETWEEN;
        prediction
    }

    /// Bytes that a warp asks for in all.
    fn asked(&self, kernel: &Kernel, shape: &Shape, trips: u32) -> f64 {
        let bytes = |trips| -> f64 {
            let path = shape.path(kernel, trips);
            let each = path.0.iter().map(|at| match kernel.code[*at as usize].unit {
                Unit::Load(bytes) | Unit::Copy(bytes) | Unit::Store(bytes) => f64::from(bytes),
                _ => 0.0,
            });
            each.sum()
        };
        let (one, two) = (bytes(1), bytes(2));
        one + (two - one) * f64::from(trips - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, Gpu};

    #[test]
    fn blocks_fit_as_on_the_gpu() {
        let block = |threads, registers, shared| Block { threads, registers, shared };
        // 238 registers of 256 threads: one block. 144 KiB of shared memory: one.
        assert_eq!(Gpu::H200.resident(block(256, 238, 147_456)), 1);
        assert_eq!(Gpu::H200.resident(block(256, 128, 98_304)), 2);
        assert_eq!(Gpu::H200.resident(block(256, 80, 0)), 3);
        assert_eq!(Gpu::H200.resident(block(1024, 32, 0)), 2);
        assert_eq!(Gpu::A100.resident(block(256, 128, 98_304)), 1);
    }
}
