//! attention: the forms of the kernel, the tile lists, which are built once per batch, and the
//! launches over them; see attention.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Raw, Steps, Work};
use crate::params::Pointer;
use crate::{Batch, Buffer, Cuda, Format, Pages};
use gritlm_model::ops::{Attention, PAGE, Result, Span};
use gritlm_model::params;
use gritlm_model::tiles::{List, Record, Shape, Tile, mask_code};
use std::sync::{Arc, PoisonError};

/// Names of the masks in the entry points, by mask code.
const MASKS: [&str; 4] = ["both", "causal", "both_window", "causal_window"];

params! {
    /// Parameters; the fields are described in attention.cu.
    AttentionParams {
        q: Pointer,
        keys: Pointer,
        values: Pointer,
        out: Pointer,
        parts: Pointer,
        words: Pointer,
        group: u32,
        kv_heads: u32,
        head_dim: u32,
        width: u32,
        q_stride: u32,
        out_stride: u32,
        tiles: u32,
        scale: f32,
        mates: u32,
        arrived: u32,
    }
}

/// A variant of the kernel, apart from the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// Columns of a row in shared memory.
    pub(crate) width: u32,
    /// Whether each tile has few vectors and only a stretch of the keys.
    pub(crate) split: bool,
}

impl Form {
    /// Returns the form for heads of this width.
    pub(crate) fn of(head_dim: u32, split: bool) -> Self {
        Self { width: head_dim.next_power_of_two().max(64), split }
    }

    /// Returns the query vectors of a tile.
    pub(crate) fn rows(self) -> u32 {
        match (self.split, self.width) {
            (true, _) => 16,
            (false, 256) => 64,
            (false, _) => 128,
        }
    }

    /// Returns the keys of a block.
    pub(crate) fn block(self) -> u32 {
        if self.width == 256 && !self.split { 32 } else { 64 }
    }

    /// Returns how many blocks of keys or values shared memory holds.
    fn ring(self) -> u32 {
        match (self.split, self.width) {
            (false, _) => 3,
            (true, 256) => 2,
            (true, _) => 4,
        }
    }

    /// Returns the bytes of shared memory of a thread block.
    pub(crate) fn shared(self) -> u32 {
        let walking = 2 * self.width * (self.ring() * self.block() + self.rows());
        // The warps' sums, and two numbers for each of their rows.
        let merging = 4 * 4 * 16 * (self.width + 8 + 2);
        if self.split { walking.max(merging) } else { walking }
    }

    /// Returns the iterations of the main loop, one for a block of keys, over these tiles: two
    /// products of the tile's vectors, with keys and with values.
    fn steps(self, tiles: &[Tile]) -> Steps {
        let blocks = |tile: &Tile| tile.keys().div_ceil(self.block());
        let sum: u32 = tiles.iter().map(blocks).sum();
        Steps {
            mean: sum.div_ceil(tiles.len().max(1) as u32),
            most: tiles.iter().map(blocks).max().unwrap_or(0),
            products: 2 * u64::from(self.rows() * self.block()) * u64::from(self.width),
            ..Steps::default()
        }
    }

    /// Returns the entry point for a mask code.
    pub(crate) fn entry(self, mask: usize) -> String {
        let split = if self.split { "_split" } else { "" };
        format!("attention_{}_{}{split}", self.width, MASKS[mask])
    }
}

/// Returns whether a sequence's keys are split among thread blocks, in a batch that has `blocks`
/// thread blocks without splitting. Up to 16 vectors fit one tile of the tensor cores and are
/// always split. More vectors, up to the 128 of a prefill tile, read the keys once per 16
/// vectors, but on all multiprocessors. They are split if at least half of the multiprocessors
/// would otherwise idle and there are many keys.
pub(crate) fn split(vectors: u32, keys: u32, blocks: u64, sms: u32) -> bool {
    vectors <= 16 || (vectors <= 128 && keys >= 8 * vectors && 2 * blocks <= u64::from(sms))
}

/// Returns the keys of a tile of the split form, given the keys of all tiles together: two thread
/// blocks for each multiprocessor, with the number of tiles rounded down to a power of two, so
/// that decode launches the same grid for many steps. A tile of fewer than 128 keys costs more to
/// merge than to process.
pub(crate) fn split_keys(keys: u64, kv_heads: u32, sms: u32) -> u32 {
    let tiles = 1 << (2 * sms / kv_heads).max(1).ilog2();
    let each = keys.div_ceil(tiles).next_multiple_of(64).max(128);
    u32::try_from(each).unwrap_or(1 << 30)
}

