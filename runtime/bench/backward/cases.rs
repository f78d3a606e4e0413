//! The case table of training has every op in the shapes that expose mistakes: odd sizes, single
//! rows, empty batches, tokens and experts that occur often or never, windows shorter than a tile,
//! answers that continue documents.

use super::{Case, Op};
use crate::case::{LAYERS, Seq};
use gritlm_model::ops::{
    AdamW, Attention, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd, Mask,
    Pooling, PoolingSpan, Qkv, RmsNorm,
};
use gritlm_model::weights::Dtype;

const CAUSAL: Mask = Mask::Causal { window: None };
const BOTH: Mask = Mask::Bidirectional { window: None };

fn causal(window: u32) -> Mask {
    Mask::Causal { window: Some(window) }
}

fn both(window: u32) -> Mask {
    Mask::Bidirectional { window: Some(window) }
}

fn seqs(of: &[(u32, u32, Mask)]) -> Vec<Seq> {
    of.iter().map(|&(past, rows, mask)| Seq { past, rows, mask }).collect()
}

/// Returns the table.
pub fn cases() -> Vec<Case> {
    let mut all = cases_without_weights();
    // Trained, frozen as checkpoints have them, and frozen in blocks.
    for dtype in [Dtype::F32, Dtype::Bf16] {
        all.extend(cases_with_weights(dtype));
    }
    for dtype in [Dtype::Q8_0, Dtype::Q6K] {
        all.extend(cases_with_blocks(dtype));
    }
    all
}

fn cases_with_weights(dtype: Dtype) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |op: Op| all.push(Case::of(op, dtype));
    let eps = 1e-5;
    for (rows, dim) in [(0, 160), (1, 1), (1, 4096), (3, 33), (40, 1025), (130, 208)] {
        add(Op::RmsNorm(RmsNorm { rows, dim, eps }));
    }

    let passes = [
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 5, BOTH), (5, 9, CAUSAL), (0, 130, causal(12)), (0, 1, BOTH)]),
    ];
    for (dim, heads, kv_heads, head_dim) in
        [(160, 4, 4, 64), (33, 4, 2, 6), (1025, 4, 1, 80), (208, 8, 1, 128)]
    {
        for pass in &passes {
            let rows = pass.iter().map(|s| s.rows).sum();
            let p = Qkv { rows, dim, heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            add(Op::Qkv(p, pass.clone()));
        }
    }

    for (inner, outer) in [(1, 1), (31, 33), (160, 208), (1024, 64), (1025, 7), (2100, 65)] {
        for rows in [1, 2, 3, 5, 8, 40, 130] {
            add(Op::LinearAdd(LinearAdd { rows, inner, outer }));
        }
    }
    add(Op::LinearAdd(LinearAdd { rows: 0, inner: 33, outer: 31 }));
    for (dim, hidden) in [(31, 33), (160, 208), (1025, 1), (2100, 100)] {
        for rows in [1, 5, 40, 130] {
            add(Op::GateUp(GateUp { rows, dim, hidden }));
        }
    }
    add(Op::GateUp(GateUp { rows: 0, dim: 31, hidden: 33 }));

    for (rows, dim, hidden, experts, top_k) in [
        // Six experts have no row.
        (1, 160, 208, 8, 2),
        (2, 33, 31, 3, 1),
        (7, 100, 1, 4, 4),
        (40, 1025, 65, 8, 2),
        (130, 160, 100, 8, 2),
        (5, 64, 1100, 5, 3),
        // More rows and more experts than a block processes at once.
        (600, 8, 8, 17, 2),
    ] {
        add(Op::Expert(Expert { rows, dim, hidden, experts, top_k }));
    }

    for (rows, dim, vocab) in [
        (vec![], 33, 97),
        (vec![0], 160, 1),
        (vec![5, 0, 3], 1025, 333),
        (vec![9, 8, 7, 6, 1, 0, 12], 33, 32001),
        // The first third of the batch's rows predicts nothing.
        ((150..450).rev().collect(), 65, 203),
        // More logits than 64 MiB hold.
        ((0..530).collect(), 3, 32001),
    ] {
        add(Op::CrossEntropy { p: CrossEntropy { dim, vocab }, rows });
    }
    all
}

