//! attention: the tile lists, which are built once per batch, and the launches over them; see
//! attention.cu.

mod form;

use crate::driver::Grid;
use crate::gpu::{Kernel, Raw, Steps, Work};
use crate::narrow::Rows;
use crate::params::Pointer;
use crate::tensor::{Tensor, TensorMap, dimension};
use crate::{Batch, Buffer, Cuda, Format, Pages};
use form::{Form, Kind};
use gritlm_model::ops::{Attention, PAGE, Result, Span};
use gritlm_model::params;
use gritlm_model::tiles::{List, Record, Shape, mask_code};
use std::sync::{Arc, PoisonError};

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

params! {
    /// Parameters of the Hopper form, aligned to 64 bytes in CUDA C++; see attention_hopper.cuh.
    AttentionMaps {
        q: TensorMap,
        keys: TensorMap,
        values: TensorMap,
        p: AttentionParams,
        items: u32,
        unused: [u32; 9],
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
/// padded with empty ones to a power of two, so that a decode step launches the same grid as the
/// step before and can be replayed. Behind them are, for each tile, the first of those with the
/// same vectors and their number, and then the counters of blocks that have left their parts: the
/// host sends zeros, and the last block leaves zero for the next layer.
#[derive(Debug, Default)]
struct Placed {
    list: List,
    tiles_at: u32,
    mates_at: u32,
    arrived_at: u32,
    /// Number of tiles, padding included.
    tiles: u32,
    steps: Steps,
}

/// A batch's tiles on the device.
#[derive(Debug)]
pub(crate) struct Lists {
    group: u32,
    /// Without splitting and with it.
    forms: [Form; 2],
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
    forms: [Form; 2],
    (group, kv_heads): (u32, u32),
    sms: u32,
) -> ([[Placed; 4]; 2], Vec<u32>) {
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
        placed.steps = forms[split].steps(&placed.list.tiles, kv_heads, sms);
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
    let (group, hopper) = (p.heads / p.kv_heads, device.gpu.has_hopper("attention"));
    let forms = [false, true].map(|split| Form::of(p.head_dim, group, split, hopper));
    let mut kept = batch.lists.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lists) = kept.as_ref()
        && (lists.group, lists.forms) == (group, forms)
    {
        return Ok(Arc::clone(lists));
    }
    let (heads, sms) = ((group, p.kv_heads), device.gpu.sms());
    let (lists, words) = lay_out(&batch.spans, &batch.tables, forms, heads, sms);
    let raw = device.gpu.send(bytemuck::cast_slice(&words))?;
    let lists = Arc::new(Lists { group, forms, raw, lists });
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
    q: &Rows,
    pages: &Pages,
    batch: &Batch,
    out: &Buffer,
) -> Result<()> {
    let lists = lists(device, batch, p)?;
    let Attention { kv_heads, head_dim, .. } = p;
    let (group, width, sms) = (lists.group, pages.width, device.gpu.sms());
    let [keys, values] = pages.layer(p.layer);
    // A part has a cached head's columns, the largest score, the sum of weights, and two
    // unused words.
    let part = u64::from(width + 4) * 4;
    let dims = u64::from(kv_heads) * u64::from(head_dim);
    for (split, mask) in (0..2).flat_map(|split| (0..4).map(move |mask| (split, mask))) {
        let (form, placed) = (lists.forms[split], &lists.lists[split][mask]);
        if placed.tiles == 0 {
            continue;
        }
        let items = placed.tiles * kv_heads;
        let parts = match split {
            0 => None,
            _ => Some(device.gpu.buffer(u64::from(items) * 16 * part)?),
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
        let kernel = Kernel { source: "attention", entry: form.entry(mask).into() };
        let grid = Grid {
            blocks: [form.blocks(items, sms), 1, 1],
            threads: form.threads(),
            shared: form.shared(),
        };
        let work = Work { op: "attention", bytes, flops, steps: placed.steps };
        match form.kind {
            Kind::Hopper { .. } => {
                let maps = AttentionMaps { p: params, items, ..maps(device, p, q, pages, batch)? };
                device.gpu.launch(kernel, grid, &maps, work);
            }
            Kind::Many | Kind::Split => device.gpu.launch(kernel, grid, &params, work),
        }
    }
    Ok(())
}

/// Returns the parameters of the Hopper form with its maps. Columns are copied 64 at a time,
/// queries a tile's tokens and heads, keys and values a page.
fn maps(
    device: &Cuda,
    p: Attention,
    q: &Rows,
    pages: &Pages,
    batch: &Batch,
) -> Result<AttentionMaps> {
    let (group, page) = (p.heads / p.kv_heads, PAGE as u32);
    let (columns, driver) = (dimension(p.head_dim, 1, 64), &device.gpu.driver);
    let dim = u64::from(p.head_dim);
    let queries = [
        columns,
        dimension(p.heads, dim, group),
        dimension(batch.rows, q.stride.into(), 128 / group),
    ];
    let heads = u64::from(p.kv_heads) * u64::from(page);
    let cached = [
        columns,
        dimension(page, dim, page),
        dimension(p.kv_heads, u64::from(page) * dim, 1),
        dimension(pages.shape.pages as u32, heads * dim, 1),
    ];
    let map = |raw: &Raw, dimensions: &[_]| Tensor { first: raw.pointer(), dimensions }.map(driver);
    let [keys, values] = pages.layer(p.layer);
    Ok(AttentionMaps {
        q: map(&q.raw, &queries)?,
        keys: map(keys, &cached)?,
        values: map(values, &cached)?,
        ..AttentionMaps::default()
    })
}

/// The kernels have pages of 128 tokens.
const _: () = assert!(PAGE == 128);

#[cfg(test)]
mod tests {
    use super::{Form, lay_out, split, split_keys};
    use gritlm_model::ops::{Mask, Span};

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
            let forms = [false, true].map(|split| Form::of(128, 4, split, true));
            let (lists, words) = lay_out(&[span], &tables, forms, (4, 8), 132);
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
