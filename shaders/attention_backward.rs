//! attention_kept, attention_backward: the lists of tiles, and the launches over them; see
//! attention_pair.wgsl, attention_kept.wgsl, attention_delta.wgsl, attention_dq.wgsl and
//! attention_dkv.wgsl.

use crate::gpu::{Grid, Use};
use crate::product::bind;
use crate::profile::Work;
use crate::{Batch, Buffer, Pages, Wgpu, shader};
use gritlm_model::ops::{Attention, Mask, Span};
use gritlm_model::params;
use gritlm_model::tiles::{List, Shape, mask_code};

/// Query vectors and keys of a block.
const SIDE: u32 = 16;

/// Windows longer than this are all the same; the shaders add a window to a position.
const LONGEST: u32 = 1 << 30;

params! {
    /// Parameters; the fields are described in attention_pair.wgsl.
    AttentionTiles {
        group: u32,
        kv_heads: u32,
        head_dim: u32,
        vectors: u32,
        q_stride: u32,
        out_stride: u32,
        to_stride: u32,
        lse_stride: u32,
        tiles: u32,
        jobs: u32,
        tables: u32,
        rows: u32,
        scale: f32,
    }
}

/// Words of a tile of keys.
const KEYS: usize = 6;

/// Returns the page tables followed by the tiles of query vectors, the number of tiles, and of their
/// pairs of vector and key.
fn queries(batch: &Batch, group: u32) -> (Vec<u32>, u32, u64) {
    let (mut words, mut count, mut pairs) = (batch.tables.clone(), 0, 0);
    for span in batch.spans.iter().filter(|span| span.rows > 0) {
        let mut list = List::default();
        list.add(span, group, Shape { rows: SIDE, block: SIDE, keys: None });
        for mut tile in list.tiles {
            tile.window = tile.window.min(LONGEST);
            words.extend_from_slice(bytemuck::cast_slice(&[tile]));
            words.push(mask_code(span.mask).0 as u32);
            count += 1;
        }
        pairs += list.pairs;
    }
    (words, count, pairs)
}

/// Returns the page tables followed by the tiles of keys and by their jobs, the number of tiles, and
/// where the jobs begin.
fn keys(batch: &Batch, group: u32) -> (Vec<u32>, u32, u32) {
    let (mut tiles, mut jobs, mut count) = (Vec::new(), Vec::new(), 0);
    // A span with a past continues the rows before it.
    for run in batch.spans.chunk_by(|_, next| next.past > 0) {
        let (first, last) = (run[0].row, run[run.len() - 1]);
        let total: u32 = run.iter().map(|span| span.rows).sum();
        for key in (0..total).step_by(SIDE as usize) {
            let end = (key + SIDE).min(total);
            tiles.extend([first, last.table, key, end, count]);
            for span in run {
                let tokens = seeing(span, key, end);
                if tokens.is_empty() {
                    continue;
                }
                let (code, window) = mask_code(span.mask);
                let (row, past) = (span.row, span.past);
                jobs.extend([row, past, past + span.rows, window.min(LONGEST), code as u32]);
                jobs.extend([tokens.start - past, tokens.end - past].map(|token| token * group));
                count += 1;
            }
            tiles.push(count);
        }
    }
    let (mut words, count) = (batch.tables.clone(), (tiles.len() / KEYS) as u32);
    words.extend(tiles);
    let at = words.len() as u32;
    words.extend(jobs);
    (words, count, at)
}

/// Returns the positions of a span's rows that may see any of the keys `key..end`.
fn seeing(span: &Span, key: u32, end: u32) -> std::ops::Range<u32> {
    let total = span.past + span.rows;
    if key >= total {
        return 0..0;
    }
    let (first, window) = match span.mask {
        Mask::Causal { window } => (key, window),
        Mask::Bidirectional { window } => {
            (window.map_or(0, |window| (key + 1).saturating_sub(window)), window)
        }
    };
    let last = window.map_or(total, |window| total.min((end - 1).saturating_add(window)));
    first.max(span.past)..last
}

