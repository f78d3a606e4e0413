//! Tiles of attention: which query vectors and keys each workgroup of a GPU processes. The
//! backends build the lists once per batch, and the kernels walk them.
//!
//! A sequence's query tokens and the query heads that share a key/value head are packed into one
//! list of vectors, m = token · group + head, so that they share every key and value that is
//! loaded. A tile holds some of a sequence's vectors and the range of keys that any of them sees;
//! it is processed for each key/value head. In the split form (few vectors, many keys) each tile
//! holds only a stretch of the keys, and a record lists the tiles with partial results of the
//! same vectors.
//!
//! ```
//! use gritlm_model::ops::{Mask, Span};
//! use gritlm_model::tiles::{List, Shape};
//! // Five new tokens of four heads a group, after ten; tiles of 16 vectors, blocks of 4 keys.
//! let span = Span { row: 7, rows: 5, past: 10, table: 0, mask: Mask::Causal { window: Some(6) } };
//! let mut list = List::default();
//! list.add(&span, 4, Shape { rows: 16, block: 4, keys: None });
//! let [a, b] = list.tiles[..] else { panic!() };
//! assert_eq!((a.first..a.end, a.first_key..a.end_key), (0..16, 4..14));
//! assert_eq!((b.first..b.end, b.first_key..b.end_key), (16..20, 8..15));
//! ```

use crate::ops::{Mask, Span};
use std::cmp::Reverse;

/// Size of a workgroup's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Maximum query vectors of a tile.
    pub rows: u32,
    /// Keys of a block. A tile's first key is a multiple of it.
    pub block: u32,
    /// In the split form, the maximum keys of a tile: a multiple of `block`.
    pub keys: Option<u32>,
}

/// A workgroup's tile, in the kernels' layout. All zeros are a tile without vectors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Tile {
    /// The sequence's first row in the batch.
    pub row: u32,
    /// The position of that row.
    pub past: u32,
    /// The tile's first vector, counted within the sequence.
    pub first: u32,
    /// The vector after its last one.
    pub end: u32,
    /// Where the sequence's page table begins.
    pub table: u32,
    /// Keys of the sequence.
    pub total: u32,
    /// The mask's window; 0 for none.
    pub window: u32,
    /// The tile's first key.
    pub first_key: u32,
    /// The key after its last one.
    pub end_key: u32,
}

/// Vectors and the tiles with partial results of them, in the kernels' layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Record {
    /// The sequence's first row in the batch.
    pub row: u32,
    /// The first vector, counted within the sequence.
    pub first: u32,
    /// The vector after the last one.
    pub end: u32,
    /// Index of the first tile in the list.
    pub begin: u32,
    /// Number of tiles.
    pub count: u32,
}

/// Tiles of one kind of mask and one form.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The tiles.
    pub tiles: Vec<Tile>,
    /// Records of the split form, which refer to tiles by index.
    pub records: Vec<Record>,
    /// Number of pairs of query vector and key in the tiles.
    pub pairs: u64,
}

/// Returns the mask's code in the kernels (bit 0: causal; bit 1: with a window), and its window
/// or 0.
pub fn mask_code(mask: Mask) -> (usize, u32) {
    let (causal, window) = match mask {
        Mask::Causal { window } => (1, window),
        Mask::Bidirectional { window } => (0, window),
    };
    (causal + 2 * usize::from(window.is_some()), window.unwrap_or(0))
}

impl Tile {
    /// Returns the number of pairs of query vector and key.
    pub fn work(&self) -> u32 {
        (self.end - self.first) * self.keys()
    }

    /// Returns the number of keys.
    pub fn keys(&self) -> u32 {
        self.end_key - self.first_key
    }
}

impl List {
    /// Adds the tiles of a sequence with `group` query heads per key/value head.
    pub fn add(&mut self, span: &Span, group: u32, shape: Shape) {
        let &Span { row, rows, past, table, mask } = span;
        let (total, vectors, window) = (past + rows, rows * group, mask_code(mask).1);
        for first in (0..vectors).step_by(shape.rows as usize) {
            let end = (first + shape.rows).min(vectors);
            let keys = |m: u32| mask.keys((past + m / group) as usize, total as usize);
            // The first and the last visible key never move back from one query to the next.
            let (from, until) = (keys(first).start as u32, keys(end - 1).end as u32);
            let from = from / shape.block * shape.block;
            let begin = self.tiles.len() as u32;
            let step = shape.keys.unwrap_or(until - from).max(1);
            for first_key in (from..until).step_by(step as usize) {
                let end_key = (first_key + step).min(until);
                let tile = Tile { row, past, first, end, table, total, window, first_key, end_key };
                self.tiles.push(tile);
            }
            if shape.keys.is_some() {
                let count = self.tiles.len() as u32 - begin;
                self.records.push(Record { row, first, end, begin, count });
            }
            self.pairs += u64::from(end - first) * u64::from(until - from);
        }
    }

    /// Sorts tiles longest first, for GPUs that assign work dynamically. Not for the split form.
    pub fn longest_first(&mut self) {
        self.tiles.sort_by_key(|tile| Reverse(tile.work()));
    }

