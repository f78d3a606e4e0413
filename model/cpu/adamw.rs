//! adamw: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! w ← w − rate · (m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + decay · w), with g = scale · gradient.
//! Bound by memory: 28 bytes an element.

use crate::ops::AdamW;
use rayon::prelude::*;

/// Elements of one task.
const PIECE: usize = 1 << 14;

pub(super) fn adamw(p: AdamW, gradient: &[f32], [m, v]: [&mut [f32]; 2], w: &mut [f32]) {
    let step = p.step as i32;
    let corrected = |beta: f32| (1.0 - f64::from(beta).powi(step)) as f32;
    let (first, second) = (corrected(p.beta1), corrected(p.beta2));
    let len = p.len as usize;
    w[..len]
        .par_chunks_mut(PIECE)
        .zip(m[..len].par_chunks_mut(PIECE))
        .zip(v[..len].par_chunks_mut(PIECE))
        .zip(gradient[..len].par_chunks(PIECE))
        .for_each(|(((w, m), v), gradient)| {
            for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(gradient) {
                let g = p.scale * g;
                *m = p.beta1 * *m + (1.0 - p.beta1) * g;
                *v = p.beta2 * *v + (1.0 - p.beta2) * g * g;
                let direction = *m / first / ((*v / second).sqrt() + p.epsilon);
                *w -= p.rate * (direction + p.decay * *w);
            }
        });
}
