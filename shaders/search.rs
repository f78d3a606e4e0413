//! search: scores the corpus stretch by stretch and keeps the best documents on the device; see
//! search.wgsl.

use crate::gpu::{Binding, Grid, Use};
use crate::matrix::Segment;
use crate::product::{Call, Product, bind};
use crate::profile::Work;
use crate::{Buffer, Wgpu, matrix, shader, tune};
use gritlm_model::ops::{Match, Result, Search};
use gritlm_model::params;

/// Maximum documents of a stretch: a multiple of 64, so that a stretch begins where a binding
/// may.
const STRETCH: u32 = 8192;

params! {
    /// Parameters; the fields are described in search.wgsl.
    Select {
        queries: u32,
        count: u32,
        first: u32,
        stride: u32,
        kept: u32,
        top_k: u32,
    }
}

pub(crate) async fn search(
    device: &Wgpu,
    p: Search,
    queries: &Buffer,
    corpus: &Buffer,
) -> Result<Vec<Vec<Match>>> {
    let top_k = p.top_k.min(p.documents);
    if p.queries == 0 || top_k == 0 {
        return Ok(vec![Vec::new(); p.queries as usize]);
    }
    let row_bytes = 4 * u64::from(corpus.stride);
    let fits = (device.gpu.largest() / row_bytes / 64 * 64) as u32;
    let stretch = STRETCH.min(fits.max(64));
    let pairs = 8 * u64::from(p.queries) * u64::from(top_k);
    let mut best = device.gpu.buffer(Use::Work, pairs)?;
    let mut after = device.gpu.buffer(Use::Work, pairs)?;
    let scores = device.buffer_of(p.queries as usize, stretch as usize, Use::Work)?;
    let mut kept = 0;
    let rows = matrix::rows_of(&corpus.raw, corpus.stride, p.documents, p.dim);
    for first in (0..p.documents).step_by(stretch as usize) {
        let count = stretch.min(p.documents - first);
        // The stretch is bound as if it were the whole matrix.
        let part =
            Binding::part(&corpus.raw, u64::from(first) * row_bytes, u64::from(count) * row_bytes);
        let call = Call {
            op: "search",
            shaders: &shader::LINEAR,
            pair: false,
            rows: p.queries,
            a: bind(&queries.raw),
            a_stride: queries.stride,
            w: &rows,
            rest: &[bind(&scores.raw)],
            params: Product { out_stride: scores.stride, ..Product::default() },
        };
        let form = device.form(p.queries);
        let grid = form.grid(form.across(count, false), p.queries.div_ceil(form.rows()));
        let [chunk] = rows.chunks() else { break };
        let segment = Segment { outputs: 0..count, chunks: [chunk, chunk] };
        device.launch_product_on(&call, form, &segment, 0, grid, Some(part));

        let params =
            Select { queries: p.queries, count, first, stride: scores.stride, kept, top_k };
        let work =
            Work { op: "search", bytes: 4 * u64::from(p.queries) * u64::from(count), flops: 0 };
        device.gpu.launch(
            &shader::SEARCH,
            &[("LANES", f64::from(tune::SORT_LANES))],
            bytemuck::bytes_of(&params),
            &[(&scores.raw).into(), (&best).into(), (&after).into()],
            Grid::Of(p.queries, 1),
            work,
        );
        kept = top_k.min(kept + count);
        std::mem::swap(&mut best, &mut after);
    }
    let bytes = device.gpu.read(&best, 0, pairs).await?;
    let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap_or_default());
    let found = bytes.chunks_exact(8 * top_k as usize).map(|query| {
        let pair =
            |b: &[u8; 8]| Match { index: word(&b[..4]), score: f32::from_bits(word(&b[4..])) };
        let mut best: Vec<Match> = query.as_chunks().0.iter().map(pair).collect();
        best.sort_by(Match::best_first);
        best
    });
    Ok(found.collect())
}
