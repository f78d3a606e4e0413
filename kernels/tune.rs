//! Chooses the form of a matrix product for its shape. The functions are pure, so that a choice
//! can be read and tested without a GPU.

use crate::gpu::Steps;

/// Columns of the inner dimension that matmul.cuh takes in a step.
const DEPTH: u32 = 64;

/// A tile of matmul.cuh. The cycles are predicted (NOTES.md), not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    /// Its rows and its weight rows, as in the names of the entry points.
    pub name: &'static str,
    /// Rows.
    pub rows: u32,
    /// Rows of the weights; half as many outputs where each output has two.
    pub cols: u32,
    /// Threads per block.
    pub threads: u32,
    /// Pipeline stages in shared memory.
    pub stages: u32,
    /// Blocks that a multiprocessor of an H200 holds.
    pub resident: u32,
    /// Cycles of a step by one block on a multiprocessor, and by as many as it holds.
    pub step: [u32; 2],
    /// Cycles of a block before and behind its steps.
    pub ends: u32,
}

/// The tiles that matmul.cuh instantiates.
pub const TILES: [Tile; 5] = [
    tile("16x32", [16, 32], 128, 8, 4, [175, 470], 1900),
    tile("32x32", [32, 32], 128, 8, 3, [238, 487], 2400),
    tile("64x128", [64, 128], 128, 3, 2, [1016, 1420], 2400),
    tile("128x128", [128, 128], 256, 3, 2, [1570, 2800], 3500),
    tile("128x256", [128, 256], 256, 3, 1, [1960, 1960], 5000),
];

const fn tile(
    name: &'static str,
    [rows, cols]: [u32; 2],
    threads: u32,
    stages: u32,
    resident: u32,
    step: [u32; 2],
    ends: u32,
) -> Tile {
    Tile { name, rows, cols, threads, stages, resident, step, ends }
}

/// Maximum rows of a product that is computed as matrix-vector products. From three rows on the
/// tensor cores are ahead: a vector's lanes would spend more instructions on each weight than there
/// is time for while it is read.
pub const FEW_ROWS: u32 = 2;

/// Maximum number of blocks that share a tile's columns. More would write more sums than they save.
const PARTS: u32 = 8;

/// Bytes a cycle that a multiprocessor gets: its share of an H200's 4.3 TB/s at 1.755 GHz, and at
/// most from L2.
const SHARE: f32 = 18.5;
const MOST: f32 = 48.0;

/// Cycles that adding the parts takes beside reading them: a launch, and the latency of its reads.
const ADDING: f32 = 4000.0;

/// A product to choose a form for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rows; of a product grouped by expert, those that an expert gets if all get the same number.
    pub rows: u32,
    /// Rows of the weights of a group.
    pub weights: u32,
    /// Columns of both.
    pub inner: u32,
    /// One, or the number of experts.
    pub groups: u32,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// matvec.cuh for up to 1 or 2 rows at a time.
    Few(u32),
    /// matmul.cuh, the columns of each tile in so many parts.
    Many(Tile, u32),
}

impl Tile {
    /// Returns the bytes of shared memory: a step's columns in bf16 for each row in each stage.
    pub fn shared(&self) -> u32 {
        self.stages * (self.rows + self.cols) * DEPTH * 2
    }

    /// Returns the cycles that a product takes in this form, on a GPU with `sms` multiprocessors.
    fn cycles(&self, shape: Shape, parts: u32, sms: u32) -> f32 {
        let Shape { rows, weights, inner, groups } = shape;
        let tiles = rows.div_ceil(self.rows) * weights.div_ceil(self.cols) * groups;
        let split = inner.div_ceil(DEPTH).div_ceil(parts);
        let blocks = tiles * parts;
        // The busiest multiprocessor's blocks: in full waves, and what is left.
        let most = blocks.div_ceil(sms);
        let step = |blocks: u32| {
            let [one, all] = self.step.map(|cycles| cycles as f32);
            one + (all - one) * (blocks - 1) as f32 / (self.resident - 1).max(1) as f32
        };
        let wave = |blocks: u32| self.ends as f32 + split as f32 * step(blocks);
        let mut cycles = (most / self.resident) as f32 * wave(self.resident);
        if !most.is_multiple_of(self.resident) {
            cycles += wave(most % self.resident);
        }
        let bytes = 2.0 * weights as f32 * inner as f32 * groups as f32;
        let reading = bytes / (SHARE * sms as f32).min(MOST * blocks.min(sms) as f32);
        let sums = match parts {
            1 => 0.0,
            // Written, then read, each at half of L2's rate: a thread has but two outputs.
            _ => ADDING + 16.0 * (parts * rows * weights) as f32 / (MOST * sms as f32),
        };
        cycles.max(reading + self.ends as f32) + sums
    }
}

