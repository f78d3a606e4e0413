//! Shapes of tiles: which there are, which an adapter gets by default, and the launch that
//! follows from them. The functions are pure, so that a choice can be printed and tested without
//! a GPU.

use crate::gpu::Grid;
use gritlm_model::tiles::Shape;
use serde::{Deserialize, Serialize};

/// Invocations of a workgroup that normalises or pools.
pub(crate) const LANES: u32 = 64;

/// Invocations of a workgroup that samples or searches, which passes over a row up to 140 times.
/// Mesa's llvmpipe silently ends the loops of an invocation after 65,535 iterations in all;
/// 32,000 tokens with 64 invocations would take 70,000.
pub(crate) const SORT_LANES: u32 = 256;

/// Maximum rows of a tile of `matvec`.
const FEW_ROWS: u32 = 4;

/// Maximum rows that go to `matvec` on a GPU, in tiles of four; products with more go to `matmul`. Its
/// lowest tile, of 8 rows, would be 2048 outputs wide: two workgroups for 4096 outputs, where `matvec`
/// has 512 for each four rows. Tiles of the same weights are neighbours in the grid, so that the caches
/// give them to all but the first.
const SOME_ROWS: u32 = 16;

/// Keys of a tile of the split form of `attention`, before rounding up to whole steps.
const SPLIT_KEYS: u32 = 256;

/// The tiles of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Invocations of a workgroup of `matmul`.
    pub matmul: u32,
    /// Whether `matmul` stages its operands in workgroup memory.
    pub staged: bool,
    /// Whether neighbours in a subgroup pass operands round, in `matmul` (where it is not
    /// staged), in `matvec` (where `lanes` is 1) and in `attention`. It takes effect only if
    /// subgroups have at least 8 invocations, or in `attention` as many as share their vectors.
    pub shuffle: bool,
    /// Invocations of `matvec` that share their sums; with 1, each has sums of its own.
    pub lanes: u32,
    /// Groups of vectors in a workgroup of `attention`, and vectors of an invocation: 4 or 8.
    pub attention: [u32; 2],
}

/// A launch of `matmul`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matmul {
    wx: u32,
    wy: u32,
    staged: bool,
    pub(crate) shuffle: bool,
}

/// A launch of `matvec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matvec {
    lanes: u32,
    groups: u32,
    rows: u32,
    share: bool,
}

/// Any form of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Many(Matmul),
    Few(Matvec),
    /// On matrix units, with subgroups of this many invocations.
    Matrix(u32),
}

/// A launch of `attention`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attend {
    pub(crate) xt: u32,
    pub(crate) yt: u32,
    rows: u32,
    pub(crate) split: bool,
    pub(crate) shuffle: bool,
}

