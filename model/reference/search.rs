//! Exact search: scores of a query against a corpus, and the best documents.

use super::{Number, dot};
use crate::ops::Match;

/// Returns indices ordered by value, largest first; ties go to the lower index. NaN counts as larger
/// than any number.
pub fn largest_first<T: Number>(values: &[T]) -> Vec<usize> {
    // Adding zero makes both zeros one.
    let key = |i: usize| -> f64 { values[i].into() + 0.0 };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order
}

/// Returns the `top_k` documents with the largest scores, for `query` `(dim)` and `corpus`
/// `(documents, dim)`. A score is the f64 inner product, rounded to f32 as all backends return it:
/// with unit vectors, the cosine.
pub fn search(query: &[f32], corpus: &[f32], top_k: usize) -> Vec<Match> {
    let scores: Vec<f32> =
        corpus.chunks(query.len()).map(|document| dot(query, document) as f32).collect();
    let best = largest_first(&scores).into_iter().take(top_k);
    best.map(|document| Match { index: document as u32, score: scores[document] }).collect()
}
