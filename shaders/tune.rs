//! Shapes of tiles: which there are, which an adapter gets, and the launch that follows from them.
//! Pure functions, so that a choice can be printed and tested without a GPU.

use gritlm_model::tiles::Shape;
use serde::{Deserialize, Serialize};

/// Invocations of a workgroup that normalises or pools.
pub(crate) const LANES: u32 = 64;

/// Invocations of a workgroup that samples or searches, which goes over a row up to 140 times. Mesa's
/// llvmpipe ends an invocation's loops, without a word, after 65,535 turns in all: 32,000 tokens by
/// 64 invocations would take 70,000.
pub(crate) const SORT_LANES: u32 = 256;

/// Rows that `matvec` takes at most; more go to `matmul`.
pub(crate) const FEW_ROWS: u32 = 4;

/// Keys that a workgroup of the split form of `attention` takes at least.
const SPLIT_KEYS: u32 = 256;

/// The tiles of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Invocations of a workgroup of `matmul`.
    pub matmul: u32,
    /// Whether `matmul` goes through workgroup memory.
    pub staged: bool,
    /// Whether neighbours in a subgroup pass operands round, in `matmul` (where it is not staged)
    /// and in `attention`. Only where subgroups have at least 8 invocations, or as many as share
    /// their vectors.
    pub shuffle: bool,
    /// Invocations of `matvec` that share a sum; 1 for a row to each.
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
    /// On matrix units, by subgroups of so many invocations.
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
    /// The same, in which neighbours pass operands round only if they may.
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

    /// Whether with subgroups, on an adapter that has them.
    pub(crate) fn subgroups(self) -> bool {
        match self {
            Self::Many(tile) => tile.shuffle,
            Self::Few(_) => true,
            Self::Matrix(_) => false,
        }
    }

    /// Rows of a tile.
    pub(crate) fn rows(self) -> u32 {
        match self {
            Self::Many(tile) => 8 * tile.wy,
            Self::Few(tile) => tile.rows,
            Self::Matrix(_) => 32,
        }
    }

    /// Workgroups across `outputs` outputs, each of one sum or of two.
    pub(crate) fn across(self, outputs: u32, pair: bool) -> u32 {
        let sums = if pair { 4 } else { 8 };
        let outputs_of_one = match self {
            Self::Many(tile) => sums * tile.wx,
            Self::Few(tile) => sums * tile.groups,
            Self::Matrix(_) => 4 * sums,
        };
        outputs.div_ceil(outputs_of_one)
    }
}

impl Attend {
    pub(crate) fn constants(self) -> Constants {
        let split = u32::from(self.split);
        let all = [("XT", self.xt), ("YT", self.yt), ("ROWS", self.rows), ("SPLIT", split)];
        all.map(|(n, v)| (n, v.into())).into()
    }

    /// Vectors of a tile.
    pub(crate) fn rows(self) -> u32 {
        if self.split { self.rows } else { self.rows * self.yt }
    }

    /// Keys of a block.
    pub(crate) fn block(self) -> u32 {
        8 * self.xt
    }

    /// What its workgroups take on.
    pub(crate) fn shape(self) -> Shape {
        let step = self.block() * self.yt;
        let keys = self.split.then(|| SPLIT_KEYS.next_multiple_of(step));
        Shape { rows: self.rows(), block: self.block(), keys }
    }
}

impl Tiles {
    /// What an adapter gets that nobody has tuned: adapters that are CPUs read through their
    /// caches, a GPU through workgroup memory.
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

    /// Every combination that tuning tries.
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

    /// Workgroup memory that the largest staged tile takes.
    pub fn workgroup_bytes(self) -> u32 {
        let side = self.matmul.isqrt();
        if self.staged { 5 * 16 * 8 * 2 * side } else { 0 }
    }

    /// The launch of a product with so many rows, where subgroups have at least `subgroup`
    /// invocations.
    pub(crate) fn product(self, rows: u32, subgroup: u32) -> Form {
        if rows <= FEW_ROWS {
            return Form::Few(self.matvec(rows.next_power_of_two(), subgroup));
        }
        let wy = rows.div_ceil(8).next_power_of_two();
        Form::Many(self.matmul_of(wy.min(self.matmul.isqrt()), subgroup))
    }

    fn matmul_of(self, wy: u32, subgroup: u32) -> Matmul {
        let side = self.matmul.isqrt();
        // Lower tiles keep their width, so that both sides fit into 16 or 32 KiB of workgroup
        // memory; those too low to fill a workgroup so are wide and read from the caches.
        let staged = self.staged && side * wy >= 64;
        let wx = if staged { side } else { self.matmul / wy };
        Matmul { wx, wy, staged, shuffle: self.shuffle && !staged && subgroup >= 8 }
    }

    fn matvec(self, rows: u32, subgroup: u32) -> Matvec {
        let alone = self.lanes == 1;
        let share = alone && self.shuffle && subgroup >= 8;
        Matvec { lanes: self.lanes, groups: if alone { 32 } else { 1 }, rows, share }
    }

    /// The launches of `attention` for heads of so many vectors of 4: 16 columns to an
    /// invocation, and whole blocks of keys to a page. First many vectors, then few.
    pub(crate) fn attention(self, vectors: u32, subgroup: u32) -> [Attend; 2] {
        let xt = vectors.div_ceil(4).next_power_of_two();
        let [yt, rows] = self.attention;
        let shuffle = self.shuffle && subgroup >= xt;
        // An invocation's weights of a vector and their largest are 36 bytes of workgroup memory, of
        // which there are 16 KiB.
        let many = yt.min(384 / (xt * rows)).max(1);
        // A workgroup of the split form is one subgroup or two; a step divides a page.
        let few = (32 / xt).min(128 / (8 * xt)).clamp(1, 8);
        [
            Attend { xt, yt: many, rows, split: false, shuffle },
            Attend { xt, yt: few, rows: 4, split: true, shuffle },
        ]
    }

    pub(crate) fn matmuls(self, subgroups: bool) -> Vec<Matmul> {
        let side = self.matmul.isqrt();
        let heights =
            std::iter::successors(Some(1), |wy| Some(wy * 2)).take_while(|wy| *wy <= side);
        let all = heights.map(|wy| self.matmul_of(wy, if subgroups { 8 } else { 0 }));
        all.filter(|tile| tile.shuffle == subgroups).collect()
    }

    pub(crate) fn matvecs(self, subgroups: bool) -> Vec<Matvec> {
        [1, 2, 4].map(|rows| self.matvec(rows, if subgroups { 8 } else { 0 })).into()
    }
}