/// Tiles of one mask and form, and where they begin in the words. The tiles of the split form are
/// padded with empty ones to a power of two, so that a decode step launches the same grid as the step
/// before and can be replayed. Behind them are, for each tile, the first of those with the same vectors
/// and their number, and then the counters of blocks that have left their parts: the host sends zeros,
/// and the last block leaves zero for the next layer.
#[derive(Debug, Default)]
struct Placed {
    list: List,
    tiles_at: u32,
    mates_at: u32,
    arrived_at: u32,
    /// Number of tiles, padding included.
    tiles: u32,
}

/// A batch's tiles on the device.
#[derive(Debug)]
pub(crate) struct Lists {
    group: u32,
    width: u32,
    raw: Arc<Raw>,
    /// Indexed by whether the form is split, then by mask code.
    lists: [[Placed; 4]; 2],
}

/// Pads a list that is not empty to a power of two.
fn fill<T: Clone + Default>(list: &mut Vec<T>) {
    if !list.is_empty() {
        list.resize(list.len().next_power_of_two(), T::default());
    }
}

/// Appends a list to the words, and returns where it begins.
fn append<T: bytemuck::Pod>(words: &mut Vec<u32>, list: &[T]) -> u32 {
    let at = words.len() as u32;
    words.extend_from_slice(bytemuck::cast_slice(list));
    at
}

/// Returns the lists and all words of a batch: page tables, then tiles and records. A list that
/// grows from token to token keeps its place until it has doubled.
fn lay_out(
    spans: &[Span],
    tables: &[u32],
    (group, kv_heads, head_dim): (u32, u32, u32),
    sms: u32,
) -> ([[Placed; 4]; 2], Vec<u32>) {
    let forms = [false, true].map(|split| Form::of(head_dim, split));
    let spans = || spans.iter().filter(|s| s.rows > 0);
    let tiles = spans().map(|s| u64::from((s.rows * group).div_ceil(forms[0].rows())));
    let blocks = tiles.sum::<u64>() * u64::from(kv_heads);
    let seen = |s: &Span| {
        let (past, total) = (s.past as usize, (s.past + s.rows) as usize);
        (s.mask.keys(total - 1, total).end - s.mask.keys(past, total).start) as u32
    };
    let splits = |s: &Span| split(s.rows * group, seen(s), blocks, sms);
    let work = |s: &Span| u64::from((s.rows * group).div_ceil(16)) * u64::from(seen(s));
    let step = split_keys(spans().filter(|s| splits(s)).map(work).sum(), kv_heads, sms);

    let mut lists: [[Placed; 4]; 2] = Default::default();
    for span in spans() {
        let split = splits(span);
        let form = forms[usize::from(split)];
        let shape = Shape { rows: form.rows(), block: form.block(), keys: split.then_some(step) };
        lists[usize::from(split)][mask_code(span.mask).0].list.add(span, group, shape);
    }
    let mut words = tables.to_vec();
    fill(&mut words);
    for (split, placed) in (0..2).flat_map(|n| (0..4).map(move |mask| (n, mask))) {
        let placed = &mut lists[split][placed];
        if split == 0 {
            placed.list.longest_first();
        }
        let mut tiles = placed.list.tiles.clone();
        if split == 1 {
            fill(&mut tiles);
        }
        placed.tiles = tiles.len() as u32;
        placed.tiles_at = append(&mut words, &tiles);
        if split == 1 {
            let of = |record: &Record| vec![[record.begin, record.count]; record.count as usize];
            let mut mates: Vec<[u32; 2]> = placed.list.records.iter().flat_map(of).collect();
            fill(&mut mates);
            placed.mates_at = append(&mut words, &mates);
            placed.arrived_at = append(&mut words, &vec![0; tiles.len() * kv_heads as usize]);
        }
    }
    fill(&mut words);
    (lists, words)
}

/// Returns the batch's tiles for heads like these, built on the first call.
fn lists(device: &Cuda, batch: &Batch, p: Attention) -> Result<Arc<Lists>> {
    let (group, width) = (p.heads / p.kv_heads, Form::of(p.head_dim, false).width);
    let mut kept = batch.lists.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lists) = kept.as_ref()
        && (lists.group, lists.width) == (group, width)
    {
        return Ok(Arc::clone(lists));
    }
    let heads = (group, p.kv_heads, p.head_dim);
    let (lists, words) = lay_out(&batch.spans, &batch.tables, heads, device.gpu.sms());
    let raw = device.gpu.send(bytemuck::cast_slice(&words))?;
    let lists = Arc::new(Lists { group, width, raw, lists });
    *kept = Some(Arc::clone(&lists));
    Ok(lists)
}

