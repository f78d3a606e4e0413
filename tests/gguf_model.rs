//! A real quantised model, SmolLM2-135M in Q4_1: what transformers computes on its dequantised
//! weights.

use crate::support::{close, data, smollm2, two_devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::ops::{Mask, Pooling};
use gritlm::{Device, Engine, Options, Prompt, Sampling};
use serde_json::Value;

struct Case {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    embedding: Vec<f32>,
    logits: Vec<f32>,
}

/// `tests/data/smollm2/model.json`.
fn cases() -> Vec<Case> {
    let all: Value =
        serde_json::from_slice(&std::fs::read(data("smollm2/model.json")).unwrap()).unwrap();
    let case = |case: &Value| {
        let ids = |key: &str| serde_json::from_value(case[key].clone()).unwrap();
        let numbers = |key: &str| serde_json::from_value(case[key].clone()).unwrap();
        Case {
            prompt: ids("prompt"),
            tokens: ids("tokens"),
            embedding: numbers("embedding"),
            logits: numbers("logits"),
        }
    };
    all.as_array().unwrap().iter().map(case).collect()
}

#[test]
fn computes_what_transformers_computes() {
    let Some(model) = smollm2("gguf_model::computes_what_transformers_computes") else { return };
    let engine = Engine::open(&model, &Options::default().device(Device::Cpu)).unwrap();
    let cases = cases();
    assert_eq!(cases.len(), 20);
    let mask = Mask::Causal { window: None };
    let wants =
        [Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true }, Want::Logits];
    for (n, case) in cases.iter().enumerate() {
        for want in wants.clone() {
            let mut cache = engine.cache();
            let sequence = Sequence { tokens: &case.prompt, cache: &mut cache, mask, want };
            match engine.run(&mut [sequence]).unwrap().remove(0) {
                Output::Embedding(found) => {
                    close(&format!("embedding {n}"), &found[..48], &case.embedding, 1e-5);
                }
                Output::Logits(found) => {
                    close(&format!("logits {n}"), &found[..48], &case.logits, 1e-5);
                }
                other => panic!("{other:?}"),
            }
        }
        let prompt = Prompt::Tokens(case.prompt.clone());
        let sampling = Sampling::greedy().max_tokens(24).ignore_eos(true);
        let pieces = engine.generate(&prompt, &sampling).unwrap();
        let tokens: Vec<u32> = pieces.map(|piece| piece.unwrap().token.token).collect();
        assert_eq!(tokens, case.tokens, "prompt {n}");
    }
}

/// The weights stay quantised on GPUs: on one adapter, all of them in the long form.
#[test]
fn adapters_compute_what_transformers_computes() {
    let test = "gguf_model::adapters_compute_what_transformers_computes";
    let Some(model) = smollm2(test) else { return };
    for (device, _) in two_devices().into_iter().filter(|(device, _)| *device != Device::Cpu) {
        let name = device.to_string();
        let engine = Engine::open(&model, &Options::default().device(device)).unwrap();
        for case in cases().iter().take(2) {
            let prompt = Prompt::Tokens(case.prompt.clone());
            let sampling = Sampling::greedy().max_tokens(24).ignore_eos(true);
            let pieces = engine.generate(&prompt, &sampling).unwrap();
            let tokens: Vec<u32> = pieces.map(|piece| piece.unwrap().token.token).collect();
            assert_eq!(tokens, case.tokens, "{name}");
        }
    }
}
