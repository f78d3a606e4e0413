//! Training: the objective and its gradients are those of PyTorch, however a batch is cut.

use crate::shaders::covered;
use crate::support::{Reference, data, say};
use gritlm::Checkpoint;
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::Backward;
use gritlm::model::reference::relative_error;
use gritlm::model::weights::{Dtype, decode};
use gritlm_shaders::{Options, Wgpu, adapters};
use gritlm_train::{Answer, GenerativeLoss, Losses, Objective, Parts, Text, Trainer};
use pollster::block_on;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use std::path::Path;

const MODELS: [&str; 3] = ["mistral-tiny", "mistral-odd", "mixtral-tiny"];

/// The batch of `grit.*`: three queries, a positive and a negative passage for each, and three
/// conversations whose first five tokens are the prompt.
pub(crate) struct Batch {
    pub(crate) queries: Vec<Text>,
    pub(crate) passages: Vec<Text>,
    pub(crate) answers: Vec<Answer>,
}

pub(crate) fn batch(reference: &Reference) -> Batch {
    let texts = reference.texts();
    let text = |tokens: Vec<u32>| Text { tokens, skip: 0 };
    let answer = |i: usize| {
        let tokens = texts[i].clone();
        let targets = (0..tokens.len()).map(|t| t >= 5).collect();
        Answer { document: None, tokens, targets }
    };
    Batch {
        queries: texts[..3].iter().cloned().map(text).collect(),
        passages: (0..6).map(|i| text(reference.ids(&format!("grit.passage.{i}")))).collect(),
        answers: [1, 2, 4].map(answer).into(),
    }
}

fn trainer(
    reference: &Reference,
    objective: Objective,
    chunk: usize,
    keep_all: bool,
) -> Trainer<Cpu> {
    trainer_on(Cpu, reference, objective, chunk, keep_all)
}

fn trainer_on<O: Backward>(
    ops: O,
    reference: &Reference,
    objective: Objective,
    chunk: usize,
    keep_all: bool,
) -> Trainer<O> {
    let checkpoint = Checkpoint::open(reference.engine.name(), false).unwrap();
    let trainer = Trainer::new(ops, &checkpoint, objective, chunk, keep_all).unwrap();
    trainer.with_frequencies(reference.engine.frequencies())
}

fn names(model: &str) -> Vec<String> {
    let path = data(model).display().to_string();
    let checkpoint = Checkpoint::open(&path, false).unwrap();
    checkpoint.weights.tensors().map(|(name, _)| name.to_string()).collect()
}

fn close(what: &str, found: f64, expected: f64, bound: f64) {
    let error = (found - expected).abs() / expected.abs();
    assert!(error <= bound, "{what}: expected {expected}, found {found}, error {error:.1e}");
}

#[test]
fn losses_and_gradients_of_the_original() {
    are_those_of_the_original(|| Cpu);
}

#[test]
fn losses_and_gradients_of_the_original_on_the_first_adapter() {
    let Some(adapter) = block_on(adapters()).into_iter().find(|a| a.lacks.is_none()) else {
        return covered("train_golden::losses_and_gradients_of_the_original", &[]);
    };
    let options = Options::default().name(adapter.label());
    are_those_of_the_original(|| block_on(Wgpu::open(&options)).unwrap());
}

fn are_those_of_the_original<O: Backward>(open: impl Fn() -> O) {
    for model in MODELS {
        let reference = Reference::open(model);
        let one = |name: &str| f64::from(reference.f32(name)[0]);
        let batch = batch(&reference);
        let Batch { queries, passages, answers } = &batch;
        for keep_all in [true, false] {
            let mut trainer = trainer_on(open(), &reference, Objective::default(), 4096, keep_all);
            let losses = trainer.gradients(queries, passages, answers).unwrap();
            close("loss_rep", losses.rep.unwrap(), one("grit.loss_rep"), 1e-5);
            close("loss_gen", losses.generative.unwrap(), one("grit.loss_gen.mixed"), 1e-5);
            let (mut worst, mut whole) = (0.0f64, 0);
            for name in names(model) {
                let gradient = trainer.gradient(&name).unwrap();
                let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let expected = one(&format!("grit.grad_norm.{name}"));
                worst = worst.max((norm - expected).abs() / expected);
                close(&name, norm, expected, 1e-4);
                let name = format!("grit.grad.{name}");
                if reference.has(&name) {
                    let error = relative_error(&gradient, &reference.f32(&name));
                    assert!(error < 1e-4, "{name}: error {error:.1e}");
                    worst = worst.max(error);
                    whole += 1;
                }
            }
            assert!(whole >= 2);
            say(&format!(
                "gradients of {model} on {}, keep_all {keep_all}: largest error {worst:.1e}",
                open().device()
            ));
        }
        let objective = Objective::default().generative(GenerativeLoss::Token);
        let losses = trainer_on(open(), &reference, objective, 4096, true)
            .gradients(&[], &[], answers)
            .unwrap();
        let tokens = answers.iter().map(|answer| answer.tokens.len()).sum();
        let generative = losses.generative;
        assert_eq!(losses, Losses { generative, tokens, ..Losses::default() });
        close("loss_gen", losses.generative.unwrap(), one("grit.loss_gen.token"), 1e-5);
    }
}

