//! The gradients of the reference against differences of its forward formulas, and the backends'
//! against the reference: the case table of training.

use crate::shaders::{covered, open_all};
use crate::support::{long, say};
use fastrand::Rng;
use gritlm_bench::backward::{Case, cases};
use gritlm_model::cpu::Cpu;
use gritlm_model::ops::{AdamW, Backward, Contrast, Contrastive, Merge, Pooling, PoolingSpan};
use gritlm_model::reference::{
    self, adamw, attention, attention_backward, attention_scores, contrastive, cross_entropy, dot,
    gate_up, gate_up_backward, gated_backward, linear, linear_backward, log_sum_exp, normalize,
    normalize_backward, pool, pool_backward, relative_error, rmsnorm, rmsnorm_backward, rotary,
    rotary_backward, route, route_backward, softmax,
};
use gritlm_model::weights::{Dtype, Tensor};
use pollster::block_on;
use std::collections::BTreeSet;

/// Largest relative error of a backend that computes and stores in f32.
const F32: f64 = 1e-5;

/// Runs those cases of the table that `chosen` takes and whose weights a backend takes, twice: each output must be within
/// the bound, and the second time have the bits of the first.
pub(crate) fn check<O: Backward>(ops: &O, bound: f64, chosen: impl Fn(&Case) -> bool) {
    let (mut failed, mut worst, mut flops, mut bytes) = (Vec::new(), (0.0, String::new()), 0, 0);
    let mut all = cases();
    all.retain(|case| ops.takes(case.dtype) && chosen(case));
    for case in &all {
        let out = case.run(ops).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        if bits(&case.run(ops).unwrap()) != bits(&out) {
            failed.push(format!("{}: other bits the second time", case.name));
        }
        for (output, error) in case.errors(&out, &case.expected()) {
            let line = format!("{}: {output}: relative error {error:.1e}", case.name);
            // NaN is no error that can be bounded.
            if error.is_nan() || error > bound {
                failed.push(line);
            } else if error > worst.0 {
                worst = (error, line);
            }
        }
        flops += case.flops();
        bytes += case.bytes();
    }
    say(&format!(
        "gradients covered on {}: {} cases, {:.2} GFLOP, {:.2} GB, worst {}",
        ops.device(),
        all.len(),
        flops as f64 / 1e9,
        bytes as f64 / 1e9,
        worst.1
    ));
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), all.len(), failed.join("\n"));
}

#[test]
fn every_case_on_the_cpu() {
    check(&Cpu, F32, |_| true);
}

/// All cases on the first adapter, and on all adapters in the long form; else those of few operations,
/// whose frozen weights are in one format. It is software adapters that take time.
#[test]
fn every_case_on_every_adapter() {
    let gpus = open_all();
    covered("gradients::every_case_on_every_adapter", &gpus);
    for (n, gpu) in gpus.iter().enumerate() {
        let all = n == 0 || long();
        let few =
            |case: &Case| case.flops() < 1 << 22 && (!case.frozen() || case.dtype == Dtype::Q6K);
        check(gpu, F32, |case| all || few(case));
    }
}

#[test]
fn names_are_unique() {
    let all = cases();
    let names: BTreeSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
}

/// Largest relative error of a gradient. A wrong term changes it by much more, and the differences
/// below reach 1e-9.
const BOUND: f64 = 1e-8;

/// Numbers of mean square 1.
fn random(rng: &mut Rng, len: usize) -> Vec<f64> {
    (0..len).map(|_| (rng.f64() * 2.0 - 1.0) * 3f64.sqrt()).collect()
}

/// Compares a gradient with the central differences of a function at `x`, whose values are about
/// as large as `scale`.
///
/// The step is 1e-5 of that: a central difference is wrong by the square of the step, 1e-10, and by
/// the rounding of the function divided by the step, 1e-16 / 1e-5 = 1e-11.
#[track_caller]
fn is_gradient_of(gradient: &[f64], f: impl Fn(&[f64]) -> f64, x: &[f64], scale: f64) {
    let step = 1e-5 * scale;
    let mut x = x.to_vec();
    let differences: Vec<f64> = (0..x.len())
        .map(|i| {
            let middle = x[i];
            let [above, below] = [middle + step, middle - step].map(|value| {
                x[i] = value;
                f(&x)
            });
            x[i] = middle;
            (above - below) / (2.0 * step)
        })
        .collect();
    let error = relative_error(gradient, &differences);
    assert!(error <= BOUND, "relative error {error:.1e}: {gradient:?} {differences:?}");
}

/// Runs a test with generators of a few seeds.
fn with_seeds(test: impl Fn(&mut Rng)) {
    (0..5).for_each(|seed| test(&mut Rng::with_seed(seed)));
}

