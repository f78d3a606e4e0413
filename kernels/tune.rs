//! Chooses the form of a matrix product for its shape. The functions are pure, so that a choice
//! can be read and tested without a GPU.

use crate::gpu::Steps;

/// Columns of the inner dimension that matmul.cuh takes in a step.
const DEPTH: u32 = 64;

/// The instructions that a tile is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// `mma.sync`, on every GPU from Ampere on: matmul.cuh.
    Ampere,
    /// `wgmma`, with persistent blocks in clusters of so many: matmul_hopper.cuh.
    Hopper(u32),
    /// `wgmma` with the weights as its rows: matmul_hopper_few.cuh.
    HopperFew,
}

/// A tile of a matrix product. The cycles are predicted (NOTES.md), not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    /// What computes it.
    pub tier: Tier,
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

/// The tiles that matmul.cuh, matmul_hopper.cuh and matmul_hopper_few.cuh instantiate.
pub const TILES: [Tile; 13] = [
    tile("16x32", [16, 32], 128, 8, 4, [180, 460], 1900),
    tile("16x48", [16, 48], 128, 8, 3, [216, 490], 2300),
    tile("32x32", [32, 32], 128, 8, 3, [250, 490], 2400),
    tile("32x48", [32, 48], 128, 8, 2, [302, 451], 3000),
    tile("64x128", [64, 128], 128, 3, 2, [1016, 1420], 2400),
    tile("128x128", [128, 128], 256, 3, 2, [1570, 2800], 3500),
    tile("128x256", [128, 256], 256, 3, 1, [1960, 1960], 5000),
    few("hopper_8x128", 8, 6, [363, 726], 2800),
    few("hopper_32x128", 32, 5, [427, 854], 4000),
    few("hopper_64x128", 64, 4, [512, 1024], 5500),
    hopper("hopper_128x128", 128, 6, 1, 715, 5500),
    hopper("hopper_128x192", 192, 5, 1, 920, 7500),
    hopper("hopper_128x256", 256, 4, 2, 1100, 9000),
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
    let tier = Tier::Ampere;
    Tile { tier, name, rows, cols, threads, stages, resident, step, ends }
}

/// A warp that copies and two warpgroups; two blocks are on a multiprocessor.
const fn few(name: &'static str, rows: u32, stages: u32, step: [u32; 2], ends: u32) -> Tile {
    let tile = tile(name, [rows, 128], 288, stages, 2, step, ends);
    Tile { tier: Tier::HopperFew, ..tile }
}

/// A warpgroup that copies and two that multiply.
const fn hopper(
    name: &'static str,
    cols: u32,
    stages: u32,
    cluster: u32,
    step: u32,
    ends: u32,
) -> Tile {
    let tile = tile(name, [128, cols], 384, stages, 1, [step, step], ends);
    Tile { tier: Tier::Hopper(cluster), ..tile }
}

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

/// A GPU to choose a form for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Multiprocessors.
    pub sms: u32,
    /// Bytes of shared memory per block.
    pub shared: u32,
    /// Whether it has the kernels for Hopper, and they support the product.
    pub hopper: bool,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// The tile of a block.
    pub tile: Tile,
    /// Blocks that share a tile's columns.
    pub parts: u32,
}

impl Tile {
    /// Whether it needs the kernels for Hopper.
    pub fn is_hopper(&self) -> bool {
        self.tier != Tier::Ampere
    }

    /// Blocks of a cluster, which have neighbouring tiles of rows.
    pub(crate) fn cluster(&self) -> u32 {
        if let Tier::Hopper(cluster) = self.tier { cluster } else { 1 }
    }

    /// Returns the bytes of shared memory: a step's columns in bf16 for each row in each stage, and
    /// Hopper's barriers, two of 8 bytes a stage.
    pub fn shared(&self) -> u32 {
        let barriers = if self.is_hopper() { 16 } else { 0 };
        self.stages * ((self.rows + self.cols) * DEPTH * 2 + barriers)
    }

    /// Returns the blocks for so many tiles of rows and of outputs, each in `parts`; persistent ones
    /// are no more than the multiprocessors hold.
    pub(crate) fn blocks(&self, rows: u32, across: u32, parts: u32, sms: u32) -> u32 {
        let Tier::Hopper(cluster) = self.tier else { return rows * across };
        let clusters = rows.div_ceil(cluster) * across;
        clusters.min((sms / cluster / parts).max(1)) * cluster
    }

