//! Inputs that only training has: batches whose sequences continue each other, targets and weights
//! of losses, and what is in a buffer before an op adds to it.

use super::Case;
use crate::case::Seq;
use gritlm_model::ops::{AdamW, CrossEntropy, Expert, KvShape, Layout, Logits, Span};

/// Streams of random numbers, from this one on, for what buffers hold that are added to.
const BEFORE: u64 = 100;

impl Case {
    /// Returns what the `n`th output holds before the op adds to it: small values, which do not
    /// hide an error in what is added.
    pub(super) fn before(&self, n: u64, len: u32) -> Vec<f32> {
        self.activations(BEFORE + n, len).into_iter().map(|v| v / 8.0).collect()
    }

    /// Returns values whose squares do not add up in f32: the first is 2²⁴, beyond which f32 has
    /// only even numbers.
    pub(super) fn peaked(&self, len: u32) -> Vec<f32> {
        let mut values = self.activations(1, len);
        values[0] = 4096.0;
        values
    }

    /// Returns a batch of these sequences. One with a past has the page table of the sequence that
    /// it continues.
    pub(super) fn joined(
        &self,
        sequences: &[Seq],
        kv_heads: u32,
        head_dim: u32,
    ) -> (Layout, KvShape) {
        let (mut documents, mut document_of): (Vec<Seq>, _) = (Vec::new(), Vec::new());
        for s in sequences {
            match documents.last_mut() {
                Some(document) if s.past > 0 => {
                    assert_eq!(document.rows, s.past, "{s:?} continues the sequence before it");
                    document.rows += s.rows;
                }
                _ => documents.push(Seq { past: 0, ..*s }),
            }
            document_of.push(documents.len() - 1);
        }
        let (mut layout, pool) = self.layout(&documents, kv_heads, head_dim);
        let mut row = 0;
        let spans = sequences.iter().zip(document_of).map(|(s, document)| {
            let table = layout.spans[document].table;
            row += s.rows;
            Span { row: row - s.rows, rows: s.rows, past: s.past, table, mask: s.mask }
        });
        layout.spans = spans.collect();
        (layout, pool)
    }

    /// Returns the gradient of each expert's probability.
    pub(super) fn balance(&self, p: &Expert) -> Vec<f32> {
        self.activations(6, p.experts)
    }

    /// Returns a target and a weight for each row that predicts.
    pub(super) fn predicted(&self, p: &CrossEntropy, rows: &[u32]) -> (Vec<u32>, Vec<f32>) {
        let count = rows.len() as u32;
        let mut scales = self.activations(4, count);
        scales.iter_mut().step_by(3).for_each(|scale| *scale = 0.0);
        (self.tokens(count, p.vocab).tokens, scales)
    }

    /// Returns hidden states, with NaN in rows that do not predict.
    pub(super) fn predicting(&self, p: &CrossEntropy, rows: &[u32]) -> Vec<f32> {
        self.wanted(&Logits { dim: p.dim, vocab: p.vocab, eps: 0.0 }, rows)
    }

    /// Returns both moments: zero before the first step.
    pub(super) fn moments(&self, p: &AdamW) -> [Vec<f32>; 2] {
        if p.step == 1 {
            return [0; 2].map(|_| vec![0.0; p.len as usize]);
        }
        let squares = self.activations(3, p.len).into_iter().map(|v| v * v);
        [self.activations(2, p.len), squares.collect()]
    }
}
