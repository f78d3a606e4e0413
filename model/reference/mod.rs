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
//! | `normalize` | `x / ‖x‖` | |
//! | `rmsnorm` | `y = x · w / √(mean(x²) + ε)` | Zhang and Sennrich 2019 |
//! | `rotary` | pairs of a head rotate by position · frequency | Su et al. 2021 |
//! | `attention` | `softmax(q Kᵀ / √d) V` | Vaswani et al. 2017 |
//! | `gate_up` | `silu(W₁ h) ⊙ W₃ h` | Shazeer 2020 |
//! | `route` | softmax over the chosen experts | Jiang et al. 2024 |
//! | `pool` | mean, weighted mean, first or last row | Muennighoff et al. 2024 |
//! | `sample` | penalty, temperature, top-k, top-p, min-p, draw | |
//! | `search` | cosine scores, the largest first | |
//! | `merge` | `W + scale · B A`, a low-rank adapter in its matrix | Hu et al. 2021 |
//! | `format` | what the blocks of quantised weights mean | GGUF |
//!
//! `<name>_backward` has the gradients of `<name>`, for training. `d` in front of a name means the
//! gradient of the loss with respect to it.
//!
//! | file | formula | paper |
//! |---|---|---|
//! | `linear_backward` | `dx = Wᵀ dy`, `dW = dy xᵀ` | |
//! | `rmsnorm_backward` | `dx = (g − x mean(g x) / r²) / r` with `g = w · dy` | |
//! | `rotary_backward` | the rotation back | |
//! | `attention_backward` | `ds = p · (dp − Σ p dp)` with `dp = dout Vᵀ` | Dao 2023 |
//! | `gate_up_backward` | `silu′(x) = σ(x) (1 + x (1 − σ(x)))` | |
//! | `route_backward` | through the weights of the chosen, and the balance of all | Fedus et al. 2022 |
//! | `pool_backward` | each row's share | |
//! | `cross_entropy` | `−ln softmax(logits)_target`, with its gradient | |
//! | `contrastive` | cross-entropy of cosines / temperature, with its gradients | van den Oord et al. 2018 |
//! | `merge_backward` | `dB = scale · dW Aᵀ`, `dA = scale · Bᵀ dW` | Hu et al. 2021 |
//! | `adamw` | a step of the optimiser | Loshchilov and Hutter 2019 |

mod adamw;
mod attention;
mod attention_backward;
mod contrastive;
mod cross_entropy;
mod format;
mod gate_up;
mod gate_up_backward;
mod linear;
mod linear_backward;
mod merge;
mod merge_backward;
mod normalize;
mod pool;
mod pool_backward;
mod rmsnorm;
mod rmsnorm_backward;
mod rotary;
mod rotary_backward;
mod route;
mod route_backward;
mod sample;
mod search;
mod softmax;

pub use adamw::adamw;
pub use attention::{attention, attention_scores};
pub use attention_backward::attention_backward;
pub use contrastive::contrastive;
pub use cross_entropy::cross_entropy;
pub use format::values;
pub use gate_up::gate_up;
pub use gate_up_backward::{gate_up_backward, gated_backward};
pub use linear::{Number, dot, exact, linear, outer, weighted_sum};
pub use linear_backward::linear_backward;
pub use merge::merge;
pub use merge_backward::merge_backward;
pub use normalize::{normalize, normalize_backward};
pub use pool::{pool, pooled_rows};
pub use pool_backward::pool_backward;
pub use rmsnorm::rmsnorm;
pub use rmsnorm_backward::rmsnorm_backward;
pub use rotary::rotary;
pub use rotary_backward::rotary_backward;
pub use route::route;
pub use route_backward::route_backward;
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