pub(crate) fn attention(
    device: &Cuda,
    p: Attention,
    q: &Buffer,
    pages: &Pages,
    batch: &Batch,
    out: &mut Buffer,
) {
    out.format = Format::Bf16;
    let Some(q) = device.narrowed(q, batch.rows) else { return };
    if let Err(problem) = attend_tiles(device, p, &q, pages, batch, out) {
        device.gpu.fail(problem);
    }
}

fn attend_tiles(
    device: &Cuda,
    p: Attention,
    q: &crate::narrow::Rows,
    pages: &Pages,
    batch: &Batch,
    out: &Buffer,
) -> Result<()> {
    let lists = lists(device, batch, p)?;
    let Attention { kv_heads, head_dim, .. } = p;
    let (group, width) = (lists.group, pages.width);
    let [keys, values] = pages.layer(p.layer);
    // A part has a cached head's columns, the largest score, the sum of weights, and two
    // unused words.
    let part = u64::from(width + 4) * 4;
    let dims = u64::from(kv_heads) * u64::from(head_dim);
    for (split, mask) in (0..2).flat_map(|split| (0..4).map(move |mask| (split, mask))) {
        let (form, placed) = (Form::of(head_dim, split == 1), &lists.lists[split][mask]);
        if placed.tiles == 0 {
            continue;
        }
        let blocks = placed.tiles * kv_heads;
        let parts = match split {
            0 => None,
            _ => Some(device.gpu.buffer(u64::from(blocks) * 16 * part)?),
        };
        let parts_at = parts.as_ref().map_or(Pointer::NULL, |parts| parts.pointer());
        let params = AttentionParams {
            q: q.raw.pointer(),
            keys: keys.pointer(),
            values: values.pointer(),
            out: out.raw.pointer(),
            parts: parts_at,
            words: lists.raw.pointer(),
            group,
            kv_heads,
            head_dim,
            width,
            q_stride: q.stride,
            out_stride: out.stride,
            tiles: placed.tiles_at,
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            mates: placed.mates_at,
            arrived: placed.arrived_at,
        };
        let (bytes, flops) = (4 * dims * placed.list.keys(), 4 * dims * placed.list.pairs);
        device.gpu.launch(
            Kernel { source: "attention", entry: form.entry(mask).into() },
            Grid { blocks: [blocks, 1, 1], threads: 128, shared: form.shared() },
            &params,
            Work { op: "attention", bytes, flops, steps: form.steps(&placed.list.tiles) },
        );
    }
    Ok(())
}

/// The kernels have pages of 128 tokens.
const _: () = assert!(PAGE == 128);

#[cfg(test)]
mod tests {
    use super::{Form, lay_out, split, split_keys};
    use gritlm_model::ops::{Mask, Span};

    #[test]
    fn forms_fit_every_gpu() {
        for (head_dim, width) in [(6, 64), (64, 64), (80, 128), (128, 128), (160, 256)] {
            for split in [false, true] {
                let form = Form::of(head_dim, split);
                assert_eq!(form.width, width);
                // The limit of compute capability 8.6.
                assert!(form.shared() <= 99 << 10);
            }
        }
        assert_eq!(Form::of(96, true).entry(3), "attention_128_causal_window_split");
    }

    #[test]
    fn keys_are_split_where_multiprocessors_are_idle() {
        assert!(split(4, 10, 8, 132));
        assert!(split(120, 4096, 8, 132));
        assert!(!split(120, 4096, 512, 132));
        assert!(!split(120, 120, 8, 132));
        assert_eq!(split_keys(1000, 8, 132), 128);
        assert_eq!(split_keys(5000, 8, 132), 192);
        assert_eq!(split_keys(32 * 4096, 8, 132), 4096);
        assert_eq!(split_keys(4096, 300, 132), 4096);
    }

    /// Checks that neither grids nor places change from token to token, except where a list has
    /// doubled.
    #[test]
    fn decoding_keeps_its_grid() {
        let mut layouts = Vec::new();
        for past in 2100..4000 {
            let mask = Mask::Causal { window: Some(4096) };
            let span = Span { row: 0, rows: 1, past, table: 0, mask };
            let tables = vec![0; past as usize / 128 + 1];
            let (lists, words) = lay_out(&[span], &tables, (4, 8, 128), 132);
            let p = &lists[1][3];
            let layout = (p.tiles_at, p.tiles, p.mates_at, p.arrived_at, words.len());
            assert!(p.list.tiles.len() <= 32 && lists[0].iter().all(|p| p.tiles == 0));
            if layouts.last() != Some(&layout) {
                layouts.push(layout);
            }
        }
        assert_eq!(layouts, [(32, 32, 320, 384, 1024)]);
    }
}
