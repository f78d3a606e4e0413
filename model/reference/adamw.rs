//! AdamW (Loshchilov and Hutter 2019): a step of one weight.

use crate::ops::AdamW;

/// Returns the weight and its two moments after a step. `gradient` is not yet scaled.
///
/// ```
/// use gritlm_model::{ops::AdamW, reference::adamw};
/// let (beta1, beta2, epsilon, decay) = (0.5, 0.75, 0.0, 0.5);
/// let p = AdamW { len: 1, step: 1, rate: 0.25, beta1, beta2, epsilon, decay, scale: 2.0 };
/// // The first step is as long for any gradient: the rate, besides the decay of the weight.
/// assert_eq!(adamw(&p, 2.0, [0.0, 0.0], 8.0), (8.0 - 0.25 * (1.0 + 0.5 * 8.0), [2.0, 4.0]));
/// ```
pub fn adamw(p: &AdamW, gradient: f64, [m, v]: [f64; 2], w: f64) -> (f64, [f64; 2]) {
    let [beta1, beta2] = [p.beta1, p.beta2].map(f64::from);
    let g = f64::from(p.scale) * gradient;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    // Both moments begin as zero: divided by this, they are means of the gradients.
    let since = |beta: f64| 1.0 - beta.powi(p.step as i32);
    let root = (v / since(beta2)).sqrt();
    let step = m / since(beta1) / (root + f64::from(p.epsilon)) + f64::from(p.decay) * w;
    (w - f64::from(p.rate) * step, [m, v])
}