#[test]
fn of_linear() {
    with_seeds(|rng| {
        let [x, w, dy] = [7, 5 * 7, 5].map(|len| random(rng, len));
        let [dx, dw] = linear_backward(&x, &w, &dy);
        is_gradient_of(&dx, |x| dot(&linear(x, &w), &dy), &x, 1.0);
        is_gradient_of(&dw, |w| dot(&linear(&x, w), &dy), &w, 1.0);
    });
}

#[test]
fn of_normalize() {
    with_seeds(|rng| {
        let [x, du] = [7, 7].map(|len| random(rng, len));
        is_gradient_of(&normalize_backward(&x, &du), |x| dot(&normalize(x), &du), &x, 1.0);
        // Shorter than the smallest divisor.
        let x: Vec<f64> = x.iter().map(|x| x * 1e-13).collect();
        is_gradient_of(&normalize_backward(&x, &du), |x| dot(&normalize(x), &du), &x, 1e-13);
    });
}

#[test]
fn of_rmsnorm() {
    with_seeds(|rng| {
        let [x, weight, dy] = [9, 9, 9].map(|len| random(rng, len));
        for eps in [0.0, 0.5] {
            let [dx, dweight] = rmsnorm_backward(&x, &weight, eps, &dy);
            is_gradient_of(&dx, |x| dot(&rmsnorm(x, &weight, eps), &dy), &x, 1.0);
            is_gradient_of(&dweight, |w| dot(&rmsnorm(&x, w, eps), &dy), &weight, 1.0);
        }
    });
}

#[test]
fn of_rotary() {
    with_seeds(|rng| {
        let [head, d] = [6, 6].map(|len| random(rng, len));
        let frequencies = [1.0, 0.3, 0.007];
        let gradient = rotary_backward(&d, 11, &frequencies);
        is_gradient_of(&gradient, |head| dot(&rotary(head, 11, &frequencies), &d), &head, 1.0);
    });
}

#[test]
fn of_attention() {
    with_seeds(|rng| {
        for count in [1, 2, 9] {
            let width = 5;
            let [query, dout] = [width; 2].map(|len| random(rng, len));
            let [keys, values] = [count * width; 2].map(|len| random(rng, len));
            let rows = |of: &[f64]| of.chunks(width).map(<[f64]>::to_vec).collect::<Vec<_>>();
            let out = |query: &[f64], keys: &[f64], values: &[f64]| {
                let [keys, values] = [rows(keys), rows(values)];
                let [keys, values] = [&keys, &values].map(|of| slices(of));
                dot(&attention(query, &keys, &values), &dout)
            };
            let [key_rows, value_rows] = [rows(&keys), rows(&values)];
            let [key_slices, value_slices] = [slices(&key_rows), slices(&value_rows)];
            let [dq, dkeys, dvalues] =
                attention_backward(&query, &key_slices, &value_slices, &dout);
            if count == 1 {
                // The softmax of one score is 1.
                assert!(dq.iter().chain(&dkeys).all(|&d| d == 0.0));
            } else {
                is_gradient_of(&dq, |query| out(query, &keys, &values), &query, 1.0);
                is_gradient_of(&dkeys, |keys| out(&query, keys, &values), &keys, 1.0);
            }
            is_gradient_of(&dvalues, |values| out(&query, &keys, values), &values, 1.0);
        }
    });
}

fn slices(of: &[Vec<f64>]) -> Vec<&[f64]> {
    of.iter().map(Vec::as_slice).collect()
}

/// What a fused attention keeps is what its backward pass makes the weights from.
#[test]
fn weights_follow_from_what_attention_keeps() {
    with_seeds(|rng| {
        let [query, keys] = [5, 9 * 5].map(|len| random(rng, len));
        let keys: Vec<&[f64]> = keys.chunks(5).collect();
        let scores = attention_scores(&query, &keys);
        let kept = log_sum_exp(&scores);
        let weights: Vec<f64> = scores.iter().map(|score| (score - kept).exp()).collect();
        assert!(relative_error(&weights, &softmax(&scores)) < 1e-14);
    });
}

#[test]
fn of_gate_up() {
    with_seeds(|rng| {
        let [h, stacked, dout] = [7, 2 * 5 * 7, 5].map(|len| random(rng, len));
        let [dh, dstacked] = gate_up_backward(&h, &stacked, &dout);
        is_gradient_of(&dh, |h| dot(&gate_up(h, &stacked), &dout), &h, 1.0);
        is_gradient_of(&dstacked, |w| dot(&gate_up(&h, w), &dout), &stacked, 1.0);
        // With a stacked identity of one input for each product, the products are the inputs.
        let products = linear(&h, &stacked);
        let identity = |i: usize| if i.is_multiple_of(11) { 1.0 } else { 0.0 };
        let identity: Vec<f64> = (0..100).map(identity).collect();
        let gradient = gated_backward(&products, &dout);
        is_gradient_of(&gradient, |x| dot(&gate_up(x, &identity), &dout), &products, 1.0);
    });
}

