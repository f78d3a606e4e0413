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

pub use attention::attention;
pub use format::values;
pub use gate_up::gate_up;
pub use linear::{Number, dot, linear};
pub use pool::{pool, pooled_rows};
pub use rmsnorm::rmsnorm;
pub use rotary::rotary;
pub use route::route;
pub use sample::{log_softmax, sample};
pub use search::{largest_first, search};

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
pub fn relative_error(out: &[f32], reference: &[f32]) -> f64 {
    if out.len() != reference.len() || out.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    if out == reference {
        return 0.0;
    }
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    let difference: f64 = out.iter().zip(reference).map(square).sum();
    difference.sqrt() / dot(reference, reference).sqrt()
}
