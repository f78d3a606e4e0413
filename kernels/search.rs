//! search: scores the corpus stretch by stretch and keeps the best documents on the device; see
//! search.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda};
use gritlm_model::ops::{Match, Result, Search};
use gritlm_model::params;

params! {
    /// Parameters of the scores; the fields are described in search.cu.
    Scores {
        queries: Pointer,
        corpus: Pointer,
        found: Pointer,
        floors: Pointer,
        counts: Pointer,
        rows: u32,
        first: u32,
        count: u32,
        dim: u32,
        query_stride: u32,
        corpus_stride: u32,
        stretch: u32,
        unused: u32,
    }
}

params! {
    /// Parameters of the selection; the fields are described in search.cu.
    Select {
        before: Pointer,
        after: Pointer,
        found: Pointer,
        floors: Pointer,
        counts: Pointer,
        stretch: u32,
        kept: u32,
        top_k: u32,
        unused: u32,
    }
}

/// Queries, and documents, of a block of `search_scores`.
const QUERIES: u32 = 8;
const DOCUMENTS: u32 = 4 * 8;

/// Places in the stretches of all queries together: 64 MiB.
const FOUND: u32 = 1 << 23;

/// Returns the documents of a stretch: many, so that few of them beat the best of the stretches
/// before.
fn stretch(queries: u32, documents: u32) -> u32 {
    (FOUND / queries).clamp(1024, 65536).min(documents)
}

/// Returns the document at a place; see order.cuh.
fn document(place: u64) -> Match {
    let order = (place >> 32) as u32;
    let bits = if order >> 31 == 1 { order & 0x7fff_ffff } else { !order };
    Match { index: !(place as u32), score: f32::from_bits(bits) }
}

pub(crate) fn search(
    device: &Cuda,
    p: Search,
    queries: &Buffer,
    corpus: &Buffer,
) -> Result<Vec<Vec<Match>>> {
    let top_k = p.top_k.min(p.documents);
    if p.queries == 0 || top_k == 0 {
        return Ok(vec![Vec::new(); p.queries as usize]);
    }
    let stretch = stretch(p.queries, p.documents);
    let rows = u64::from(p.queries);
    let found = device.gpu.buffer(8 * rows * u64::from(stretch))?;
    let size = 8 * rows * u64::from(top_k);
    let (mut best, mut after) = (device.gpu.buffer(size)?, device.gpu.buffer(size)?);
    // Floors of 8 bytes and counts of 4 bytes, all zero at first.
    let state = device.gpu.send(&vec![0; 12 * p.queries as usize])?;
    let (floors, counts) = (state.pointer(), state.at(8 * rows));
    let mut kept = 0;
    for first in (0..p.documents).step_by(stretch as usize) {
        let count = stretch.min(p.documents - first);
        let params = Scores {
            queries: queries.raw.pointer(),
            corpus: corpus.raw.pointer(),
            found: found.pointer(),
            floors,
            counts,
            rows: p.queries,
            first,
            count,
            dim: p.dim,
            query_stride: queries.stride,
            corpus_stride: corpus.stride,
            stretch,
            unused: 0,
        };
        let blocks = [p.queries.div_ceil(QUERIES), count.div_ceil(DOCUMENTS), 1];
        let (documents, dim) = (u64::from(count), u64::from(p.dim));
        device.gpu.launch(
            Kernel { source: "search", entry: "search_scores_f32".into() },
            Grid { blocks, threads: 256, shared: 0 },
            &params,
            Work {
                op: "search",
                bytes: 4 * (rows + documents) * dim,
                flops: 2 * rows * documents * dim,
                ..Work::default()
            },
        );
        let params = Select {
            before: best.pointer(),
            after: after.pointer(),
            found: found.pointer(),
            floors,
            counts,
            stretch,
            kept,
            top_k,
            unused: 0,
        };
        device.gpu.launch(
            Kernel { source: "search", entry: "search_select_places".into() },
            // One word for each of 32 warps, and a counter.
            Grid { blocks: [p.queries, 1, 1], threads: 1024, shared: 4 * 33 },
            &params,
            Work { op: "search", bytes: 2 * size, flops: 0, ..Work::default() },
        );
        kept = top_k.min(kept + count);
        std::mem::swap(&mut best, &mut after);
    }
    let bytes = device.gpu.read(&best, 0, size)?;
    let mut places: Vec<u64> =
        bytes.as_chunks::<8>().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
    let found = places.chunks_exact_mut(top_k as usize).map(|places| {
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.iter().map(|&place| document(place)).collect()
    });
    Ok(found.collect())
}
