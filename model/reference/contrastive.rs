//! InfoNCE (van den Oord et al. 2018): the cross-entropy of a query's candidates, whose logits are
//! cosines divided by a temperature. Matryoshka embeddings (Kusupati et al. 2022) compare leading
//! columns only, normalised by themselves.

use super::{Number, cross_entropy, dot, normalize, normalize_backward};
use crate::ops::{Contrast, Contrastive};

/// Returns the losses, `(queries)`, and the gradients of `scale` times their sum, `dqueries`
/// `(queries, dim)` and `dpassages` `(passages, dim)`, for vectors that are not normalised.
pub fn contrastive<T: Number>(
    p: &Contrastive,
    wanted: &[Contrast],
    queries: &[T],
    passages: &[T],
) -> [Vec<f64>; 3] {
    let (dim, used) = (p.dim as usize, p.used as usize);
    let unit = |vectors: &[T]| vectors.chunks(dim).map(|v| normalize(&v[..used])).collect();
    let [query_units, passage_units]: [Vec<Vec<f64>>; 2] = [unit(queries), unit(passages)];
    let mut losses = Vec::new();
    let mut dquery_units = vec![vec![0.0; used]; query_units.len()];
    let mut dpassage_units = vec![vec![0.0; used]; passage_units.len()];
    for (i, wanted) in wanted.iter().enumerate() {
        let candidates = wanted.first as usize..(wanted.first + wanted.count) as usize;
        let score = |j: usize| dot(&query_units[i], &passage_units[j]) / f64::from(p.temperature);
        let scores: Vec<f64> = candidates.clone().map(score).collect();
        let (loss, dscores) = cross_entropy(&scores, (wanted.target - wanted.first) as usize);
        losses.push(loss);
        for (j, dscore) in candidates.zip(dscores) {
            let dcosine = f64::from(p.scale) * dscore / f64::from(p.temperature);
            for c in 0..used {
                dquery_units[i][c] += dcosine * passage_units[j][c];
                dpassage_units[j][c] += dcosine * query_units[i][c];
            }
        }
    }
    let back = |vectors: &[T], dunits: Vec<Vec<f64>>| {
        let unused = || std::iter::repeat_n(0.0, dim - used);
        let pairs = vectors.chunks(dim).zip(dunits);
        pairs
            .flat_map(|(v, du)| normalize_backward(&v[..used], &du).into_iter().chain(unused()))
            .collect()
    };
    [losses, back(queries, dquery_units), back(passages, dpassage_units)]
}
