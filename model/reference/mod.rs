//! The specification: every operation as the formula in the papers, in f64, without SIMD, threads
//! or `unsafe`. All backends are compared with it, including [`crate::cpu`].
//!
//! Read it beside the papers: nothing here is fast, and no engine calls it. Each file has the
//! name of its operation in all languages of the project, and works on one row, one head or one
//! sequence. Packing, paging and batching of rows are left to the backends.
//!
//! | file | formula | paper |
//! |---|---|---|
//! | `linear` | `y = W x` | |
//! | `softmax` | `exp(xᵢ) / Σⱼ exp(xⱼ)` | |
//! | `rmsnorm` | `y = x · w / √(mean(x²) + ε)` | Zhang and Sennrich 2019 |
//! | `rotary` | pairs of a head rotate by position · frequency | Su et al. 2021 |
//! | `attention` | `softmax(q Kᵀ / √d) V` | Vaswani et al. 2017 |
//! | `gate_up` | `silu(W₁ h) ⊙ W₃ h` | Shazeer 2020 |
//! | `route` | softmax over the chosen experts | Jiang et al. 2024 |
//! | `pool` | mean, weighted mean, first or last row | Muennighoff et al. 2024 |
//! | `sample` | penalty, temperature, top-k, top-p, min-p, draw | |
//! | `search` | cosine scores, the largest first | |
//! | `format` | what the blocks of quantised weights mean | GGUF |

mod attention;
mod format;
mod gate_up;
mod linear;
mod pool;
mod rmsnorm;
mod rotary;
mod route;
mod sample;
mod search;
mod softmax;

pub use attention::{attention, attention_scores};
pub use format::values;
pub use gate_up::gate_up;
pub use linear::{Number, dot, linear};
pub use pool::{normalize, pool, pooled_rows};
pub use rmsnorm::rmsnorm;
pub use rotary::rotary;
pub use route::route;
pub use sample::sample;
pub use search::{largest_first, search};
pub use softmax::{log_softmax, log_sum_exp, softmax, softmax_backward};

/// Returns `‖out − reference‖ / ‖reference‖` in f64, the one measure of error in this project. It
/// is 0 for equal values, even if all are 0, and infinite if the lengths differ or any value of
/// `out` is not finite.
///
/// ```
/// use gritlm_model::reference::relative_error;
/// assert_eq!(relative_error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
/// assert_eq!(relative_error(&[3.0, 2.0], &[0.0, 2.0]), 1.5);
/// assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY);
/// ```
pub fn relative_error<A: Number, B: Number>(out: &[A], reference: &[B]) -> f64 {
    let finite = |&value: &A| Into::<f64>::into(value).is_finite();
    if out.len() != reference.len() || !out.iter().all(finite) {
        return f64::INFINITY;
    }
    let difference = out.iter().zip(reference).map(|(&a, &b)| a.into() - b.into());
    let difference: Vec<f64> = difference.collect();
    // Also where both are zero.
    if difference.iter().all(|&d| d == 0.0) {
        return 0.0;
    }
    (dot(&difference, &difference) / dot(reference, reference)).sqrt()
}