type Constants = Vec<(&'static str, f64)>;

impl Matmul {
    /// Returns the launch, in which neighbours pass operands round only if `may` is set.
    pub(crate) fn sharing(self, may: bool) -> Self {
        Self { shuffle: self.shuffle && may, ..self }
    }

    pub(crate) fn constants(self) -> Constants {
        let staged = u32::from(self.staged);
        [("WX", self.wx), ("WY", self.wy), ("STAGED", staged)].map(|(n, v)| (n, v.into())).into()
    }
}

impl Matvec {
    pub(crate) fn constants(self) -> Constants {
        let share = u32::from(self.share);
        let all =
            [("LANES", self.lanes), ("GROUPS", self.groups), ("ROWS", self.rows), ("SHARE", share)];
        all.map(|(n, v)| (n, v.into())).into()
    }
}

impl Form {
    pub(crate) fn constants(self) -> Constants {
        match self {
            Self::Many(tile) => tile.constants(),
            Self::Few(tile) => tile.constants(),
            Self::Matrix(lanes) => vec![("LANES", lanes.into())],
        }
    }

    /// Returns whether it uses subgroups, on an adapter that has them.
    pub(crate) fn subgroups(self) -> bool {
        match self {
            Self::Many(tile) => tile.shuffle,
            Self::Few(_) => true,
            Self::Matrix(_) => false,
        }
    }

    /// Returns the rows of a tile.
    pub(crate) fn rows(self) -> u32 {
        match self {
            Self::Many(tile) => 8 * tile.wy,
            Self::Few(tile) => tile.rows,
            Self::Matrix(_) => 32,
        }
    }

    /// Returns the number of workgroups across `outputs` outputs, each of one sum, or of two with
    /// `pair`.
    pub(crate) fn across(self, outputs: u32, pair: bool) -> u32 {
        outputs.div_ceil(self.outputs(pair))
    }

    /// Returns the grid of `across` workgroups for each of `tiles` tiles of rows. Neighbours share the
    /// activations of a tile; with few rows, whose weights are most of what is read, they share weights.
    pub(crate) fn grid(self, across: u32, tiles: u32) -> Grid {
        if self.is_few() { Grid::Of(tiles, across) } else { Grid::Of(across, tiles) }
    }

    /// Returns whether it is `matvec`.
    pub(crate) fn is_few(self) -> bool {
        matches!(self, Self::Few(_))
    }

    /// Returns the outputs of a workgroup, each of one sum, or of two with `pair`.
    pub(crate) fn outputs(self, pair: bool) -> u32 {
        let sums = if pair { 4 } else { 8 };
        match self {
            Self::Many(tile) => sums * tile.wx,
            Self::Few(tile) => sums * tile.groups,
            Self::Matrix(_) => 4 * sums,
        }
    }
}

impl Attend {
    pub(crate) fn constants(self) -> Constants {
        let split = u32::from(self.split);
        let all = [("XT", self.xt), ("YT", self.yt), ("ROWS", self.rows), ("SPLIT", split)];
        all.map(|(n, v)| (n, v.into())).into()
    }

    /// Returns the query vectors of a tile.
    pub(crate) fn rows(self) -> u32 {
        if self.split { self.rows } else { self.rows * self.yt }
    }

    /// Returns the keys of a block.
    pub(crate) fn block(self) -> u32 {
        8 * self.xt
    }

    /// Returns the shape of its workgroups' tiles.
    pub(crate) fn shape(self) -> Shape {
        let step = self.block() * self.yt;
        let keys = self.split.then(|| SPLIT_KEYS.next_multiple_of(step));
        Shape { rows: self.rows(), block: self.block(), keys }
    }
}

impl Tiles {
    /// Returns the tiles of an adapter that has not been tuned: adapters that are CPUs read
    /// through their caches, a GPU through workgroup memory.
    pub fn default_for(cpu: bool, workgroup_bytes: u32) -> Self {
        if cpu {
            Self { matmul: 64, staged: false, shuffle: true, lanes: 1, attention: [4, 8] }
        } else {
            let attention = [8, 4];
            let tiles = Self { matmul: 256, staged: true, shuffle: false, lanes: 64, attention };
            let fits = tiles.workgroup_bytes() <= workgroup_bytes;
            if fits { tiles } else { Self { matmul: 64, ..tiles } }
        }
    }

    /// Returns every combination that tuning tries.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (matmul, staged) in [(64, false), (64, true), (256, false), (256, true)] {
            for lanes in [1, 32, 64] {
                for attention in [[4, 4], [8, 4], [16, 4], [4, 8], [8, 8]] {
                    for shuffle in [false, true] {
                        all.push(Self { matmul, staged, shuffle, lanes, attention });
                    }
                }
            }
        }
        all
    }

    /// Returns the bytes of workgroup memory of the largest staged tile.
    pub fn workgroup_bytes(self) -> u32 {
        let side = self.matmul.isqrt();
        if self.staged { 5 * 16 * 8 * 2 * side } else { 0 }
    }

    /// Returns the launch of a product with `rows` rows, where subgroups have at least `subgroup`
    /// invocations.
    pub(crate) fn product(self, rows: u32, subgroup: u32) -> Form {
        if rows <= if self.is_gpu() { SOME_ROWS } else { FEW_ROWS } {
            return Form::Few(self.matvec(rows.min(FEW_ROWS).next_power_of_two(), subgroup));
        }
        let wy = rows.div_ceil(8).next_power_of_two();
        Form::Many(self.matmul_of(wy.min(self.matmul.isqrt()), subgroup))
    }

    /// Returns whether `matvec` shares sums among invocations that run together.
    fn is_gpu(self) -> bool {
        self.lanes > 1
    }

    fn matmul_of(self, wy: u32, subgroup: u32) -> Matmul {
        let side = self.matmul.isqrt();
        // A lower tile keeps its width, so that both sides fit into 16 or 32 KiB of workgroup
        // memory. A tile that is then too low for 64 invocations is made wide instead and reads
        // from the caches.
        let staged = self.staged && side * wy >= 64;
        let wx = if staged { side } else { self.matmul / wy };
        Matmul { wx, wy, staged, shuffle: self.shuffle && !staged && subgroup >= 8 }
    }

    fn matvec(self, rows: u32, subgroup: u32) -> Matvec {
        let alone = self.lanes == 1;
        let share = alone && self.shuffle && subgroup >= 8;
        Matvec { lanes: self.lanes, groups: if alone { 32 } else { 1 }, rows, share }
    }

    /// Returns the launches of `attention` for heads of `vectors` vectors of 4, first for many
    /// query vectors, then for few. An invocation has 16 columns, and a page whole blocks of
    /// keys.
    pub(crate) fn attention(self, vectors: u32, subgroup: u32) -> [Attend; 2] {
        let xt = vectors.div_ceil(4).next_power_of_two();
        let [yt, rows] = self.attention;
        let shuffle = self.shuffle && subgroup >= xt;
        // For each query vector an invocation holds its weights and their largest in workgroup
        // memory: 36 bytes, of the 16 KiB that every adapter has.
        let many = yt.min(384 / (xt * rows)).max(1);
        // A workgroup of the split form has one subgroup or two, and its step divides a page.
        let few = (32 / xt).min(128 / (8 * xt)).clamp(1, 8);
        [
            Attend { xt, yt: many, rows, split: false, shuffle },
            Attend { xt, yt: few, rows: 4, split: true, shuffle },
        ]
    }

    pub(crate) fn matmuls(self, subgroups: bool) -> Vec<Matmul> {
        let side = self.matmul.isqrt();
        let lowest =
            if self.is_gpu() { (SOME_ROWS + 1).div_ceil(8).next_power_of_two() } else { 1 };
        let heights =
            std::iter::successors(Some(lowest), |wy| Some(wy * 2)).take_while(|wy| *wy <= side);
        let all = heights.map(|wy| self.matmul_of(wy, if subgroups { 8 } else { 0 }));
        all.filter(|tile| tile.shuffle == subgroups).collect()
    }

    pub(crate) fn matvecs(self, subgroups: bool) -> Vec<Matvec> {
        [1, 2, 4].map(|rows| self.matvec(rows, if subgroups { 8 } else { 0 })).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5 to 16 rows of 4096 outputs keep a GPU busy: 512 workgroups for each four rows.
    #[test]
    fn few_rows_have_many_workgroups() {
        let tiles = Tiles::default_for(false, 32 << 10);
        for rows in 1..=16 {
            let form = tiles.product(rows, 32);
            let grid = form.grid(form.across(4096, false), rows.div_ceil(form.rows()));
            let Grid::Of(x, y) = grid else { panic!("{grid:?}") };
            assert_eq!((x, y), (rows.div_ceil(4), 512), "{rows} rows");
        }
        let heights: Vec<u32> = tiles.matmuls(false).iter().map(|tile| 8 * tile.wy).collect();
        assert_eq!(heights, [32, 64, 128]);
        assert!((17..200).all(|rows| heights.contains(&tiles.product(rows, 32).rows())));
    }
}