#[test]
fn of_route() {
    with_seeds(|rng| {
        for (experts, top_k) in [(1, 1), (7, 1), (7, 2), (5, 5)] {
            let [logits, balance] = [experts; 2].map(|len| random(rng, len));
            let dweights = random(rng, top_k);
            let gradient = route_backward(&logits, top_k, &dweights, &balance);
            let loss = |logits: &[f64]| {
                let weights: Vec<f64> = route(logits, top_k).iter().map(|c| c.1).collect();
                dot(&weights, &dweights) + dot(&softmax(logits), &balance)
            };
            if experts == 1 {
                assert_eq!(gradient, [0.0]);
            } else {
                is_gradient_of(&gradient, loss, &logits, 1.0);
            }
        }
    });
}

#[test]
fn of_pool() {
    with_seeds(|rng| {
        let (dim, rows) = (3, 9);
        let (h, dout) = (random(rng, rows * dim), random(rng, dim));
        for pooling in [Pooling::Mean, Pooling::WeightedMean, Pooling::Cls, Pooling::LastToken] {
            let span = PoolingSpan { row: 2, rows: 5, skip: 1, pooling, normalize: false };
            let mut dh = vec![0.0; rows * dim];
            for (row, gradient) in pool_backward(&span, &dout) {
                dh[row as usize * dim..][..dim].copy_from_slice(&gradient);
            }
            is_gradient_of(&dh, |h| dot(&pool(h, dim, &span), &dout), &h, 1.0);
        }
    });
}

#[test]
fn of_cross_entropy() {
    with_seeds(|rng| {
        let logits = random(rng, 11);
        let (loss, dlogits) = cross_entropy(&logits, 4);
        is_gradient_of(&dlogits, |logits| cross_entropy(logits, 4).0, &logits, 1.0);
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        assert!((loss - (total.ln() - logits[4])).abs() < 1e-14, "the loss itself");
    });
}

#[test]
fn of_contrastive() {
    let contrast = |target, first, count| Contrast { target, first, count };
    // All passages are candidates, then each query's own, one of them alone.
    let shared = [contrast(0, 0, 7), contrast(3, 0, 7), contrast(6, 0, 7)];
    let own = [contrast(0, 0, 3), contrast(4, 3, 3), contrast(6, 6, 1)];
    with_seeds(|rng| {
        for (wanted, used) in [(shared, 5), (shared, 3), (own, 5), (own, 1)] {
            let (queries, passages, dim) = (3, 7, 5);
            let (temperature, scale) = (0.25, 0.75);
            let p = Contrastive { queries, passages, dim, used, temperature, scale };
            let q = random(rng, (queries * dim) as usize);
            let passages = random(rng, (passages * dim) as usize);
            let [losses, dqueries, dpassages] = contrastive(&p, &wanted, &q, &passages);
            let total = |q: &[f64], passages: &[f64]| {
                0.75 * contrastive(&p, &wanted, q, passages)[0].iter().sum::<f64>()
            };
            if used == 1 {
                // A number divided by its size is its sign.
                let none = |d: &[f64]| d.iter().all(|d| d.abs() < 1e-15);
                assert!(none(&dqueries) && none(&dpassages));
            } else {
                is_gradient_of(&dqueries, |q| total(q, &passages), &q, 1.0);
                is_gradient_of(&dpassages, |passages| total(&q, passages), &passages, 1.0);
            }
            for ((wanted, loss), query) in wanted.iter().zip(losses).zip(q.chunks(5)) {
                let exponential = |j: u32| {
                    let used = used as usize;
                    let (a, b) = (&query[..used], &passages[j as usize * 5..][..used]);
                    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() / 0.25).exp()
                };
                let all: f64 = (wanted.first..wanted.first + wanted.count).map(exponential).sum();
                let expected = -(exponential(wanted.target) / all).ln();
                assert!((loss - expected).abs() < 1e-13, "the loss itself");
            }
        }
    });
}

