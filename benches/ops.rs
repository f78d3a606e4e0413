//! Times single operations on the CPU: the shapes of the 1b model, then every case of the case
//! table.
//!
//!     cargo bench --bench ops            all (some minutes)
//!     cargo bench --bench ops -- 1b      the model's shapes only
//!     cargo bench --bench ops -- qkv     one op
//!
//! Each case is checked against its reference formula before it is timed. Throughput counts the
//! bytes that the op must at least move; with many rows the limit is arithmetic instead, so the
//! name of the case contains its GFLOP.

use criterion::{Criterion, Throughput};
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::{Attention, GateUp, LinearAdd, Mask};
use gritlm::model::weights::Dtype;
use gritlm_bench::case::{Case, Op, Seq, Step};
use gritlm_bench::cases::cases;
use std::time::Duration;

/// Returns the 1b model's products with one row (decode) and with the 128 rows of a text, and its
/// attention.
fn model_shapes() -> Vec<Case> {
    let (dim, hidden) = (2048, 5632);
    let attention = Attention { heads: 16, kv_heads: 4, head_dim: 128, layer: 1 };
    let mut ops = Vec::new();
    for rows in [1, 128] {
        ops.push(Op::LinearAdd(LinearAdd { rows, inner: dim, outer: dim }));
        ops.push(Op::GateUp(GateUp { rows, dim, hidden }));
        ops.push(Op::LinearAdd(LinearAdd { rows, inner: hidden, outer: dim }));
    }
    let sequences = [
        (0, 128, Mask::Bidirectional { window: None }),
        (0, 512, Mask::Causal { window: None }),
        (1000, 1, Mask::Causal { window: None }),
    ];
    for (past, rows, mask) in sequences {
        ops.push(Op::Attention(attention, vec![Seq { past, rows, mask }]));
    }
    ops.into_iter()
        .map(|op| {
            let mut case = Case::new(op, Dtype::Bf16);
            case.name = format!("1b {}", case.name);
            case
        })
        .collect()
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .configure_from_args();
    for case in model_shapes().into_iter().chain(cases()) {
        let name = format!("{} {:.3} GFLOP", case.name, case.flops() as f64 / 1e9);
        let mut group = criterion.benchmark_group("cpu");
        group.throughput(Throughput::Bytes(case.bytes().max(1)));
        group.bench_function(name, |bencher| {
            // This runs only for cases that the filter selects.
            check(&case);
            let mut step = case.ready(&Cpu).expect("room");
            bencher.iter(|| step(Step::Launch).expect("a result"));
        });
    }
    criterion.final_summary();
}

fn check(case: &Case) {
    let error = case.error(&case.run(&Cpu).expect("a result"));
    assert!(error <= 1e-5, "{}: wrong result, error {error:.1e}", case.name);
}
