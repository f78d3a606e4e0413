//! `y = W x`: a row of activations times a matrix as checkpoints store it, `(outer, inner)`.

/// A number that f64 holds exactly: activations and weights are f32, intermediate values f64.
pub trait Number: Copy + Into<f64> {}

impl<T: Copy + Into<f64>> Number for T {}

/// Returns `Σ aᵢ bᵢ`. Both have the same length.
pub fn dot<A: Number, B: Number>(a: &[A], b: &[B]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// Returns `Σ weightᵢ rowᵢ`, `(width)`, for rows of that width.
pub fn weighted_sum<'a, A: Number, B: Number + 'a>(
    weights: &[A],
    rows: impl IntoIterator<Item = &'a [B]>,
    width: usize,
) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for (&weight, row) in weights.iter().zip(rows) {
        sum.iter_mut().zip(row).for_each(|(sum, &b)| *sum += weight.into() * b.into());
    }
    sum
}

/// Returns all products, `a bᵀ`, `(a.len(), b.len())`.
pub fn outer<A: Number, B: Number>(a: &[A], b: &[B]) -> Vec<f64> {
    a.iter().flat_map(|&a| b.iter().map(move |&b| a.into() * b.into())).collect()
}

/// Returns the same numbers in f64.
pub fn exact<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// Returns `W x`, `(outer)`, for `x` `(inner)` and the rows of `W`, `(outer, inner)`.
///
/// ```
/// use gritlm_model::reference::linear;
/// assert_eq!(linear(&[1.0, 2.0], &[1.0_f32, 0.0, 3.0, 4.0]), [1.0, 11.0]);
/// ```
pub fn linear<T: Number, W: Number>(x: &[T], w: &[W]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| dot(x, row)).collect()
}