fn tiles(p: Attention, pages: &Pages, batch: &Batch) -> AttentionTiles {
    AttentionTiles {
        group: p.heads / p.kv_heads,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        vectors: pages.stored.vectors,
        tiles: batch.tables.len() as u32,
        rows: batch.rows,
        scale: 1.0 / (p.head_dim as f32).sqrt(),
        ..AttentionTiles::default()
    }
}

pub(crate) fn attention_kept(
    device: &Wgpu,
    p: Attention,
    q: &Buffer,
    pages: &Pages,
    batch: &Batch,
    out: &Buffer,
    lse: &Buffer,
) {
    let (words, count, pairs) = queries(batch, p.heads / p.kv_heads);
    let lists = match device.gpu.send(bytemuck::cast_slice(&words)) {
        Ok(lists) => lists,
        Err(problem) => return device.gpu.fail(problem),
    };
    let [keys, values] = pages.layer(p.layer);
    let params = AttentionTiles {
        q_stride: q.stride,
        to_stride: out.stride,
        lse_stride: lse.stride,
        ..tiles(p, pages, batch)
    };
    let dims = u64::from(p.kv_heads) * u64::from(p.head_dim);
    device.gpu.launch(
        &shader::ATTENTION_KEPT,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&q.raw), bind(keys), bind(values), bind(&lists), bind(&out.raw), bind(&lse.raw)],
        Grid::Of(count, p.kv_heads),
        Work { op: "attention", bytes: dims * pairs / 2, flops: 4 * dims * pairs },
    );
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn attention_backward(
    device: &Wgpu,
    p: Attention,
    q: &Buffer,
    pages: &Pages,
    batch: &Batch,
    out: &Buffer,
    lse: &Buffer,
    dout: &Buffer,
    [dq, dk, dv]: [&Buffer; 3],
) {
    let op = "attention_backward";
    let group = p.heads / p.kv_heads;
    let (query_words, query_tiles, pairs) = queries(batch, group);
    let (key_words, key_tiles, jobs) = keys(batch, group);
    let send = |words: &[u32]| device.gpu.send(bytemuck::cast_slice(words));
    let (query_list, key_list) = match (send(&query_words), send(&key_words)) {
        (Ok(queries), Ok(keys)) => (queries, keys),
        (Err(problem), _) | (_, Err(problem)) => return device.gpu.fail(problem),
    };
    let count = batch.rows * p.heads;
    let Some(stats) = device.work(1, 2 * count as usize, Use::Work) else { return };
    let [keys, values] = pages.layer(p.layer);
    let common = AttentionTiles {
        q_stride: q.stride,
        out_stride: dout.stride,
        jobs,
        ..tiles(p, pages, batch)
    };
    let dims = u64::from(p.kv_heads) * u64::from(p.head_dim);

    let params = AttentionTiles { to_stride: out.stride, lse_stride: lse.stride, ..common };
    let bytes = 8 * u64::from(count) * u64::from(p.head_dim);
    device.gpu.launch(
        &shader::ATTENTION_DELTA,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&out.raw), bind(&dout.raw), bind(&lse.raw), bind(&stats.raw)],
        Grid::flat(count.div_ceil(64)),
        Work { op, bytes, flops: bytes / 4 },
    );

    let params = AttentionTiles { to_stride: dq.stride, ..common };
    let inputs = [bind(&q.raw), bind(keys), bind(values)];
    let shared = [bind(&dout.raw), bind(&stats.raw)];
    let bindings = [&inputs[..], &[bind(&query_list)], &shared, &[bind(&dq.raw)]].concat();
    device.gpu.launch(
        &shader::ATTENTION_DQ,
        &[],
        bytemuck::bytes_of(&params),
        &bindings,
        Grid::Of(query_tiles, p.kv_heads),
        Work { op, bytes: dims * pairs / 2, flops: 6 * dims * pairs },
    );

    let params = AttentionTiles { to_stride: dk.stride, ..common };
    let bindings =
        [&inputs[..], &[bind(&key_list)], &shared, &[bind(&dk.raw), bind(&dv.raw)]].concat();
    device.gpu.launch(
        &shader::ATTENTION_DKV,
        &[],
        bytemuck::bytes_of(&params),
        &bindings,
        Grid::Of(key_tiles, p.kv_heads),
        Work { op, bytes: dims * pairs / 2, flops: 8 * dims * pairs },
    );
}
