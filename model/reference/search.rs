//! Exact search: scores of a query against a corpus, and the best documents.

use super::dot;

/// Returns indices ordered by value, largest first; ties go to the lower index.
///
/// # Panics
/// When a value is NaN.
pub fn largest_first<T: PartialOrd>(values: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).expect("no NaN").then(a.cmp(&b)));
    order
}

/// Returns the `top_k` documents with the largest scores, for `query` `(dim)` and `corpus`
/// `(documents, dim)`. A score is the f64 inner product, rounded to f32 as all backends return it:
/// with unit vectors, the cosine.
pub fn search(query: &[f32], corpus: &[f32], top_k: usize) -> Vec<(u32, f32)> {
    let scores: Vec<f32> =
        corpus.chunks(query.len()).map(|document| dot(query, document) as f32).collect();
    let best = largest_first(&scores).into_iter().take(top_k);
    best.map(|document| (document as u32, scores[document])).collect()
}
