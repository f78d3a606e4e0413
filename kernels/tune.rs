//! Which form of a product for which shape: pure functions, to be read and tested without a GPU.

/// A tile of matmul.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    /// Its rows and its rows of the weights, as in the names of the entry points.
    pub name: &'static str,
    /// Rows.
    pub rows: u32,
    /// Rows of the weights; half as many outputs where each has two.
    pub cols: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Steps in shared memory.
    pub stages: u32,
    /// What share of the largest tile's rate it has where all multiprocessors are busy: a larger
    /// warp tile reads fewer operands from shared memory for each product. Estimated from the bytes;
    /// not measured.
    pub rate: f32,
}

/// The tiles that matmul.cuh instantiates.
pub const TILES: [Tile; 4] = [
    Tile { name: "16x64", rows: 16, cols: 64, threads: 128, stages: 6, rate: 0.25 },
    Tile { name: "64x128", rows: 64, cols: 128, threads: 128, stages: 3, rate: 0.75 },
    Tile { name: "128x128", rows: 128, cols: 128, threads: 256, stages: 3, rate: 0.85 },
    Tile { name: "128x256", rows: 128, cols: 256, threads: 256, stages: 3, rate: 1.0 },
];

/// Rows up to which a product is a few matrix-vector products: reading the weights bounds both
/// forms, and this one has no tile that stands mostly empty.
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
    /// Bytes of shared memory: 64 columns of bf16 of each row, in each stage.
    pub fn shared(&self) -> u32 {
        self.stages * (self.rows + self.cols) * 64 * 2
    }
}

impl Form {
    /// The form for `groups` products (one, or one for each expert) of some `rows` rows with
    /// `weights` rows of weights, on a GPU with so many multiprocessors and so much shared memory a
    /// block.
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
        // The time of the busiest multiprocessor, in products.
        let time = |tile: &Tile| {
            let tiles = rows.div_ceil(tile.rows) * weights.div_ceil(tile.cols) * groups;
            (tiles.div_ceil(sms) * tile.rows * tile.cols) as f32 / tile.rate
        };
        let fitting = TILES.iter().filter(|tile| tile.shared() <= shared);
        let best = fitting.min_by(|a, b| time(a).total_cmp(&time(b)));
        Self::Many(*best.unwrap_or(&TILES[0]))
    }

    /// Rows that it takes at a time.
    pub fn rows(self) -> u32 {
        match self {
            Self::Few(rows) => rows,
            Self::Many(tile) => tile.rows,
        }
    }

    /// Outputs that a block has: of weights that make one output each, or a pair of them one.
    pub fn outputs(self, pair: bool) -> u32 {
        match self {
            // 8 warps with two rows of the weights each.
            Self::Few(_) => 16 >> u32::from(pair),
            Self::Many(tile) => tile.cols >> u32::from(pair),
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Few(_) => 256,
            Self::Many(tile) => tile.threads,
        }
    }

    /// Bytes of shared memory of a block.
    pub fn shared(self) -> u32 {
        match self {
            Self::Few(_) => 0,
            Self::Many(tile) => tile.shared(),
        }
    }
}

/// The end of the entry points' names.
impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Few(rows) => write!(f, "{rows}"),
            Self::Many(tile) => f.write_str(tile.name),
        }
    }
}