    /// Returns the cycles that a product takes in this form, on a GPU with `sms` multiprocessors.
    fn cycles(&self, shape: Shape, parts: u32, sms: u32) -> f32 {
        let Shape { rows, weights, inner, groups } = shape;
        let unit = self.rows * self.cluster();
        let rows_of_tiles = rows.div_ceil(unit) * self.cluster();
        let tiles = rows_of_tiles * weights.div_ceil(self.cols) * groups;
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
        // It has its blocks' weights to read, at its share of the rate; blocks beyond the first wave go
        // where there is room.
        let bytes = 2.0 * weights as f32 * inner as f32 * groups as f32;
        let rate = MOST.min(SHARE * sms as f32 / blocks.min(sms) as f32);
        let whole = if most > self.resident { sms } else { blocks.div_ceil(most) };
        let reading = bytes / (rate * whole as f32);
        let sums = match parts {
            1 => 0.0,
            // Written, then read, each at half of L2's rate: a thread has but two outputs.
            _ => ADDING + 16.0 * (parts * rows * weights) as f32 / (MOST * sms as f32),
        };
        cycles.max(reading + self.ends as f32) + sums
    }
}

impl Form {
    /// Returns the form for a product on a GPU.
    ///
    /// ```
    /// use gritlm_kernels::tune::{Form, Shape, Target};
    /// let name = |rows, weights, inner, hopper| {
    ///     let shape = Shape { rows, weights, inner, groups: 1 };
    ///     Form::of(shape, Target { sms: 132, shared: 232_448, hopper }).to_string()
    /// };
    /// assert_eq!(name(1, 4096, 4096, false), "16x32");
    /// assert_eq!(name(1, 6144, 4096, false), "16x48");
    /// assert_eq!(name(32, 28672, 4096, false), "32x32");
    /// assert_eq!(name(128, 4096, 14336, false), "128x256 in 8 parts");
    /// assert_eq!(name(4096, 28672, 4096, false), "128x256");
    /// assert_eq!(name(16, 28672, 4096, true), "16x32");
    /// assert_eq!(name(512, 4096, 4096, true), "hopper_128x128");
    /// assert_eq!(name(4096, 28672, 4096, true), "hopper_128x256");
    /// ```
    pub fn of(shape: Shape, target: Target) -> Self {
        let Target { sms, shared, hopper } = target;
        let most = if shape.groups > 1 { 1 } else { PARTS.min(shape.inner.div_ceil(DEPTH).max(1)) };
        let fits = |tile: &&Tile| tile.shared() <= shared && (hopper || !tile.is_hopper());
        let fitting = TILES.iter().filter(fits);
        let forms = fitting.flat_map(|&tile| (1..=most).map(move |parts| Self { tile, parts }));
        let cycles = |form: &Self| form.tile.cycles(shape, form.parts, sms);
        let best = forms.min_by(|a, b| cycles(a).total_cmp(&cycles(b)));
        best.unwrap_or(Self { tile: TILES[0], parts: 1 })
    }

    /// Returns every form, of which [`Form::of`] takes one: each tile, whole and in parts.
    pub fn all() -> impl Iterator<Item = Self> {
        TILES.into_iter().flat_map(|tile| [1, 3].map(|parts| Self { tile, parts }))
    }

    /// Returns the outputs of a block. With `pair`, two rows of the weights make one output.
    pub fn outputs(self, pair: bool) -> u32 {
        self.tile.cols >> u32::from(pair)
    }

    /// Returns the steps of a block over an inner dimension of this length.
    pub(crate) fn split(self, inner: u32) -> u32 {
        inner.div_ceil(DEPTH).div_ceil(self.parts).max(1)
    }

    /// Returns the number of parts that have any steps.
    pub(crate) fn used_parts(self, inner: u32) -> u32 {
        inner.div_ceil(DEPTH).div_ceil(self.split(inner)).max(1)
    }

    /// Returns the iterations of the main loop over an inner dimension of this length, where so many
    /// blocks compute so many tiles; `grouped` where rows are sorted by expert.
    pub(crate) fn steps(self, inner: u32, [tiles, blocks]: [u32; 2], grouped: bool) -> Steps {
        let Tile { rows, cols, .. } = self.tile;
        let split = u64::from(self.split(inner));
        let mean = split * u64::from(tiles) / u64::from(blocks.max(1));
        let most = tiles.div_ceil(blocks.max(1));
        // The blocks of a cluster share the weights; those with a list of tiles make none.
        let sharing = if grouped { 1 } else { self.tile.cluster() };
        let copied = 2 * (rows + cols / sharing) * DEPTH;
        Steps {
            mean: mean as u32,
            most: (split * u64::from(most)) as u32,
            products: u64::from(rows) * u64::from(cols) * u64::from(DEPTH),
            tiles: most,
            copied: if self.tile.is_hopper() { copied } else { 0 },
        }
    }
}

/// Writes the end of the entry point's name, and the number of parts if there are several.
impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.parts {
            1 => f.write_str(self.tile.name),
            parts => write!(f, "{} in {parts} parts", self.tile.name),
        }
    }
}
