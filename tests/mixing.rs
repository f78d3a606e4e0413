//! One batch holds embedding, prefill and decode; each sequence has the same bits as alone.

use crate::support::{Reference, two_devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::{KvCache, KvSnapshot};
use gritlm::model::ops::{Mask, Pooling, SampleParams};
use gritlm::{Device, Engine};

const MODELS: [&str; 3] = ["mistral-tiny", "mistral-odd", "mixtral-tiny"];

/// A sequence that has `past` tokens behind it, and what is to come.
struct Part {
    past: Vec<u32>,
    tokens: Vec<u32>,
    mask: Mask,
    want: Want,
}

fn parts(reference: &Reference) -> Vec<Part> {
    let texts = reference.texts();
    let window = reference.engine.config().window.map(|w| w as u32);
    let causal = Mask::Causal { window };
    let both = Mask::Bidirectional { window: None };
    let draw = SampleParams {
        seen: vec![],
        penalty: 1.0,
        temperature: 0.8,
        top_k: 0,
        top_p: 0.95,
        min_p: 0.0,
        uniform: 0.6,
        logprobs: 3,
        given: None,
    };
    let embedding = |pooling| Want::Embedding { skip: 0, pooling, normalize: true };
    // 150 tokens cross a page.
    let long: Vec<u32> = texts.iter().cycle().flatten().copied().take(150).collect();
    let part = |past: &[u32], tokens: &[u32], mask, want| Part {
        past: past.to_vec(),
        tokens: tokens.to_vec(),
        mask,
        want,
    };
    vec![
        part(&[], &texts[1], both, embedding(Pooling::Mean)),
        part(&[], &texts[2], causal, Want::Logits),
        part(&texts[4], &texts[3], causal, Want::Token(draw.clone())),
        part(&[], &long, both, Want::Hidden),
        part(&long[..130], &long[130..131], causal, Want::Token(draw)),
        part(&texts[0], &texts[1][..9], causal, Want::AllLogits),
        part(&[], &texts[0], causal, embedding(Pooling::LastToken)),
        part(&[], &long[..77], Mask::Bidirectional { window }, embedding(Pooling::WeightedMean)),
    ]
}

fn past(engine: &Engine, part: &Part) -> KvCache {
    let mut cache = engine.cache();
    if !part.past.is_empty() {
        // Without window, so that the cache can be exported whole.
        let mask = Mask::Causal { window: None };
        let sequence =
            Sequence { tokens: &part.past, cache: &mut cache, mask, want: Want::Nothing };
        engine.run(&mut [sequence]).unwrap();
    }
    cache
}

fn sequence<'a>(part: &'a Part, cache: &'a mut KvCache) -> Sequence<'a> {
    Sequence { tokens: &part.tokens, cache, mask: part.mask, want: part.want.clone() }
}

/// Outputs and, where no window has dropped a part, keys and values; compared by bits.
fn together(engine: &Engine, parts: &[Part]) -> Vec<(Output, Option<KvSnapshot>)> {
    let mut caches: Vec<KvCache> = parts.iter().map(|p| past(engine, p)).collect();
    let mut sequences: Vec<Sequence<'_>> =
        parts.iter().zip(&mut caches).map(|(p, c)| sequence(p, c)).collect();
    let outputs = engine.run(&mut sequences).unwrap();
    outputs.into_iter().zip(caches.iter().map(|c| engine.export(c).ok())).collect()
}

#[test]
fn same_bits_alone_and_together() {
    for model in MODELS {
        let reference = Reference::open(model);
        let parts = parts(&reference);
        let mixed = together(&reference.engine, &parts);
        for (i, part) in parts.iter().enumerate() {
            let alone = together(&reference.engine, std::slice::from_ref(part)).remove(0);
            assert!(mixed[i] == alone, "{model}: part {i} differs");
            assert_ne!(mixed[i].0, Output::Nothing);
        }
        // In another order, too.
        let reversed: Vec<Part> = parts.into_iter().rev().collect();
        let mut again = together(&reference.engine, &reversed);
        again.reverse();
        assert!(again == mixed, "{model}: the order matters");
    }
}

#[test]
fn runs_same_bits() {
    for (device, model) in two_devices().iter().flat_map(|(d, _)| MODELS.map(|m| (d, m))) {
        let reference = Reference::open_on(model, device.clone());
        let parts = parts(&reference);
        let first = together(&reference.engine, &parts);
        let runs = if *device == Device::Cpu { 10 } else { 3 };
        for run in 1..runs {
            let again = together(&reference.engine, &parts) == first;
            assert!(again, "{model} on {device}: run {run} differs");
        }
    }
}

/// Prefill in one pass, in pieces, and token by token: on this backend not only close but equal,
/// because a row's sums do not depend on the rows beside it.
#[test]
fn same_bits_in_pieces() {
    for model in MODELS {
        let reference = Reference::open(model);
        let engine = &reference.engine;
        let ids = &reference.texts()[2];
        let mask = engine.generation_mask();
        let run = |pieces: &[usize]| {
            let (mut cache, mut rest, mut all) = (engine.cache(), ids.as_slice(), Vec::new());
            for &n in pieces {
                let (tokens, after) = rest.split_at(n.min(rest.len()));
                rest = after;
                let want = Want::AllLogits;
                let sequence = Sequence { tokens, cache: &mut cache, mask, want };
                match engine.run(&mut [sequence]).unwrap().remove(0) {
                    Output::Logits(logits) => all.extend(logits),
                    other => panic!("{other:?}"),
                }
            }
            all
        };
        let whole = run(&[40]);
        assert_eq!(whole.len(), 40 * engine.config().vocab);
        assert!(run(&[7, 1, 1, 20, 11]) == whole, "{model}: pieces differ");
        assert!(run(&[1; 40]) == whole, "{model}: single tokens differ");
    }
}