    /// Alternates long and short tiles: the longest, the shortest, the second longest and so on.
    /// Every stretch of the list is then about the same work, for adapters that give each core a
    /// stretch, and the longest tile is not last, for adapters that assign work dynamically. A
    /// causal mask's tiles otherwise grow from first to last. Not for the split form.
    pub fn balance(&mut self) {
        self.longest_first();
        let middle = self.tiles.len().div_ceil(2);
        let mut short = self.tiles.split_off(middle).into_iter().rev();
        let pairs = self.tiles.drain(..).flat_map(|long| [Some(long), short.next()]);
        self.tiles = pairs.flatten().collect();
    }

    /// Returns the number of keys of all tiles.
    pub fn keys(&self) -> u64 {
        self.tiles.iter().map(|tile| u64::from(tile.keys())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{List, Record, Shape, mask_code};
    use crate::ops::{Mask, Span};

    /// Returns spans of every mask, with pasts and rows around the edges of blocks and tiles.
    fn spans() -> impl Iterator<Item = Span> {
        let windows = [None, Some(1), Some(5), Some(64), Some(1000)];
        let causal = windows.map(|window| Mask::Causal { window });
        let both = windows.map(|window| Mask::Bidirectional { window });
        let masks = causal.into_iter().chain(both);
        let of = |mask, (past, rows)| Span { row: 3, rows, past, table: 9, mask };
        let places = [(0, 1), (0, 40), (63, 2), (64, 17), (300, 1), (129, 130)];
        masks.flat_map(move |mask| places.map(|place| of(mask, place)))
    }

    /// Checks that each visible pair is in exactly one tile, and that each block is seen by a
    /// vector of its tile.
    #[test]
    fn tiles_cover_what_is_seen_once() {
        for (span, group) in spans().flat_map(|span| [1, 3, 8].map(|group| (span, group))) {
            for keys in [None, Some(64), Some(128)] {
                let shape = Shape { rows: 16, block: 32, keys };
                let mut list = List::default();
                list.add(&span, group, shape);
                list.balance();
                let total = span.past + span.rows;
                let mut count = vec![0u64; (span.rows * group * total) as usize];
                let sees = |m: u32| {
                    let keys = span.mask.keys((span.past + m / group) as usize, total as usize);
                    keys.start as u32..keys.end as u32
                };
                for t in &list.tiles {
                    assert_eq!((t.row, t.past, t.table, t.total), (3, span.past, 9, total));
                    assert_eq!(t.window, mask_code(span.mask).1);
                    assert!(t.first < t.end && t.end - t.first <= shape.rows);
                    assert!(t.first_key % shape.block == 0 && t.keys() <= keys.unwrap_or(total));
                    for block in (t.first_key..t.end_key).step_by(shape.block as usize) {
                        let seen = |m| sees(m).start < block + shape.block && block < sees(m).end;
                        assert!((t.first..t.end).any(seen), "{span:?} {t:?} {block}");
                    }
                    for m in t.first..t.end {
                        (t.first_key..t.end_key).for_each(|k| count[(m * total + k) as usize] += 1);
                    }
                }
                for m in 0..span.rows * group {
                    assert!(sees(m).all(|k| count[(m * total + k) as usize] == 1), "{span:?} {m}");
                }
                assert!(count.iter().all(|&n| n <= 1));
                assert_eq!(list.pairs, count.iter().sum::<u64>());
                assert_eq!(list.pairs, list.tiles.iter().map(|t| u64::from(t.work())).sum::<u64>());
            }
        }
    }

    #[test]
    fn records_name_the_tiles_of_the_same_vectors() {
        let mask = Mask::Causal { window: None };
        let mut list = List::default();
        for (row, rows, past) in [(0, 1, 299), (1, 5, 60), (6, 1, 0)] {
            let span = Span { row, rows, past, table: 0, mask };
            list.add(&span, 4, Shape { rows: 16, block: 64, keys: Some(128) });
        }
        let record = |row, first, end, begin, count| Record { row, first, end, begin, count };
        let records = [
            record(0, 0, 4, 0, 3),
            record(1, 0, 16, 3, 1),
            record(1, 16, 20, 4, 1),
            record(6, 0, 4, 5, 1),
        ];
        assert_eq!(list.records, records);
        for r in &list.records {
            let tiles = &list.tiles[r.begin as usize..][..r.count as usize];
            assert!(tiles.iter().all(|t| (t.row, t.first, t.end) == (r.row, r.first, r.end)));
            assert!(tiles.windows(2).all(|t| t[0].end_key == t[1].first_key));
        }
        assert_eq!(list.keys(), 300 + 64 + 65 + 1);
    }

    #[test]
    fn balanced_tiles_alternate() {
        let mask = Mask::Causal { window: None };
        let mut list = List::default();
        let span = Span { row: 0, rows: 5, past: 0, table: 0, mask };
        list.add(&span, 1, Shape { rows: 1, block: 1, keys: None });
        let order = |list: &List| list.tiles.iter().map(|t| t.first).collect::<Vec<_>>();
        list.longest_first();
        assert_eq!(order(&list), [4, 3, 2, 1, 0]);
        list.balance();
        assert_eq!(order(&list), [4, 0, 3, 1, 2]);
    }
}
