//! The router's auxiliary loss, which keeps the experts of a mixture equally busy (Fedus et al.
//! 2021, as transformers computes it for Mixtral): experts · Σₑ Fₑ Pₑ, where F is the number of
//! assignments to an expert by rows, and P the mean of its probability, both over all layers and
//! rows of a chunk. F counts as constant, so the gradient with respect to each probability is
//! experts · Fₑ / (layers · rows).

use gritlm_model::config::Experts;

/// What the routers of all layers have done with a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Routers {
    experts: Experts,
    /// Assignments to each expert, and sums of its probabilities.
    assigned: Vec<f64>,
    probabilities: Vec<f64>,
    /// Rows of all layers together.
    rows: f64,
}

impl Routers {
    pub(crate) fn new(experts: Experts) -> Self {
        let zeros = vec![0.0; experts.count];
        Self { experts, assigned: zeros.clone(), probabilities: zeros, rows: 0.0 }
    }

    /// Adds a layer's logits, `(rows, experts)`.
    pub(crate) fn add(&mut self, logits: &[f32]) {
        for logits in logits.chunks_exact(self.experts.count) {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order[..self.experts.top_k].iter().for_each(|&expert| self.assigned[expert] += 1.0);
            let weight = |logit: &f32| f64::from(logit - logits[order[0]]).exp();
            let sum: f64 = logits.iter().map(weight).sum();
            for (probability, logit) in self.probabilities.iter_mut().zip(logits) {
                *probability += weight(logit) / sum;
            }
            self.rows += 1.0;
        }
    }

    /// Returns the loss.
    pub(crate) fn loss(&self) -> f64 {
        let pairs = self.assigned.iter().zip(&self.probabilities);
        let sum: f64 = pairs.map(|(assigned, probability)| assigned * probability).sum();
        self.experts.count as f64 * sum / (self.rows * self.rows)
    }

    /// Returns the gradient of `weight` times the loss with respect to each row's probability of
    /// each expert, the same for all rows, `(experts)`.
    pub(crate) fn balance(&self, weight: f64) -> Vec<f32> {
        let scale = weight * self.experts.count as f64 / (self.rows * self.rows);
        self.assigned.iter().map(|assigned| (scale * assigned) as f32).collect()
    }
}