/// Returns all gradients.
fn gradients(mut trainer: Trainer<Cpu>, model: &str, batch: &Batch) -> (Losses, Vec<f32>) {
    let Batch { queries, passages, answers } = batch;
    let losses = trainer.gradients(queries, passages, answers).unwrap();
    let all = names(model).into_iter().flat_map(|name| trainer.gradient(&name).unwrap()).collect();
    (losses, all)
}

#[test]
fn any_cut_gives_the_gradients_of_the_whole() {
    for model in MODELS {
        let reference = Reference::open(model);
        let batch = batch(&reference);
        // Documents with a causal answer, an instruction of its own mask, a prompt in both
        // directions: runs of up to four spans.
        let mut mixed = batch.answers.clone();
        mixed[0].document = Some(Text { tokens: batch.passages[3].tokens.clone(), skip: 4 });
        let parts: Parts = "cbbc".parse().unwrap();
        for (answers, objective) in [
            (batch.answers.clone(), Objective::default()),
            (mixed, Objective::default().attention(parts).dimensions(vec![16])),
        ] {
            let batch =
                Batch { queries: batch.queries.clone(), passages: batch.passages.clone(), answers };
            let whole =
                gradients(trainer(&reference, objective.clone(), 4096, true), model, &batch);
            for (chunk, keep_all) in [(4096, false), (64, true), (40, false), (1, true)] {
                let cut = trainer(&reference, objective.clone(), chunk, keep_all);
                let (losses, found) = gradients(cut, model, &batch);
                close("loss_rep", losses.rep.unwrap(), whole.0.rep.unwrap(), 1e-6);
                let error = relative_error(&found, &whole.1);
                assert!(error < 1e-5, "{model}, chunks of {chunk}: error {error:.1e}");
                let again = trainer(&reference, objective.clone(), chunk, keep_all);
                assert_eq!(gradients(again, model, &batch).1, found, "other bits the second time");
            }
        }
    }
}

/// The weights of a model, moved along a direction.
fn moved(model: &str, along: &[(String, Vec<f32>)], by: f32, folder: &Path) {
    let bytes = std::fs::read(data(model).join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let weights: Vec<(String, Vec<usize>, Vec<u8>)> = along
        .iter()
        .map(|(name, direction)| {
            let tensor = all.tensor(name).unwrap();
            let mut values = vec![0.0; direction.len()];
            decode(Dtype::Bf16, tensor.data(), &mut values);
            values.iter_mut().zip(direction).for_each(|(value, d)| *value += by * d);
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.clone(), tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = weights
        .iter()
        .map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Stored::F32, shape.clone(), bytes).unwrap())
        })
        .collect();
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(data(model).join(file), folder.join(file)).unwrap();
    }
}

/// Along the gradient of all weights, the whole objective rises as fast as the gradient is long:
/// with the router's auxiliary loss, documents, masks by part and Matryoshka embeddings.
#[test]
fn the_objective_rises_along_its_gradient() {
    let parts: Parts = "cbbc".parse().unwrap();
    // Cosines of random models are alike: with 0.02 the loss is bent too much for differences.
    let objective = Objective::default().attention(parts).dimensions(vec![16]).temperature(0.5);
    for (model, router) in [("mixtral-tiny", 30.0), ("mistral-odd", 0.0)] {
        let reference = Reference::open(model);
        let mut batch = batch(&reference);
        batch.answers[0].document =
            Some(Text { tokens: batch.passages[3].tokens.clone(), skip: 4 });
        let objective = objective.clone().router_weight(router);
        let value = |losses: &Losses| {
            losses.rep.unwrap()
                + losses.generative.unwrap()
                + f64::from(router) * losses.router.unwrap_or(0.0)
        };
        let mut at_start = trainer(&reference, objective.clone(), 4096, false);
        let Batch { queries, passages, answers } = &batch;
        at_start.gradients(queries, passages, answers).unwrap();
        let norm = at_start.gradient_norm().unwrap();
        let along: Vec<(String, Vec<f32>)> = names(model)
            .into_iter()
            .map(|name| (name.clone(), at_start.gradient(&name).unwrap()))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        // With three times as much, a token of the mixture is routed to another expert.
        let step = 1e-4;
        let at = |sign: f64| {
            moved(model, &along, (sign * step / norm) as f32, folder.path());
            let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), false).unwrap();
            let trainer = Trainer::new(Cpu, &checkpoint, objective.clone(), 4096, true).unwrap();
            let mut trainer = trainer.with_frequencies(reference.engine.frequencies());
            value(&trainer.gradients(queries, passages, answers).unwrap())
        };
        let rise = (at(1.0) - at(-1.0)) / (2.0 * step);
        say(&format!("{model}: the objective rises by {rise:.6} along a gradient of {norm:.6}"));
        close(model, rise, norm, 1e-3);
    }
}
