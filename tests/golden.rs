//! Equality with Hugging Face: hidden states, router logits, logits, embeddings, greedy tokens and
//! document caches of three tiny random models, and the demo model's embeddings and answers.

use crate::support::{self, Reference, close, data, devices, say};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::ops::Mask;
use gritlm::model::weights::Dtype;
use gritlm::model::{config::Config, tokenizer::Tokenizer};
use gritlm::{Embed, Engine, Options, Pooling, Prompt, Sampling, Stage};
use serde_json::Value;
use std::path::Path;

const MODELS: [&str; 3] = ["mistral-tiny", "mistral-odd", "mixtral-tiny"];

/// Each model on each device, with the device's bound; says what it covered.
fn each(test: &str, mut check: impl FnMut(&Reference, f64)) {
    let all = devices();
    for (device, bound) in &all {
        for model in MODELS {
            check(&Reference::open_on(model, device.clone()), *bound);
        }
    }
    let names: Vec<String> = all.iter().map(|(device, _)| device.to_string()).collect();
    say(&format!("golden files covered, {test}: {}", names.join("; ")));
}

/// The masks by the reference's names; those with a window only where the config has one.
fn masks(reference: &Reference) -> Vec<(&'static str, Mask)> {
    let window = reference.engine.config().window.map(|w| w as u32);
    let all = [
        ("causal", Mask::Causal { window: None }),
        ("causal_window", Mask::Causal { window }),
        ("bidirectional", Mask::Bidirectional { window: None }),
        ("bidirectional_window", Mask::Bidirectional { window }),
    ];
    all.into_iter().filter(|(name, _)| window.is_some() || !name.ends_with("window")).collect()
}

/// Runs the reference's texts as one packed batch.
fn run(reference: &Reference, mask: Mask, want: &Want, probe: &mut gritlm::Probe<'_>) -> Vec<f32> {
    let texts = reference.texts();
    let mut caches: Vec<_> = texts.iter().map(|_| reference.engine.cache()).collect();
    let mut sequences: Vec<Sequence<'_>> = texts
        .iter()
        .zip(&mut caches)
        .map(|(tokens, cache)| Sequence { tokens, cache, mask, want: want.clone() })
        .collect();
    let outputs = reference.engine.run_probed(&mut sequences, probe).unwrap();
    let values = outputs.into_iter().flat_map(|output| match output {
        Output::Hidden(values) | Output::Logits(values) => values,
        other => panic!("expected hidden states or logits, found {other:?}"),
    });
    values.collect()
}

#[test]
fn hidden_states_router_logits_and_logits() {
    each("states and logits", |reference, bound| {
        let model = reference.engine.name();
        let c = reference.engine.config().clone();
        for (name, mask) in masks(reference) {
            let (mut layers, mut routers) = (Vec::new(), Vec::new());
            let mut probe = |stage, values: Vec<f32>| match stage {
                Stage::LayerInput(_) => layers.extend(values),
                Stage::RouterLogits(_) => routers.extend(values),
            };
            let hidden = run(reference, mask, &Want::Hidden, &mut probe);
            let expected = reference.unpadded(&format!("{name}.hidden"), c.dim);
            close(&format!("{model} {name}.hidden"), &hidden, &expected, bound);
            if name == "bidirectional" {
                let expected = reference.unpadded("bidirectional.layers", c.dim);
                close(&format!("{model} {name}.layers"), &layers, &expected, bound);
            }
            assert_eq!(reference.has(&format!("{name}.router_logits")), c.experts.is_some());
            if let Some(experts) = c.experts {
                let expected = reference.unpadded(&format!("{name}.router_logits"), experts.count);
                close(&format!("{model} {name}.router_logits"), &routers, &expected, bound);
            }
            if name.starts_with("causal") {
                let logits = run(reference, mask, &Want::AllLogits, &mut |_, _| {});
                let expected = reference.unpadded(&format!("{name}.logits"), c.vocab);
                close(&format!("{model} {name}.logits"), &logits, &expected, bound);
            }
        }
    });
}

#[test]
fn embeddings_in_four_poolings() {
    let poolings = [
        ("mean", Pooling::Mean),
        ("weightedmean", Pooling::WeightedMean),
        ("cls", Pooling::Cls),
        ("lasttoken", Pooling::LastToken),
    ];
    each("embeddings", |reference, bound| {
        let model = reference.engine.name();
        for (name, pooling) in poolings {
            for (suffix, normalize) in [("", false), (".normalized", true)] {
                let texts = reference.texts();
                let mut caches: Vec<_> = texts.iter().map(|_| reference.engine.cache()).collect();
                let skips = reference.ids("instruction_lengths");
                let mut sequences: Vec<Sequence<'_>> = (texts.iter().zip(&mut caches).zip(skips))
                    .map(|((tokens, cache), skip)| Sequence {
                        tokens,
                        cache,
                        mask: Mask::Bidirectional { window: None },
                        want: Want::Embedding { skip: skip as usize, pooling, normalize },
                    })
                    .collect();
                let outputs = reference.engine.run(&mut sequences).unwrap();
                let vectors: Vec<f32> = outputs
                    .into_iter()
                    .flat_map(|o| match o {
                        Output::Embedding(vector) => vector,
                        other => panic!("expected an embedding, found {other:?}"),
                    })
                    .collect();
                let name = format!("embedding.{name}{suffix}");
                close(&format!("{model} {name}"), &vectors, &reference.f32(&name), bound);
            }
        }
    });
}