/// Seven steps against the sums that the moments are of: `(1 − β) Σ βᵗ⁻ᵏ gₖ`.
#[test]
fn steps_of_adamw() {
    let (rate, beta1, beta2, epsilon, decay, scale) = (0.01, 0.9, 0.99, 1e-3, 0.1, 0.5);
    with_seeds(|rng| {
        let gradients = random(rng, 7);
        let (mut w, mut moments, mut expected) = (2.0, [0.0; 2], 2.0);
        for step in 1..=7 {
            let p = AdamW { len: 1, step, rate, beta1, beta2, epsilon, decay, scale };
            (w, moments) = adamw(&p, gradients[step as usize - 1], moments, w);
            let mean = |beta: f32, power: i32| {
                let (beta, mut sum, mut weights) = (f64::from(beta), 0.0, 0.0);
                for (k, g) in gradients[..step as usize].iter().enumerate() {
                    let weight = beta.powi(step as i32 - 1 - k as i32);
                    sum += weight * (0.5 * g).powi(power);
                    weights += weight;
                }
                (sum / weights, sum * (1.0 - beta))
            };
            let [(first, m), (second, v)] = [mean(beta1, 1), mean(beta2, 2)];
            let [rate, epsilon, decay] = [rate, epsilon, decay].map(f64::from);
            expected -= rate * (first / (second.sqrt() + epsilon) + decay * expected);
            assert!(relative_error(&[w, moments[0], moments[1]], &[expected, m, v]) < 1e-12);
        }
    });
}

/// Both operations of an adapter against the formulas, with rows of their own part only.
#[test]
fn of_adapters_on_every_backend() {
    adapters_of(&Cpu, 1e-6);
    let gpus = open_all();
    covered("gradients::of_adapters", &gpus);
    gpus.iter().for_each(|gpu| adapters_of(gpu, 1e-5));
}

fn adapters_of<O: Backward>(ops: &O, bound: f64) {
    let mut random = Rng::with_seed(8);
    for (first, rows, cols, rank) in
        [(0, 1, 1, 1), (3, 5, 32, 2), (10, 97, 130, 16), (1, 40, 65, 7), (2, 33, 64, 300)]
    {
        let mut values = |len: usize| (0..len).map(|_| random.f32() - 0.5).collect::<Vec<f32>>();
        let total = first + rows + 2;
        let (w, b, a) = (values(total * cols), values(rows * rank), values(rank * cols));
        let (dw, old) = (values(total * cols), [values(rows * rank), values(rank * cols)]);
        let mask: Vec<f32> = (0..cols).map(|i| if i % 3 == 1 { 0.0 } else { 1.5 }).collect();
        let (scale, ones) = (0.75f32, vec![1.0; cols]);
        let [first32, rows32, cols32, rank32] = [first, rows, cols, rank].map(|n| n as u32);
        let p = Merge { first: first32, rows: rows32, cols: cols32, rank: rank32, scale };
        let base =
            ops.matrix(&[Tensor::from_f32(&[total, cols], &w).to_dtype(Dtype::Bf16)]).unwrap();
        let w = Tensor::from_f32(&[total, cols], &w).to_dtype(Dtype::Bf16).to_f32();
        let [b_matrix, a_matrix] =
            [ops.parameters(rows, rank, &b).unwrap(), ops.parameters(rank, cols, &a).unwrap()];
        let part = first * cols..(first + rows) * cols;
        let uploaded = ops.upload(1, cols, &mask).unwrap();
        let dw_buffer = ops.upload(total, cols, &dw).unwrap();
        for given in [None, Some(&uploaded)] {
            let mask = if given.is_some() { &mask } else { &ones };
            let mut out = ops.parameters(total, cols, &vec![9.0; total * cols]).unwrap();
            ops.merge(p, &base, Some([&b_matrix, &a_matrix]), given, &mut out);
            let out = block_on(ops.read_parameters(&out)).unwrap();
            let expected = reference::merge(0.75, &w[part.clone()], [&b, &a], mask);
            assert!(relative_error(&out[part.clone()], &expected) < bound);
            assert!(out[..part.start].iter().chain(&out[part.end..]).all(|&v| v == 9.0));

            let mut db = ops.upload(rows, rank, &old[0]).unwrap();
            let mut da = ops.upload(rank, cols, &old[1]).unwrap();
            ops.merge_backward(p, &dw_buffer, [&b_matrix, &a_matrix], given, [&mut db, &mut da]);
            let db = block_on(ops.read(&db, rows * rank)).unwrap();
            let da = block_on(ops.read(&da, rank * cols)).unwrap();
            let [eb, ea] = reference::merge_backward(0.75, &dw[part.clone()], [&b, &a], mask);
            let plus = |old: &[f32], add: Vec<f64>| -> Vec<f64> {
                old.iter().zip(add).map(|(&old, add)| f64::from(old) + add).collect()
            };
            assert!(relative_error(&db, &plus(&old[0], eb)) < bound);
            assert!(relative_error(&da, &plus(&old[1], ea)) < bound);
        }
        let mut out = ops.parameters(total, cols, &vec![9.0; total * cols]).unwrap();
        ops.merge(Merge { rank: 0, ..p }, &base, None, None, &mut out);
        let out = block_on(ops.read_parameters(&out)).unwrap();
        assert_eq!(out[part.clone()], w[part]);
    }
}
