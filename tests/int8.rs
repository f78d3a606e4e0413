//! `--compute int8`: products of few rows with quantised weights, of activations in 8 bits.

use crate::cli::run;
use crate::formats::{quantized, tensor};
use crate::support::{data, say, smollm2};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::{Compute, LinearAdd, Ops, Products};
use gritlm::model::reference::relative_error;
use gritlm::model::weights::{Dtype, Tensor};
use gritlm::{Arithmetic, Device, Engine, Options, Prompt, Sampling};
use pollster::block_on;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.f32() * 4.0 - 2.0).collect()
}

/// Returns `a` times the matrix of these parts.
fn product(rows: usize, parts: &[Tensor], a: &[f32]) -> Vec<f32> {
    let (inner, outer) = (parts[0].shape()[1], parts.iter().map(|p| p.shape()[0]).sum::<usize>());
    let products = Products { few: Compute::Int8, many: Compute::F32 };
    let w = Cpu.matrix_in(products, parts).unwrap();
    let mut x = Cpu.buffer(rows, outer).unwrap();
    let p = LinearAdd { rows: rows as u32, inner: inner as u32, outer: outer as u32 };
    Cpu.linear_add(p, &a[..rows * inner].to_vec(), &w, &mut x);
    block_on(Cpu.read(&x, rows * outer)).unwrap()
}

/// Rounds each 32 activations to 8 bits, as their largest says.
fn rounded(a: &[f32]) -> Vec<f64> {
    let run = |run: &[f32]| -> Vec<f64> {
        let unit = run.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
        let inverse = if unit >= f32::MIN_POSITIVE { 1.0 / unit } else { 0.0 };
        let code = |x: &f32| f64::from((x * inverse).round_ties_even()) * f64::from(unit);
        run.iter().map(code).collect()
    };
    a.chunks(32).flat_map(run).collect()
}

fn expected(rows: usize, parts: &[Tensor], a: &[f32]) -> Vec<f32> {
    let inner = parts[0].shape()[1];
    let weights: Vec<f32> = parts.iter().flat_map(Tensor::to_f32).collect();
    let dot = |x: &[f64], w: &[f32]| -> f32 {
        x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum::<f64>() as f32
    };
    let a = rounded(&a[..rows * inner]);
    let row = |x| weights.chunks(inner).map(move |w| dot(x, w));
    a.chunks(inner).flat_map(row).collect()
}

/// Nothing is lost but the rounding of the activations.
#[test]
fn products_of_rounded_activations() {
    let outer = 67;
    // The last four runs of a row are whole, overlap with those before, or are too few.
    for inner in [1280, 1312, 96] {
        let mut a = values(4 * inner, 1);
        // A run of zeros, one of tiny and one of large numbers.
        a[32..64].fill(0.0);
        a[64..96].iter_mut().for_each(|x| *x *= 1e-41);
        a[96..128].iter_mut().for_each(|x| *x *= 1e4);
        for dtype in quantized().filter(|dtype| inner % dtype.block() == 0) {
            let w = [tensor(dtype, outer, inner, 2)];
            for rows in 1..=4 {
                let found = product(rows, &w, &a);
                let error = relative_error(&found, &expected(rows, &w, &a));
                assert!(error < 2e-6, "{dtype}, {rows} rows of {inner}: {error}");
            }
        }
    }
    let (inner, a) = (1280, values(2 * 1280, 1));
    let parts = [tensor(Dtype::Q4K, 3, inner, 3), tensor(Dtype::Q6K, 70, inner, 4)];
    let error = relative_error(&product(2, &parts, &a), &expected(2, &parts, &a));
    assert!(error < 2e-6, "{error}");
}

/// What is not a number in one row stays there.
#[test]
fn what_is_not_a_number() {
    let (inner, outer) = (256, 5);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = values(2 * inner, 5);
        a[inner + 40] = bad;
        let found = product(2, &[tensor(Dtype::Q8_0, outer, inner, 6)], &a);
        assert!(found[..outer].iter().all(|x| x.is_finite()), "{found:?}");
        assert!(found[outer..].iter().all(|x| x.is_nan()), "{found:?}");
    }
}

/// Many rows are multiplied in f32, to the bit, and few are not asked for where weights are not
/// quantised.
#[test]
fn few_rows_and_quantised_weights_only() {
    let (inner, outer) = (512, 9);
    let a = values(6 * inner, 7);
    let w = [tensor(Dtype::Q4_1, outer, inner, 8)];
    let (p, exact) = (LinearAdd { rows: 6, inner: 512, outer: 9 }, Cpu.matrix(&w).unwrap());
    let mut x = Cpu.buffer(6, outer).unwrap();
    Cpu.linear_add(p, &a, &exact, &mut x);
    assert_eq!(product(6, &w, &a), x);
    assert_eq!(Cpu.products(Some(Compute::Int8), false), Some(Products::all(Compute::F32)));
}