/// Returns each op that takes weights, with quantised ones.
fn cases_with_blocks(dtype: Dtype) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |op: Op| all.push(Case::of(op, dtype));
    let dim = if dtype.block() == 32 { 96 } else { 256 };
    let pass = seqs(&[(0, 5, BOTH), (5, 5, CAUSAL)]);
    let p = Qkv { rows: 10, dim, heads: 4, kv_heads: 2, head_dim: 16, layer: LAYERS as u32 - 1 };
    add(Op::Qkv(p, pass));
    for rows in [1, 5, 40] {
        add(Op::LinearAdd(LinearAdd { rows, inner: dim, outer: 65 }));
    }
    add(Op::GateUp(GateUp { rows: 7, dim, hidden: 37 }));
    add(Op::Expert(Expert { rows: 9, dim, hidden: dim, experts: 4, top_k: 2 }));
    add(Op::CrossEntropy { p: CrossEntropy { dim, vocab: 97 }, rows: vec![5, 0, 3] });
    all
}

fn cases_without_weights() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |op: Op| all.push(Case::of(op, Dtype::F32));

    for (rows, cols) in [(1, 1), (3, 33), (130, 1025)] {
        add(Op::Buffers { rows, cols });
    }
    // Tokens that occur often, and tokens that never occur.
    for (rows, vocab, dim) in [(0, 9, 160), (1, 97, 33), (5, 1, 1), (130, 7, 208), (40, 300, 65)] {
        add(Op::Embed { rows, vocab, dim });
    }

    let batches = [
        seqs(&[]),
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 40, causal(1)), (0, 40, causal(3)), (0, 41, both(1)), (0, 39, both(12))]),
        seqs(&[(0, 150, CAUSAL), (0, 131, BOTH)]),
        // Answers that continue documents, over the end of a page, and what continues those.
        seqs(&[(0, 17, BOTH), (17, 9, CAUSAL), (0, 120, BOTH), (120, 21, CAUSAL)]),
        seqs(&[(0, 33, both(5)), (33, 40, causal(12)), (73, 7, BOTH), (80, 1, CAUSAL)]),
        seqs(&[(0, 129, causal(12)), (0, 1, BOTH), (1, 1, CAUSAL), (0, 3, CAUSAL)]),
    ];
    for (heads, kv_heads, head_dim) in
        [(4, 4, 64), (4, 2, 128), (8, 2, 80), (8, 1, 64), (4, 1, 6), (8, 1, 128)]
    {
        for batch in &batches {
            let p = Attention { heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            add(Op::Attention(p, batch.clone()));
        }
    }

    let span =
        |row, rows, skip, pooling| PoolingSpan { row, rows, skip, pooling, normalize: false };
    let poolings = [Pooling::Mean, Pooling::WeightedMean, Pooling::Cls, Pooling::LastToken];
    for dim in [1, 160, 1025] {
        add(Op::Pool { dim, spans: vec![] });
        add(Op::Pool { dim, spans: vec![span(2, 1, 0, Pooling::Mean)] });
        // Every pooling method with and without skip, and rows between spans.
        let mut spans = vec![span(1000, 513, 100, Pooling::WeightedMean)];
        for (i, pooling) in (0..).zip(poolings) {
            for (row, rows, skip) in [(0, 1, 0), (1, 40, 0), (45, 9, 8), (54, 33, 5)] {
                spans.push(span(100 * i + row, rows, skip, pooling));
            }
        }
        add(Op::Pool { dim, spans });
    }

    // `each`: passages of one query, which are its candidates; 0 where all passages are.
    for (queries, each, passages, dim, used, temperature) in [
        (0, 0, 3, 33, 33, 0.02),
        (1, 0, 1, 33, 33, 0.02),
        (5, 0, 5, 33, 33, 0.05),
        (7, 0, 21, 160, 160, 0.02),
        (7, 0, 21, 160, 33, 0.02),
        (40, 0, 130, 1025, 1025, 0.02),
        (9, 4, 36, 65, 65, 0.05),
        (9, 2, 18, 65, 31, 0.05),
    ] {
        let wanted = (0..queries).map(|query| match each {
            0 => Contrast { target: (query * 3) % passages, first: 0, count: passages },
            each => {
                Contrast { target: query * each + query % each, first: query * each, count: each }
            }
        });
        let wanted = wanted.collect();
        let scale = 0.7;
        let p = Contrastive { queries, passages, dim, used, temperature, scale };
        add(Op::Contrastive(p, wanted));
    }

    // A rate so large that an error of the step shows in the weight.
    let (rate, beta1, beta2, epsilon, decay, scale) = (0.5, 0.9, 0.999, 1e-8, 0.1, 0.3);
    for (rows, cols) in [(1, 1), (3, 33), (130, 1025)] {
        for step in [1, 7] {
            let len = rows * cols;
            let p = AdamW { len, step, rate, beta1, beta2, epsilon, decay, scale };
            add(Op::AdamW { p, cols });
        }
    }
    all
}