impl Form {
    /// Returns the form for a product, on a GPU with `sms` multiprocessors and `shared` bytes of shared
    /// memory per block.
    ///
    /// ```
    /// use gritlm_kernels::tune::{Form, Shape};
    /// let name = |rows, weights, inner| {
    ///     let shape = Shape { rows, weights, inner, groups: 1 };
    ///     Form::of(shape, 132, 232_448).to_string()
    /// };
    /// assert_eq!(name(1, 4096, 4096), "1");
    /// assert_eq!(name(3, 4096, 4096), "16x32");
    /// assert_eq!(name(32, 28672, 4096), "32x32");
    /// assert_eq!(name(128, 4096, 14336), "128x256 in 8 parts");
    /// assert_eq!(name(4096, 28672, 4096), "128x256");
    /// ```
    pub fn of(shape: Shape, sms: u32, shared: u32) -> Self {
        // Experts get unequal numbers of rows, and read their weights again for each few of them.
        if shape.rows <= if shape.groups > 1 { 1 } else { FEW_ROWS } {
            return Self::Few(shape.rows.max(1).next_power_of_two());
        }
        let most = if shape.groups > 1 { 1 } else { PARTS.min(shape.inner.div_ceil(DEPTH).max(1)) };
        let fitting = TILES.iter().filter(|tile| tile.shared() <= shared);
        let forms = fitting.flat_map(|tile| (1..=most).map(move |parts| (tile, parts)));
        let cycles = |(tile, parts): &(&Tile, u32)| tile.cycles(shape, *parts, sms);
        let best = forms.min_by(|a, b| cycles(a).total_cmp(&cycles(b)));
        best.map_or(Self::Many(TILES[0], 1), |(tile, parts)| Self::Many(*tile, parts))
    }

    /// Returns every form, of which [`Form::of`] takes one: tiles whole and in parts, and few rows.
    pub fn all() -> impl Iterator<Item = Self> {
        let parts = |tile| [1, 3].map(|parts| Self::Many(tile, parts));
        TILES.into_iter().flat_map(parts).chain((1..=FEW_ROWS).map(Self::Few))
    }

    /// Returns the end of the entry points' names.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Few(rows) => rows.to_string(),
            Self::Many(tile, _) => tile.name.into(),
        }
    }

    /// Returns the rows that a block takes at a time.
    pub fn rows(self) -> u32 {
        match self {
            Self::Few(rows) => rows,
            Self::Many(tile, _) => tile.rows,
        }
    }

    /// Returns the outputs of a block. With `pair`, two rows of the weights make one output.
    pub fn outputs(self, pair: bool) -> u32 {
        match self {
            // 8 warps with two rows of the weights each.
            Self::Few(_) => 16 >> u32::from(pair),
            Self::Many(tile, _) => tile.cols >> u32::from(pair),
        }
    }

    /// Returns the threads per block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Few(_) => 256,
            Self::Many(tile, _) => tile.threads,
        }
    }

    /// Returns the steps of a block over an inner dimension of this length.
    pub(crate) fn split(self, inner: u32) -> u32 {
        match self {
            Self::Few(_) => 0,
            Self::Many(_, parts) => inner.div_ceil(DEPTH).div_ceil(parts).max(1),
        }
    }

    /// Returns the number of parts that have any steps.
    pub(crate) fn parts(self, inner: u32) -> u32 {
        match self {
            Self::Few(_) => 1,
            Self::Many(..) => inner.div_ceil(DEPTH).div_ceil(self.split(inner)).max(1),
        }
    }

    /// Returns the iterations of the main loop over an inner dimension of this length.
    pub(crate) fn steps(self, inner: u32) -> Steps {
        match self {
            // 32 lanes with 8 columns each, four times; see matvec.cuh.
            Self::Few(_) => Steps::of(inner.div_ceil(1024), 0),
            Self::Many(tile, _) => {
                let products = u64::from(tile.rows) * u64::from(tile.cols) * u64::from(DEPTH);
                Steps::of(self.split(inner), products)
            }
        }
    }

    /// Returns the bytes of shared memory per block.
    pub fn shared(self) -> u32 {
        match self {
            Self::Few(_) => 0,
            Self::Many(tile, _) => tile.shared(),
        }
    }
}

/// Writes the end of the entry point's name, and the number of parts if there are several.
impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Many(_, parts) if *parts > 1 => write!(f, "{} in {parts} parts", self.name()),
            _ => f.write_str(&self.name()),
        }
    }
}
