//! attention: the tile lists, which are built once per batch, and the launches over them; see
//! attention.wgsl and attention_reduce.wgsl.

use crate::gpu::{Grid, Raw, Use};
use crate::profile::Work;
use crate::{Batch, Buffer, Pages, Wgpu, shader};
use gritlm_model::ops::{Attention, Result};
use gritlm_model::params;
use gritlm_model::tiles::{List, Tile, mask_code};
use std::sync::{Arc, PoisonError};

/// Maximum query vectors of a sequence and key/value head for which the keys are split among
/// workgroups; more vectors are split into tiles of their own.
const FEW_VECTORS: u32 = 16;

params! {
    /// Parameters; the fields are described in attention.wgsl.
    AttentionParams {
        group: u32,
        kv_heads: u32,
        head_dim: u32,
        vectors: u32,
        side: u32,
        width: u32,
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
        side: u32,
        width: u32,
        out_stride: u32,
        part_stride: u32,
        records: u32,
        yt: u32,
    }
}

/// Tiles of one mask and form, and where they and their records begin in the buffer.
#[derive(Debug, Default)]
struct Placed {
    list: List,
    tiles_at: u32,
    records_at: u32,
}

/// A batch's tiles on the device.
#[derive(Debug)]
pub(crate) struct Lists {
    group: u32,
    raw: Arc<Raw>,
    /// Indexed by whether the form is split, then by mask code.
    lists: [[Placed; 4]; 2],
}

/// Returns the batch's tiles for heads grouped like this, built on the first call.
fn lists(device: &Wgpu, batch: &Batch, group: u32, vectors: u32) -> Result<Arc<Lists>> {
    let mut kept = batch.lists.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lists) = kept.as_ref()
        && lists.group == group
    {
        return Ok(Arc::clone(lists));
    }
    let tiles = device.tiles.attention(vectors, device.gpu.subgroup());
    let mut lists: [[Placed; 4]; 2] = Default::default();
    for span in batch.spans.iter().filter(|s| s.rows > 0) {
        let split = usize::from(span.rows * group <= FEW_VECTORS);
        let placed = &mut lists[split][mask_code(span.mask).0];
        placed.list.add(span, group, tiles[split].shape());
    }
    // The split form is left out: its records refer to tiles by index, and its tiles have
    // equal length.
    lists[0].iter_mut().for_each(|placed| placed.list.balance());
    let mut words = batch.tables.clone();
    for Placed { list, tiles_at, records_at } in lists.iter_mut().flatten() {
        *tiles_at = words.len() as u32;
        words.extend_from_slice(bytemuck::cast_slice(&list.tiles));
        *records_at = words.len() as u32;
        words.extend_from_slice(bytemuck::cast_slice(&list.records));
    }
    let raw = device.gpu.send(bytemuck::cast_slice(&words))?;
    let lists = Arc::new(Lists { group, raw, lists });
    *kept = Some(Arc::clone(&lists));
    Ok(lists)
}

pub(crate) fn attention(
    device: &Wgpu,
    p: Attention,
    q: &Buffer,
    pages: &Pages,
    batch: &Batch,
    out: &Buffer,
) {
    let group = p.heads / p.kv_heads;
    let stored = pages.stored;
    let lists = match lists(device, batch, group, stored.vectors) {
        Ok(lists) => lists,
        Err(problem) => return device.gpu.fail(problem),
    };
    let tiles = device.tiles.attention(stored.vectors, device.gpu.subgroup());
    let [keys, values] = pages.layer(p.layer);
    for (split, mask) in (0..2).flat_map(|split| (0..4).map(move |mask| (split, mask))) {
        let (tile, placed) = (tiles[split], &lists.lists[split][mask]);
        let list = &placed.list;
        if list.tiles.is_empty() {
            continue;
        }
        let count = list.tiles.len() as u32;
        // A part has a vector's columns, then a vector of sums.
        let part_stride = 4 * (stored.vectors + 1).next_multiple_of(2);
        let params = AttentionParams {
            group,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            vectors: stored.vectors,
            side: stored.side,
            width: stored.width,
            q_stride: q.stride,
            out_stride: out.stride,
            part_stride,
            tables: 0,
            tiles: placed.tiles_at,
            scale: 1.0 / (p.head_dim as f32).sqrt(),
        };
        let dims = u64::from(p.kv_heads) * u64::from(p.head_dim);
        let bytes = 2 * stored.dtype.bytes((dims * list.keys()) as usize) as u64;
        let flops = 4 * dims * list.pairs;
        let work = Work { op: "attention", bytes, flops };
        let mut constants = stored.constants();
        constants.extend(tile.constants());
        constants.push(("MASK", mask as f64));
        constants.push(("WHOLE", f64::from(u8::from(stored.width.is_multiple_of(4)))));
        let launch = |to: &Arc<Raw>, params: &AttentionParams, count, work| {
            device.gpu.launch_as(
                &shader::ATTENTION,
                tile.shuffle,
                &constants,
                bytemuck::bytes_of(params),
                &[(&q.raw).into(), keys.into(), values.into(), (&lists.raw).into(), to.into()],
                Grid::Of(count, p.kv_heads),
                work,
            );
        };
        if split == 0 {
            // Of many tiles, only so many that no dispatch takes too long.
            let share = device.gpu.share(count, flops) as usize;
            for first in (0..count).step_by(share) {
                let some = (share as u32).min(count - first);
                let part = |whole: u64| whole * u64::from(some) / u64::from(count);
                let work = Work { bytes: part(bytes), flops: part(flops), ..work };
                let tiles = params.tiles + first * (size_of::<Tile>() / 4) as u32;
                launch(&out.raw, &AttentionParams { tiles, ..params }, some, work);
            }
            continue;
        }
        let parts = count * p.kv_heads * tile.yt * 4;
        let Some(parts) = device.work(parts as usize, part_stride as usize, Use::Work) else {
            return;
        };
        launch(&parts.raw, &params, count, work);
        let params = Reduce {
            group,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            vectors: stored.vectors,
            side: stored.side,
            width: stored.width,
            out_stride: out.stride,
            part_stride: part_stride / 4,
            records: placed.records_at,
            yt: tile.yt,
        };
        let bytes = 4 * u64::from(parts.stride) * parts.rows as u64;
        device.gpu.launch(
            &shader::ATTENTION_REDUCE,
            &[],
            bytemuck::bytes_of(&params),
            &[(&parts.raw).into(), (&lists.raw).into(), (&out.raw).into()],
            Grid::Of(4 * list.records.len() as u32, p.kv_heads),
            Work { op: "attention", bytes, flops: 0 },
        );
    }
}
