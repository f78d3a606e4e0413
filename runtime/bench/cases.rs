//! The case table has every op in the shapes that expose mistakes: odd sizes, single rows, empty
//! batches, sizes that no tile divides, grouped-query attention from 1:1 to 8:1, windows shorter
//! than a tile, and pages in random order. Every backend is tested with it, and `gritlm bench
//! ops` times it.

use super::case::{Case, LAYERS, Op, Seq};
use gritlm_model::ops::{
    Attention, Expert, GateUp, LinearAdd, Logits, Mask, Pooling, PoolingSpan, Qkv, RmsNorm,
    SampleParams, Search,
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

/// Returns the table.
pub fn cases() -> Vec<Case> {
    let mut all = cases_without_weights();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        all.extend(cases_with_weights(dtype));
    }
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
        all.extend(cases_with_blocks(dtype));
    }
    all
}

/// Returns each op that takes weights, with quantised ones.
fn cases_with_blocks(dtype: Dtype) -> Vec<Case> {
    let mut all = Vec::new();
    let eps = 1e-5;
    // Rows of few blocks, and of more than a backend is likely to take at once.
    let [short, long] = if dtype.block() == 32 { [96, 1056] } else { [256, 1280] };
    all.push(Case::new(Op::Embed { rows: 130, vocab: 33, dim: short }, dtype));
    let pass = seqs(&[(0, 5, BOTH), (126, 4, CAUSAL), (700, 1, causal(130))]);
    let (rows, heads, kv_heads, head_dim) = (10, 4, 2, 16);
    let p = Qkv { rows, dim: short, heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
    all.push(Case::new(Op::Qkv(p, pass), dtype));
    for (inner, outer) in [(short, 65), (long, 33)] {
        for rows in [1, 3, 4, 5, 40] {
            all.push(Case::new(Op::LinearAdd(LinearAdd { rows, inner, outer }), dtype));
        }
    }
    for rows in [1, 40] {
        all.push(Case::new(Op::GateUp(GateUp { rows, dim: long, hidden: 37 }), dtype));
    }
    for rows in [1, 40] {
        let p = Expert { rows, dim: short, hidden: short, experts: 4, top_k: 2 };
        all.push(Case::new(Op::Expert(p), dtype));
    }
    let (rows, p) = (vec![5, 0, 5, 3], Logits { dim: long, vocab: 97, eps });
    all.push(Case::new(Op::Logits { p, rows }, dtype));
    all
}

fn seqs(of: &[(u32, u32, Mask)]) -> Vec<Seq> {
    of.iter().map(|&(past, rows, mask)| Seq { past, rows, mask }).collect()
}

fn cases_with_weights(dtype: Dtype) -> Vec<Case> {
    let mut all = Vec::new();
    let eps = 1e-5;
    for (rows, vocab, dim) in [(0, 9, 160), (1, 97, 33), (5, 1, 1), (130, 300, 208)] {
        all.push(Case::new(Op::Embed { rows, vocab, dim }, dtype));
    }
    for (rows, dim) in
        [(0, 160), (1, 1), (1, 4096), (2, 4105), (3, 33), (7, 160), (40, 1025), (130, 208)]
    {
        all.push(Case::new(Op::RmsNorm(RmsNorm { rows, dim, eps }), dtype));
    }
    for scale in [1e-3, 1e4] {
        // Small values, where eps matters, and large ones, whose squares are large.
        all.push(Case::scaled(Op::RmsNorm(RmsNorm { rows: 2, dim: 100, eps }), dtype, scale));
    }

    let passes = [
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 5, BOTH), (126, 4, CAUSAL), (700, 1, causal(130)), (32700, 3, causal(12))]),
        seqs(&[(250, 40, CAUSAL), (0, 90, both(3))]),
    ];
    for (dim, heads, kv_heads, head_dim) in
        [(160, 4, 4, 64), (33, 4, 2, 6), (1025, 4, 1, 80), (208, 8, 1, 128)]
    {
        for pass in &passes {
            let rows = pass.iter().map(|s| s.rows).sum();
            let p = Qkv { rows, dim, heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            all.push(Case::new(Op::Qkv(p, pass.clone()), dtype));
        }
    }

    for (inner, outer) in
        [(1, 1), (31, 33), (100, 160), (160, 208), (1024, 64), (1025, 7), (2100, 65)]
    {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 40, 130] {
            all.push(Case::new(Op::LinearAdd(LinearAdd { rows, inner, outer }), dtype));
        }
    }
    for (dim, hidden) in [(31, 33), (160, 208), (1025, 1), (2100, 100)] {
        for rows in [1, 4, 5, 8, 40, 130] {
            all.push(Case::new(Op::GateUp(GateUp { rows, dim, hidden }), dtype));
        }
    }
    // Gates x for which e⁻ˣ overflows.
    let p = GateUp { rows: 3, dim: 160, hidden: 208 };
    all.push(Case::scaled(Op::GateUp(p), dtype, 60.0));

    for (rows, dim, hidden, experts, top_k) in [
        (1, 160, 208, 8, 2),
        (2, 33, 31, 3, 1),
        (7, 100, 1, 4, 4),
        (40, 1025, 65, 8, 2),
        (130, 160, 100, 8, 2),
        (5, 64, 1100, 5, 3),
        // More rows and more experts than a block processes at once.
        (600, 8, 8, 17, 2),
    ] {
        all.push(Case::new(Op::Expert(Expert { rows, dim, hidden, experts, top_k }), dtype));
    }
    for (rows, dim, vocab) in [
        (vec![0], 160, 97),
        (vec![5, 0, 5, 3], 1025, 333),
        (vec![2], 33, 1),
        (vec![1, 3], 4105, 9),
        (vec![9, 8, 7, 6, 1, 0, 12], 2100, 65),
    ] {
        all.push(Case::new(Op::Logits { p: Logits { dim, vocab, eps }, rows }, dtype));
    }
    all
}

