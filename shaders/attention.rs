//! attention: tile lists, made once per batch, and the launches over them; see attention.wgsl and
//! attention_reduce.wgsl.

use crate::gpu::{Grid, Raw, Use};
use crate::params::params;
use crate::profile::Work;
use crate::tune::Attend as Tile;
use crate::{Batch, Buffer, Pages, Wgpu, shader};
use gritlm_model::ops::{Attention, Mask, PAGE, Result, Span};
use std::sync::{Arc, PoisonError};

/// Query vectors of a sequence and key/value head up to which the keys are split among workgroups
/// instead: more make tiles of their own.
const FEW_VECTORS: u32 = 16;

params! {
    /// Parameters; the fields are described in attention.wgsl.
    Attend {
        group: u32,
        kv_heads: u32,
        head_dim: u32,
        vectors: u32,
        q_stride: u32,
        out_stride: u32,
        part_stride: u32,
        tables: u32,
        tiles: u32,
        scale: f32,
    }
}

params! {
    /// Parameters of the reduction; the fields are described in attention_reduce.wgsl.
    Reduce {
        group: u32,
        kv_heads: u32,
        head_dim: u32,
        vectors: u32,
        out_stride: u32,
        part_stride: u32,
        records: u32,
        yt: u32,
    }
}

/// Tiles of one mask and form.
#[derive(Debug, Default)]
struct List {
    /// As the shader reads them: row, past, first vector, end, table, keys, window, first key, end.
    tiles: Vec<[u32; 9]>,
    /// For the split form: row, first vector, end, first tile, tiles.
    records: Vec<[u32; 5]>,
    /// Pairs of query and key that its tiles look at, for the profile.
    pairs: u64,
    /// Where both are in the buffer.
    tiles_at: u32,
    records_at: u32,
}

/// A batch's tiles on the device.
#[derive(Debug)]
pub(crate) struct Lists {
    group: u32,
    raw: Arc<Raw>,
    /// By whether split, then by mask.
    lists: [[List; 4]; 2],
}

/// The mask's number in the shader, and its window.
fn mask_code(mask: Mask) -> (usize, u32) {
    let (causal, window) = match mask {
        Mask::Causal { window } => (1, window),
        Mask::Bidirectional { window } => (0, window),
    };
    (causal + 2 * usize::from(window.is_some()), window.unwrap_or(0))
}

impl List {
    fn add(&mut self, span: &Span, group: u32, tile: Tile, split: bool) {
        let total = span.past + span.rows;
        let vectors = span.rows * group;
        let window = mask_code(span.mask).1;
        for first in (0..vectors).step_by(tile.rows() as usize) {
            let end = (first + tile.rows()).min(vectors);
            let keys = |m: u32| span.mask.keys((span.past + m / group) as usize, total as usize);
            // A later query sees no earlier first and no earlier last key.
            let (first_key, end_key) = (keys(first).start as u32, keys(end - 1).end as u32);
            let first_key = first_key / tile.block() * tile.block();
            let begin = self.tiles.len() as u32;
            let step = tile.keys(end_key - first_key).max(1);
            for key in (first_key..end_key).step_by(step as usize) {
                let until = (key + step).min(end_key);
                let (row, past, table) = (span.row, span.past, span.table);
                self.tiles.push([row, past, first, end, table, total, window, key, until]);
            }
            if split {
                let count = self.tiles.len() as u32 - begin;
                self.records.push([span.row, first, end, begin, count]);
            }
            self.pairs += u64::from(end - first) * u64::from(end_key - first_key);
        }
    }
}

/// The longest tile, the shortest, the second longest and so on: every stretch of the list is about
/// the same work, for adapters that give each core a stretch, and the longest is not last, for those
/// that give work to whoever is free. A causal mask's tiles grow from first to last.
fn balance(tiles: &mut Vec<[u32; 9]>) {
    tiles.sort_by_key(|t| std::cmp::Reverse((t[3] - t[2]) * (t[8] - t[7])));
    let shortest_first: Vec<_> = tiles.drain(tiles.len().div_ceil(2)..).rev().collect();
    let mut short = shortest_first.into_iter();
    *tiles = tiles.drain(..).flat_map(|long| [Some(long), short.next()]).flatten().collect();
}