/// Checks the tokens, and their log-probabilities within `bound`.
fn greedy(reference: &Reference, cache: gritlm::cache::KvCache, name: &str, bound: f64) {
    let engine = &reference.engine;
    let expected = reference.ids(&format!("{name}.tokens"));
    let how = Sampling::greedy().max_tokens(expected.len()).ignore_eos(true).logprobs(1);
    let prompt = Prompt::Tokens(reference.ids(&format!("{name}.prompt")));
    let pieces: Vec<_> =
        engine.generate_after(cache, &prompt, &how).unwrap().map(Result::unwrap).collect();
    let tokens: Vec<u32> = pieces.iter().map(|p| p.token.token).collect();
    assert_eq!(tokens, expected, "{} {name}.tokens", engine.name());
    // The log-probabilities are those of the reference's logits.
    let vocab = engine.config().vocab;
    for (piece, logits) in pieces.iter().zip(reference.f32(&format!("{name}.logits")).chunks(vocab))
    {
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = f64::from(logits[piece.token.token as usize]) - sum.ln();
        assert!((f64::from(piece.token.logprob) - expected).abs() < bound);
        assert_eq!(piece.token.top, [(piece.token.token, piece.token.logprob)]);
    }
}

#[test]
fn forty_greedy_tokens() {
    each("greedy tokens", |reference, _| {
        greedy(reference, reference.engine.cache(), "generate", 1e-4);
    });
}

#[test]
fn forty_greedy_tokens_over_pages_of_f16() {
    for (device, _) in devices() {
        for model in MODELS {
            let options = Options::default().device(device.clone()).kv_type(Some(Dtype::F16));
            let reference = Reference::open_with(model, options);
            greedy(&reference, reference.engine.cache(), "generate", 1e-2);
        }
    }
}

/// The document's keys and values match, and generating from them gives the reference's tokens:
/// straight from the pages, and after the way off the device and back.
#[test]
fn document_caches() {
    each("document caches", |reference, bound| {
        let (engine, model) = (&reference.engine, reference.engine.name());
        let document = reference.ids("doc_cache.document");
        let mut cache = engine.cache();
        let mask = Mask::Bidirectional { window: None };
        let want = Want::Nothing;
        engine.run(&mut [Sequence { tokens: &document, cache: &mut cache, mask, want }]).unwrap();
        let exported = engine.export(&cache).unwrap();
        let [layers, two, kv_heads, tokens, head_dim] = exported.shape();
        assert_eq!((two, tokens), (2, document.len()));
        let half = kv_heads * tokens * head_dim;
        let values = exported.to_f32();
        let part = |which: usize| -> Vec<f32> {
            (0..layers).flat_map(|l| values[(2 * l + which) * half..][..half].to_vec()).collect()
        };
        close(&format!("{model} keys"), &part(0), &reference.f32("doc_cache.keys"), bound);
        close(&format!("{model} values"), &part(1), &reference.f32("doc_cache.values"), bound);

        greedy(reference, cache, "doc_cache", 1e-4);
        greedy(reference, engine.import(&exported).unwrap(), "doc_cache", 1e-4);
    });
}

fn demo_expectations() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/demo/expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn demo_embeds_as_hugging_face() {
    for (device, bound) in devices() {
        let engine = Engine::open("demo", &Options::default().device(device)).unwrap();
        demo_embeds(&engine, bound);
    }
}

fn demo_embeds(engine: &Engine, bound: f64) {
    for case in demo_expectations()["embed"].as_array().unwrap() {
        let how = Embed::with_instruction(case["instruction"].as_str().unwrap_or_default());
        let found = engine.embed(&[text(&case["text"])], &how).unwrap().remove(0);
        let expected: Vec<f32> = serde_json::from_value(case["embedding"].clone()).unwrap();
        assert_eq!(found.tokens as u64, case["tokens"].as_u64().unwrap());
        // The file has seven decimals of numbers around 0.07.
        close(text(&case["text"]), &found.vector, &expected, bound);
    }
}

#[test]
fn demo_answers_as_hugging_face() {
    for (device, _) in devices() {
        demo_answers(&Engine::open("demo", &Options::default().device(device)).unwrap());
    }
}

fn demo_answers(engine: &Engine) {
    for case in demo_expectations()["generate"].as_array().unwrap() {
        let expected: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let how = Sampling::greedy().max_tokens(expected.len());
        let answer = engine.generate(&Prompt::user(text(&case["user"])), &how).unwrap();
        assert_eq!(answer.prompt_tokens() as u64, case["prompt_tokens"].as_u64().unwrap());
        let pieces: Vec<_> = answer.map(Result::unwrap).collect();
        let tokens: Vec<u32> = pieces.iter().map(|p| p.token.token).collect();
        assert_eq!(tokens, expected);
        let said: String = pieces.into_iter().map(|p| p.text).collect();
        assert_eq!(said, text(&case["text"]));
    }
}

#[test]
fn mistral_tokenizer() {
    let mut config = Config::open(&data("mistral-tiny/config.json")).unwrap();
    config.vocab = 32000;
    let file = Path::new("tokenizer.json");
    let tokenizer = Tokenizer::parse(&support::mistral_tokenizer(), file, &config).unwrap();
    let cases = std::fs::read(data("mistral-tokenizer/cases.json")).unwrap();
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    for case in cases.as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text(&case["text"])).unwrap(), ids, "{}", case["text"]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text(&case["decoded"]));
        let mut stream = tokenizer.stream();
        let mut said: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        said += &stream.finish().unwrap();
        assert_eq!(said, text(&case["decoded"]));
    }
}