fn cases_without_weights() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |op: Op, scale: f32| all.push(Case::scaled(op, Dtype::F32, scale));

    let batches = [
        seqs(&[]),
        seqs(&[(0, 1, CAUSAL)]),
        seqs(&[(0, 40, causal(1)), (0, 40, causal(3)), (0, 41, both(1)), (0, 39, both(12))]),
        seqs(&[(0, 300, CAUSAL), (0, 261, BOTH)]),
        seqs(&[(127, 1, CAUSAL), (128, 1, CAUSAL), (1000, 1, causal(130)), (255, 1, BOTH)]),
        seqs(&[(126, 5, CAUSAL), (250, 40, BOTH), (300, 130, causal(130)), (513, 7, both(130))]),
        seqs(&[(0, 17, BOTH), (260, 3, causal(3)), (400, 1, causal(1)), (0, 129, causal(12))]),
    ];
    for (heads, kv_heads, head_dim) in
        [(4, 4, 64), (4, 2, 128), (8, 2, 80), (8, 1, 64), (4, 1, 6), (8, 1, 128), (6, 2, 64)]
    {
        for batch in &batches {
            let p = Attention { heads, kv_heads, head_dim, layer: LAYERS as u32 - 1 };
            add(Op::Attention(p, batch.clone()), 1.0);
        }
    }
    // Wide heads, under every mask, of many queries and of few.
    let p = Attention { heads: 2, kv_heads: 1, head_dim: 200, layer: LAYERS as u32 - 1 };
    let masks = [CAUSAL, BOTH, causal(50), both(30)];
    let batch = masks.map(|mask| [(0, 70, mask), (200, 3, mask)]).concat();
    add(Op::Attention(p, seqs(&batch)), 1.0);
    // Scores whose exponentials overflow unless the largest score is subtracted.
    let p = Attention { heads: 4, kv_heads: 1, head_dim: 64, layer: LAYERS as u32 - 1 };
    add(Op::Attention(p, seqs(&[(0, 150, BOTH), (3, 20, causal(12))])), 40.0);

    let span =
        |row, rows, skip, pooling, normalize| PoolingSpan { row, rows, skip, pooling, normalize };
    let poolings = [Pooling::Mean, Pooling::WeightedMean, Pooling::Cls, Pooling::LastToken];
    for dim in [1, 160, 1025] {
        add(Op::Pool { dim, spans: vec![] }, 1.0);
        add(Op::Pool { dim, spans: vec![span(2, 1, 0, Pooling::Mean, true)] }, 1.0);
        // Rows between spans hold NaN; every pooling method with and without skip.
        for normalize in [false, true] {
            let mut spans = vec![span(1000, 513, 100, Pooling::WeightedMean, normalize)];
            for (i, pooling) in (0..).zip(poolings) {
                for (row, rows, skip) in [(0, 1, 0), (1, 40, 0), (45, 9, 8), (54, 33, 5)] {
                    spans.push(span(100 * i + row, rows, skip, pooling, normalize));
                }
            }
            add(Op::Pool { dim, spans }, 1.0);
        }
    }

    let greedy = SampleParams { uniform: 0.5, ..SampleParams::greedy() };
    let warm = SampleParams { temperature: 0.8, ..greedy.clone() };
    let draws = vec![
        SampleParams { logprobs: 5, ..greedy.clone() },
        SampleParams { uniform: 0.0, logprobs: 1, ..warm.clone() },
        SampleParams { uniform: 0.77, ..warm.clone() },
        SampleParams { temperature: 2.0, top_k: 1, uniform: 0.99, ..warm.clone() },
        SampleParams { temperature: 5.0, top_k: 7, uniform: 0.999_999_94, ..warm.clone() },
        SampleParams { temperature: 1.5, top_p: 0.9, uniform: 0.83, logprobs: 20, ..warm.clone() },
        SampleParams { top_p: 0.0, uniform: 0.9, ..warm.clone() },
        SampleParams { temperature: 1.7, min_p: 0.05, uniform: 0.97, ..warm.clone() },
        SampleParams { top_k: 30, top_p: 0.95, min_p: 0.01, uniform: 0.61, ..warm.clone() },
        SampleParams { seen: (0..50).collect(), penalty: 1.3, logprobs: 2, ..greedy.clone() },
        SampleParams {
            seen: vec![0, 3, 31],
            penalty: 0.5,
            top_k: 20,
            uniform: 0.4,
            ..warm.clone()
        },
        // Logits flat enough that negative ones, which the penalty multiplies, affect the result.
        SampleParams { seen: (0..40).collect(), penalty: 3.0, temperature: 9.0, ..warm.clone() },
        SampleParams { given: Some(0), ..greedy.clone() },
        SampleParams { given: Some(49), logprobs: 3, seen: vec![49], penalty: 2.0, ..warm.clone() },
    ];
    for (vocab, step) in [(333, 0.0), (1000, 0.0), (1025, 0.5), (50, 4.0)] {
        add(Op::Sample { vocab, draws: draws.clone(), step }, 1.0);
    }
    add(
        Op::Sample {
            vocab: 1,
            draws: vec![SampleParams { logprobs: 3, ..warm.clone() }],
            step: 0.0,
        },
        1.0,
    );
    let usual = SampleParams { temperature: 0.7, top_k: 50, top_p: 0.9, ..warm.clone() };
    let draws = vec![
        greedy,
        SampleParams { top_k: 50, ..warm },
        SampleParams { uniform: 0.0, ..usual.clone() },
        SampleParams { uniform: 0.49, ..usual },
    ];
    add(Op::Sample { vocab: 32000, draws, step: 0.0 }, 1.0);
    add(Op::Sample { vocab: 100, draws: vec![], step: 0.0 }, 1.0);

    for (queries, documents, dim, top_k) in [
        (1, 1, 1, 1),
        (2, 5, 33, 10),
        (3, 4097, 3, 17),
        (5, 10000, 100, 100),
        (1, 9000, 2, 1),
        (130, 70, 64, 8),
        (2, 0, 16, 4),
        (0, 7, 16, 4),
    ] {
        add(Op::Search(Search { queries, documents, dim, top_k }), 1.0);
    }
    all
}
