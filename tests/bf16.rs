//! `--compute bf16` on the CPU: products of many rows with activations and weights rounded to bf16.
//! `model/cpu/bf16` has the tests of the products themselves, with each kind of instructions.

use crate::support::{data, say, smollm2};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::ops::Compute;
use gritlm::{Arithmetic, Device, Embed, Engine, Options};

const TEXTS: [&str; 3] = [
    "Packets are captured by a program that listens on an interface and writes what it hears.",
    "The cat sat on the mat, and nobody knew why it had come there, least of all the dog.",
    "In 1905 he published four papers that changed how we think about space and time.",
];

fn engines(model: &str) -> [Engine; 2] {
    [Compute::F32, Compute::Bf16].map(|compute| {
        let options = Options::default().device(Device::Cpu);
        let engine = Engine::open(model, &options.compute(Some(Arithmetic::In(compute)))).unwrap();
        assert_eq!(engine.products().many, compute);
        engine
    })
}

/// Returns 1 minus the smallest cosine between the texts' embeddings by both.
fn turned([exact, rounded]: &[Engine; 2]) -> f64 {
    let vectors = |engine: &Engine| engine.embed(&TEXTS, &Embed::default()).unwrap();
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let (a, b) = (vectors(exact), vectors(rounded));
    assert!(a.iter().zip(&b).all(|(a, b)| a.vector != b.vector));
    let cosines = a.iter().zip(&b).map(|(a, b)| cosine((&a.vector, &b.vector)));
    1.0 - cosines.fold(1.0, f64::min)
}

/// Returns the mean loss of all tokens but the first of each text, read in one pass.
fn loss(engine: &Engine) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for text in TEXTS {
        let (tokens, mut cache) = (engine.tokenizer().encode(text).unwrap(), engine.cache());
        let mask = engine.generation_mask();
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want: Want::AllLogits };
        let Output::Logits(logits) = engine.run(&mut [sequence]).unwrap().remove(0) else {
            panic!("expected logits")
        };
        let vocab = logits.len() / tokens.len();
        for (logits, &next) in logits.chunks(vocab).zip(&tokens[1..]) {
            let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            sum += total.ln() - f64::from(logits[next as usize]);
            count += 1;
        }
    }
    sum / f64::from(count)
}

/// Dense models, and a mixture, whose router stays in f32.
#[test]
fn what_it_does_to_embeddings() {
    for model in ["mistral-tiny", "mixtral-tiny"] {
        let turned = turned(&engines(data(model).to_str().unwrap()));
        assert!(turned < 1e-4, "{model}: {turned:e}");
    }
}

/// These are the figures of the documentation.
#[test]
fn the_effect_on_a_real_model() {
    let Some(model) = smollm2("bf16::the_effect_on_a_real_model") else { return };
    let engines = engines(&model);
    let [exact, rounded] = [&engines[0], &engines[1]].map(loss);
    let turned = turned(&engines);
    say(&format!("bf16: loss {rounded:.4} for {exact:.4}, 1 - cosine at most {turned:.1e}"));
    assert_ne!(exact, rounded);
    assert!((exact - rounded).abs() < 0.02, "{exact}, {rounded}");
    assert!(turned < 1e-3, "{turned:e}");
}