fn engine(model: &str, compute: Option<Arithmetic>) -> Engine {
    Engine::open(model, &Options::default().device(Device::Cpu).compute(compute)).unwrap()
}

/// Reads a text token by token; returns the sum of the losses of all tokens but the first.
fn loss(engine: &Engine, tokens: &[u32]) -> f64 {
    let mut cache = engine.cache();
    let (mut sum, mask) = (0.0, engine.generation_mask());
    for pair in tokens.windows(2) {
        let tokens = &pair[..1];
        let sequence = Sequence { tokens, cache: &mut cache, mask, want: Want::AllLogits };
        let Output::Logits(logits) = engine.run(&mut [sequence]).unwrap().remove(0) else {
            panic!("expected logits")
        };
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        sum += total.ln() - f64::from(logits[pair[1] as usize]);
    }
    sum
}

/// The effect on a real model in Q4_1: these are the figures of the documentation.
#[test]
fn the_effect_on_a_real_model() {
    let Some(model) = smollm2("int8::the_effect_on_a_real_model") else { return };
    let [exact, rounded] =
        [Compute::F32, Compute::Int8].map(|compute| engine(&model, Some(Arithmetic::In(compute))));
    assert_eq!(rounded.products().few, Compute::Int8);
    assert_eq!(engine(&model, Some(Arithmetic::Auto)).products().few, Compute::Int8);
    assert_eq!(engine(&model, None).products(), Products::all(Compute::F32));
    let texts = [
        "Packets are captured by a program that listens on an interface and writes what it hears.",
        "The cat sat on the mat, and nobody knew why it had come there, least of all the dog.",
        "In 1905 he published four papers that changed how we think about space and time.",
    ];
    let (mut losses, mut count) = ([0.0; 2], 0);
    for text in texts {
        let tokens = exact.tokenizer().encode(text).unwrap();
        count += tokens.len() - 1;
        for (sum, engine) in losses.iter_mut().zip([&exact, &rounded]) {
            *sum += loss(engine, &tokens);
        }
    }
    let [exact_loss, rounded_loss] = losses.map(|sum| sum / count as f64);
    let sampling = Sampling::greedy().max_tokens(24).ignore_eos(true);
    let tokens = |engine: &Engine| -> Vec<u32> {
        let prompt = Prompt::user("Write a poem about rain.");
        let pieces = engine.generate(&prompt, &sampling).unwrap();
        pieces.map(|piece| piece.unwrap().token.token).collect()
    };
    let [one, other] = [&exact, &rounded].map(tokens);
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    say(&format!(
        "int8: {count} tokens, loss {rounded_loss:.4} for {exact_loss:.4}, the first {same} of {} \
         greedy tokens",
        one.len()
    ));
    assert_ne!(exact_loss, rounded_loss);
    assert!((exact_loss - rounded_loss).abs() < 0.02, "{exact_loss}, {rounded_loss}");
}

/// Who asks for it by name gets it or a line that says why not.
#[test]
fn on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = data("mistral-tiny").to_str().unwrap().to_string();
    let file = folder.path().join("tiny.gguf").to_str().unwrap().to_string();
    run(&["quantize", &model, &file, "--to", "q8_0"], "").ok();
    let generate = |model: &str, compute: &str| {
        let flags = ["--device", "cpu", "--max-tokens", "4", "--compute", compute];
        run(&[&["generate", "--model", model, "--prompt", "a"], &flags[..]].concat(), "")
    };
    // `auto` depends on the CPU.
    let products = |asked, quantized| Cpu.products(asked, quantized).unwrap().to_string();
    for (model, compute, said) in [
        (&file, "int8", "int8 for few rows and f32 for many".to_string()),
        (&file, "auto", products(None, true)),
        (&model, "auto", products(None, false)),
        (&model, "bf16", products(Some(Compute::Bf16), false)),
        (&model, "f32", "f32".to_string()),
    ] {
        let ran = generate(model, compute);
        assert!(ran.stderr.contains(&format!("products in {said}\n")), "{}", ran.stderr);
        ran.ok();
    }
    generate(&model, "int8").fails(
        2,
        &["--compute: expected f32, bf16 or auto, because no weights are quantised, found int8"],
    );
}
