//! The forms of attention's kernel, which divide query vectors and keys in different ways.

use crate::gpu::Steps;
use gritlm_model::ops::PAGE;
use gritlm_model::tiles::Tile;

/// Names of the masks in the entry points, by mask code.
const MASKS: [&str; 4] = ["both", "causal", "both_window", "causal_window"];

/// A variant of the kernel, apart from the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// Columns of a row in shared memory.
    pub(crate) width: u32,
    pub(crate) kind: Kind,
}

/// How the query vectors and the keys of a sequence are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tiles of many vectors, multiplied by `mma.sync`; a tile and a head a thread block.
    Many,
    /// Tiles of many vectors, those of whole tokens, multiplied by Hopper's `wgmma`. Each thread
    /// block has several tiles and heads.
    Hopper {
        /// Vectors of a tile, at most 128.
        rows: u32,
    },
    /// Tiles of few vectors and only a stretch of the keys.
    Split,
}

impl Form {
    /// Returns the form for heads of this width, `group` query heads for each key/value head.
    pub(crate) fn of(head_dim: u32, group: u32, split: bool, hopper: bool) -> Self {
        let kind = match (split, head_dim) {
            (true, _) => Kind::Split,
            // A box of TMA has the query heads of a group side by side.
            (false, 64 | 128) if hopper && group <= 128 => {
                Kind::Hopper { rows: 128 / group * group }
            }
            _ => Kind::Many,
        };
        Self { width: head_dim.next_power_of_two().max(64), kind }
    }

    fn is_hopper(self) -> bool {
        matches!(self.kind, Kind::Hopper { .. })
    }

    /// Returns the query vectors of a tile.
    pub(crate) fn rows(self) -> u32 {
        match (self.kind, self.width) {
            (Kind::Split, _) => 16,
            (Kind::Hopper { rows }, _) => rows,
            (Kind::Many, 256) => 64,
            (Kind::Many, _) => 128,
        }
    }

    /// Returns the keys of a block.
    pub(crate) fn block(self) -> u32 {
        match (self.kind, self.width) {
            (Kind::Hopper { .. }, _) => PAGE as u32,
            (Kind::Many, 256) => 32,
            _ => 64,
        }
    }

    /// Returns how many blocks of keys or values shared memory holds.
    fn ring(self) -> u32 {
        match (self.kind, self.width) {
            (Kind::Many, _) => 3,
            (Kind::Split, 256) => 2,
            (Kind::Split, _) => 4,
            (Kind::Hopper { .. }, 64) => 8,
            (Kind::Hopper { .. }, _) => 4,
        }
    }

    /// Returns the bytes of shared memory of a thread block.
    pub(crate) fn shared(self) -> u32 {
        let walking = 2 * self.width * (self.ring() * self.block() + self.rows());
        match self.kind {
            Kind::Many => walking,
            // The warps' sums, and two numbers for each of their rows.
            Kind::Split => walking.max(4 * 4 * 16 * (self.width + 8 + 2)),
            // Queries of two tiles, and a barrier for each block that is full, and for each that
            // has been read.
            Kind::Hopper { .. } => {
                let blocks = self.ring() + 2;
                2 * self.width * blocks * 128 + 8 * 2 * blocks
            }
        }
    }

    /// Returns the threads of a thread block.
    pub(crate) fn threads(self) -> u32 {
        if self.is_hopper() { 384 } else { 128 }
    }

    /// Returns the thread blocks for so many items, each a tile and a head.
    pub(crate) fn blocks(self, items: u32, sms: u32) -> u32 {
        if self.is_hopper() { items.min(sms) } else { items }
    }

    /// Returns the iterations of the main loop, one for a block of keys, over these tiles: two
    /// products of the tile's vectors, with keys and with values.
    pub(crate) fn steps(self, tiles: &[Tile], kv_heads: u32, sms: u32) -> Steps {
        let steps = |tile: &Tile| tile.keys().div_ceil(self.block());
        let items = tiles.len() as u32 * kv_heads;
        let blocks = self.blocks(items, sms);
        // As attention_hopper.cuh distributes them; elsewhere a block has one item.
        let item = |round: u32, block: u32| {
            let at = if round.is_multiple_of(2) { block } else { blocks - 1 - block };
            round * blocks + at
        };
        let of_block = |block: u32| {
            let items_of = (0..).map(|round| item(round, block)).take_while(|&item| item < items);
            items_of.map(|item| steps(&tiles[(item / kv_heads) as usize])).sum::<u32>()
        };
        let sum: u32 = tiles.iter().map(steps).sum();
        Steps {
            mean: (sum * kv_heads).div_ceil(blocks.max(1)),
            most: (0..blocks).map(of_block).max().unwrap_or(0),
            products: 2 * u64::from(self.rows() * self.block()) * u64::from(self.width),
            tiles: items.div_ceil(blocks.max(1)),
            // A page of keys and one of values.
            copied: if self.is_hopper() { 2 * 2 * self.block() * self.width } else { 0 },
        }
    }

    /// Returns the entry point for a mask code.
    pub(crate) fn entry(self, mask: usize) -> String {
        let (before, behind) = match self.kind {
            Kind::Many => ("", ""),
            Kind::Hopper { .. } => ("hopper_", ""),
            Kind::Split => ("", "_split"),
        };
        format!("attention_{before}{}_{}{behind}", self.width, MASKS[mask])
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Kind};
    use gritlm_model::ops::{Mask, Span};
    use gritlm_model::tiles::{List, Shape};

    #[test]
    fn forms_fit_every_gpu() {
        for (head_dim, width) in [(6, 64), (64, 64), (80, 128), (128, 128), (160, 256)] {
            for split in [false, true] {
                let form = Form::of(head_dim, 4, split, false);
                assert_eq!(form.width, width);
                // The limit of compute capability 8.6.
                assert!(form.shared() <= 99 << 10);
            }
        }
        assert_eq!(Form::of(96, 4, true, true).entry(3), "attention_128_causal_window_split");
    }

    #[test]
    fn tiles_on_hopper_have_whole_tokens() {
        let of = |head_dim, group, hopper| Form::of(head_dim, group, false, hopper);
        assert_eq!(of(128, 4, true).kind, Kind::Hopper { rows: 128 });
        assert_eq!((of(64, 3, true).rows(), of(64, 100, true).rows()), (126, 100));
        assert_eq!(of(128, 4, true).entry(1), "attention_hopper_128_causal");
        for form in [of(128, 4, false), of(96, 4, true), of(200, 4, true), of(128, 129, true)] {
            assert_eq!(form.kind, Kind::Many);
        }
        assert_eq!(Form::of(128, 4, true, true).kind, Kind::Split);
        for head_dim in [64, 128] {
            // The limit of compute capability 9.0.
            assert!(of(head_dim, 4, true).shared() <= 227 << 10);
        }
    }

    #[test]
    fn blocks_on_hopper_share_the_work() {
        let form = Form::of(128, 4, false, true);
        let mask = Mask::Causal { window: None };
        let span = Span { row: 0, rows: 4096, past: 0, table: 0, mask };
        let mut list = List::default();
        list.add(&span, 4, Shape { rows: form.rows(), block: form.block(), keys: None });
        list.longest_first();
        let steps = form.steps(&list.tiles, 8, 132);
        assert_eq!((steps.mean, steps.most), (128, 128));
    }
}