impl Wgpu {
    /// The batch's tiles for heads grouped like this, made on the first call.
    fn lists(&self, batch: &Batch, group: u32, vectors: u32) -> Result<Arc<Lists>> {
        let mut kept = batch.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lists) = kept.as_ref()
            && lists.group == group
        {
            return Ok(Arc::clone(lists));
        }
        let tiles = self.tiles.attention(vectors, self.gpu.subgroup());
        let mut lists: [[List; 4]; 2] = Default::default();
        for span in batch.spans.iter().filter(|s| s.rows > 0) {
            let split = usize::from(span.rows * group <= FEW_VECTORS);
            let list = &mut lists[split][mask_code(span.mask).0];
            list.add(span, group, tiles[split], split == 1);
        }
        // The split form's records name tiles by their place, and theirs are of one length.
        lists[0].iter_mut().for_each(|list| balance(&mut list.tiles));
        let mut words = batch.tables.clone();
        for list in lists.iter_mut().flatten() {
            list.tiles_at = words.len() as u32;
            words.extend(list.tiles.iter().flatten());
            list.records_at = words.len() as u32;
            words.extend(list.records.iter().flatten());
        }
        let raw = self.gpu.send(bytemuck::cast_slice(&words))?;
        let lists = Arc::new(Lists { group, raw, lists });
        *kept = Some(Arc::clone(&lists));
        Ok(lists)
    }

    pub(crate) fn attend(
        &self,
        p: Attention,
        q: &Buffer,
        pages: &Pages,
        batch: &Batch,
        out: &Buffer,
    ) {
        let group = p.heads / p.kv_heads;
        let lists = match self.lists(batch, group, pages.vectors) {
            Ok(lists) => lists,
            Err(problem) => return self.gpu.fail(problem),
        };
        let tiles = self.tiles.attention(pages.vectors, self.gpu.subgroup());
        let [keys, values] = pages.layer(p.layer);
        for (split, mask) in (0..2).flat_map(|split| (0..4).map(move |mask| (split, mask))) {
            let (tile, list) = (tiles[split], &lists.lists[split][mask]);
            if list.tiles.is_empty() {
                continue;
            }
            let count = list.tiles.len() as u32;
            // A vector's columns, and a vector of sums.
            let part_stride = 4 * (pages.vectors + 1).next_multiple_of(2);
            let params = Attend {
                group,
                kv_heads: p.kv_heads,
                head_dim: p.head_dim,
                vectors: pages.vectors,
                q_stride: q.stride,
                out_stride: out.stride,
                part_stride,
                tables: 0,
                tiles: list.tiles_at,
                scale: 1.0 / (p.head_dim as f32).sqrt(),
            };
            let dims = u64::from(p.kv_heads) * u64::from(p.head_dim);
            let seen: u64 = list.tiles.iter().map(|t| u64::from(t[8] - t[7])).sum();
            let work =
                Work { op: "attention", bytes: 8 * dims * seen, flops: 4 * dims * list.pairs };
            let mut constants = tile.constants();
            constants.push(("MASK", mask as f64));
            constants.push(("WHOLE", f64::from(u8::from(p.head_dim.is_multiple_of(4)))));
            let launch = |to: &Arc<Raw>| {
                self.gpu.launch_as(
                    &shader::ATTENTION,
                    tile.shuffle,
                    &constants,
                    bytemuck::bytes_of(&params),
                    &[(&q.raw).into(), keys.into(), values.into(), (&lists.raw).into(), to.into()],
                    Grid::Of(count, p.kv_heads),
                    work,
                );
            };
            if split == 0 {
                launch(&out.raw);
                continue;
            }
            let parts = count * p.kv_heads * tile.yt * 4;
            let Some(parts) = self.work(parts as usize, part_stride as usize, Use::Work) else {
                return;
            };
            launch(&parts.raw);
            let params = Reduce {
                group,
                kv_heads: p.kv_heads,
                head_dim: p.head_dim,
                vectors: pages.vectors,
                out_stride: out.stride,
                part_stride: part_stride / 4,
                records: list.records_at,
                yt: tile.yt,
            };
            let bytes = 4 * u64::from(parts.stride) * parts.rows as u64;
            self.gpu.launch(
                &shader::ATTENTION_REDUCE,
                &[],
                bytemuck::bytes_of(&params),
                &[(&parts.raw).into(), (&lists.raw).into(), (&out.raw).into()],
                Grid::Of(4 * list.records.len() as u32, p.kv_heads),
                Work { op: "attention", bytes, flops: 0 },
            );
        }
    }
}

/// Tokens of a page, as the shaders have it.
const _: () = assert!(PAGE == 128);
