//! Chooses the form of a matrix product for its shape. The functions are pure, so that a choice
//! can be read and tested without a GPU.

use crate::gpu::Steps;

/// Columns of the inner dimension that matmul.cuh takes in a step.
const DEPTH: u32 = 64;

/// A tile of matmul.cuh.
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
    /// Rate relative to the largest tile where all multiprocessors are busy: a larger warp tile
    /// reads fewer operands from shared memory for each product. Predicted (NOTES.md), not measured.
    pub rate: f32,
}

/// The tiles that matmul.cuh instantiates.
pub const TILES: [Tile; 4] = [
    Tile { name: "16x64", rows: 16, cols: 64, threads: 128, stages: 6, rate: 0.26 },
    Tile { name: "64x128", rows: 64, cols: 128, threads: 128, stages: 3, rate: 0.71 },
    Tile { name: "128x128", rows: 128, cols: 128, threads: 256, stages: 3, rate: 0.73 },
    Tile { name: "128x256", rows: 128, cols: 256, threads: 256, stages: 3, rate: 1.0 },
];

/// Maximum rows of a product that is computed as matrix-vector products. Reading the weights
/// bounds both forms, and this one has no tile that is mostly empty.
pub const FEW_ROWS: u32 = 4;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// matvec.cuh for up to 1, 2 or 4 rows at a time.
    Few(u32),
    /// matmul.cuh.
    Many(Tile),
}

impl Tile {
    /// Returns the bytes of shared memory: a step's columns in bf16 for each row in each stage.
    pub fn shared(&self) -> u32 {
        self.stages * (self.rows + self.cols) * DEPTH * 2
    }
}

impl Form {
    /// Returns the form for `groups` products (one, or one for each expert) of about `rows` rows
    /// with `weights` rows of weights, on a GPU with `sms` multiprocessors and `shared` bytes of
    /// shared memory per block.
    ///
    /// ```
    /// use gritlm_kernels::tune::Form;
    /// let name = |rows, weights| Form::of(rows, weights, 1, 132, 232_448).to_string();
    /// assert_eq!(name(1, 4096), "1");
    /// assert_eq!(name(3, 4096), "4");
    /// assert_eq!(name(8, 4096), "16x64");
    /// assert_eq!(name(64, 28672), "64x128");
    /// assert_eq!(name(4096, 28672), "128x256");
    /// ```
    pub fn of(rows: u32, weights: u32, groups: u32, sms: u32, shared: u32) -> Self {
        if rows <= FEW_ROWS {
            return Self::Few(rows.max(1).next_power_of_two());
        }
        // The relative time of the busiest multiprocessor.
        let time = |tile: &Tile| {
            let tiles = rows.div_ceil(tile.rows) * weights.div_ceil(tile.cols) * groups;
            (tiles.div_ceil(sms) * tile.rows * tile.cols) as f32 / tile.rate
        };
        let fitting = TILES.iter().filter(|tile| tile.shared() <= shared);
        let best = fitting.min_by(|a, b| time(a).total_cmp(&time(b)));
        Self::Many(*best.unwrap_or(&TILES[0]))
    }

    /// Returns the rows that a block takes at a time.
    pub fn rows(self) -> u32 {
        match self {
            Self::Few(rows) => rows,
            Self::Many(tile) => tile.rows,
        }
    }

    /// Returns the outputs of a block. With `pair`, two rows of the weights make one output.
    pub fn outputs(self, pair: bool) -> u32 {
        match self {
            // 8 warps with two rows of the weights each.
            Self::Few(_) => 16 >> u32::from(pair),
            Self::Many(tile) => tile.cols >> u32::from(pair),
        }
    }

    /// Returns the threads per block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Few(_) => 256,
            Self::Many(tile) => tile.threads,
        }
    }

    /// Returns the iterations of the main loop over an inner dimension of this length.
    pub(crate) fn steps(self, inner: u32) -> Steps {
        match self {
            // 32 lanes with 8 columns each, four times; see matvec.cuh.
            Self::Few(_) => Steps::of(inner.div_ceil(1024), 0),
            Self::Many(tile) => {
                let products = u64::from(tile.rows) * u64::from(tile.cols) * u64::from(DEPTH);
                Steps::of(inner.div_ceil(DEPTH), products)
            }
        }
    }

    /// Returns the bytes of shared memory per block.
    pub fn shared(self) -> u32 {
        match self {
            Self::Few(_) => 0,
            Self::Many(tile) => tile.shared(),
        }
    }
}

/// Writes the end of the entry points' names.
impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Few(rows) => write!(f, "{rows}"),
            Self::Many(tile) => f.write_str(tile.name),
        }
    }
}
