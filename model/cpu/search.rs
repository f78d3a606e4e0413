//! search: inner products of queries with a corpus, fused with the selection of the `top_k`
//! largest per query, so that only a stretch of scores is ever stored. `queries (queries, dim)`,
//! `corpus (documents, dim)`. Bound by reading the corpus.

use super::matmul::{Packed, matmul};
use super::shared::Shared;
use crate::ops::{Match, Search};
use crate::weights::Dtype;

/// Documents scored between two selections of the best: 4096 scores per query take 16 KiB.
const STRETCH: usize = 4096;

pub(super) fn search(p: Search, queries: &[f32], corpus: &[f32]) -> Vec<Vec<Match>> {
    let (n, documents, dim) = (p.queries as usize, p.documents as usize, p.dim as usize);
    let top_k = p.top_k as usize;
    let packed = Packed::plain(n, dim, queries);
    let mut best: Vec<Vec<Match>> = vec![Vec::new(); n];
    let mut scores = vec![0.0; n * STRETCH];
    for first in (0..documents).step_by(STRETCH) {
        let len = STRETCH.min(documents - first);
        let stretch = &corpus[first * dim..];
        let out = Shared::new(&mut scores);
        matmul(
            &packed,
            len,
            &[0],
            |rows, all| {
                let rows = stretch[rows.start * dim..rows.end * dim].chunks_exact(dim);
                all.extend(rows.map(|row| (Dtype::F32, bytemuck::cast_slice(row))));
            },
            |query, cols, values| {
                // SAFETY: matmul emits each row and column exactly once.
                unsafe { out.slice(query * STRETCH + cols.start, values.len()) }
                    .copy_from_slice(values);
            },
        );
        for (best, scores) in best.iter_mut().zip(scores.chunks_exact(STRETCH)) {
            // A score that does not exceed the last of the current best, which all come earlier,
            // cannot be among the best. In a long corpus this skips most scores.
            let floor = best.get(top_k.wrapping_sub(1)).map(|last| last.score);
            let found = (first as u32..).zip(&scores[..len]);
            let found = found.filter(|(_, s)| floor.is_none_or(|f| s.total_cmp(&f).is_gt()));
            best.extend(found.map(|(index, &score)| Match { index, score }));
            best.sort_by(Match::best_first);
            best.truncate(top_k);
        }
    }
    best
}
