//! Joined caches: keys turned to their new positions are those that a pass computes there.

use super::{Piece, pass, put_together};
use crate::support::{Reference, close, data};
use gritlm::cache::KvSnapshot;
use gritlm::model::config::Config;
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::{
    Attention, GateUp, KvShape, Layout, LinearAdd, Mask, Ops, Qkv, RmsNorm, Span,
};
use gritlm::model::weights::{Dtype, Weights};
use gritlm_rag::{Part, Positions, join};

/// A cache, computed from `position` on: a forward pass of its own, op by op, on the CPU.
fn computed_at(model: &str, tokens: &[u32], position: usize, frequencies: &[f32]) -> KvSnapshot {
    let c = Config::open(&data(model).join("config.json")).unwrap();
    let weights = Weights::open(&data(model), &c).unwrap();
    let stack = |names: &[String]| {
        let parts: Vec<_> = names.iter().map(|n| weights.get(n).unwrap()).collect();
        Cpu.matrix(&parts).unwrap()
    };
    let rows = tokens.len() as u32;
    let (dim, hidden, eps) = (c.dim as u32, c.hidden as u32, c.norm_eps);
    let (heads, kv_heads, head_dim) = (c.heads as u32, c.kv_heads as u32, c.head_dim as u32);
    let mask = Mask::Bidirectional { window: None };
    let batch = Cpu.batch(&Layout {
        tokens: tokens.to_vec(),
        positions: (position as u32..).take(tokens.len()).collect(),
        slots: (0..rows).collect(),
        spans: vec![Span { row: 0, rows, past: 0, table: 0, mask }],
        tables: vec![0],
        frequencies: frequencies.to_vec(),
    });
    let batch = batch.unwrap();
    let shape = KvShape {
        layers: c.layers,
        pages: 1,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        dtype: Dtype::F32,
    };
    let mut pages = Cpu.pages(shape).unwrap();
    let buffer = |cols| Cpu.buffer(tokens.len(), cols).unwrap();
    let (mut x, mut h, mut inner) = (buffer(c.dim), buffer(c.dim), buffer(c.hidden));
    let (mut q, mut mixed) = (buffer(c.heads * c.head_dim), buffer(c.heads * c.head_dim));
    let norm = RmsNorm { rows, dim, eps };
    Cpu.embed(&batch, &stack(&["model.embed_tokens.weight".into()]), &mut x);
    for layer in 0..c.layers {
        let weight = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let one = |part: &str| stack(&[weight(part)]);
        let index = layer as u32;
        Cpu.rmsnorm(norm, &x, &one("input_layernorm"), &mut h);
        let qkv = stack(&["q", "k", "v"].map(|p| weight(&format!("self_attn.{p}_proj"))));
        let p = Qkv { rows, dim, heads, kv_heads, head_dim, layer: index };
        Cpu.qkv(p, &h, &qkv, &batch, &mut q, &mut pages);
        let p = Attention { heads, kv_heads, head_dim, layer: index };
        Cpu.attention(p, &q, &pages, &batch, &mut mixed);
        let p = LinearAdd { rows, inner: heads * head_dim, outer: dim };
        Cpu.linear_add(p, &mixed, &one("self_attn.o_proj"), &mut x);
        Cpu.rmsnorm(norm, &x, &one("post_attention_layernorm"), &mut h);
        let gate_up = stack(&["gate", "up"].map(|p| weight(&format!("mlp.{p}_proj"))));
        Cpu.gate_up(GateUp { rows, dim, hidden }, &h, &gate_up, &mut inner);
        let p = LinearAdd { rows, inner: hidden, outer: dim };
        Cpu.linear_add(p, &inner, &one("mlp.down_proj"), &mut x);
    }
    let values = pollster::block_on(Cpu.export_pages(&pages, &[0], tokens.len())).unwrap();
    KvSnapshot::from_f32([c.layers, 2, c.kv_heads, tokens.len(), c.head_dim], values).unwrap()
}

/// `(keys, values)` of each layer, without each head's first tokens.
fn behind(first: usize, cache: &KvSnapshot) -> Vec<(Vec<f32>, Vec<f32>)> {
    let [layers, _, kv_heads, tokens, head_dim] = cache.shape();
    let all = cache.to_f32();
    let heads = all.chunks(tokens * head_dim).map(|head| head[first * head_dim..].to_vec());
    let heads: Vec<Vec<f32>> = heads.collect();
    assert_eq!(heads.len(), layers * 2 * kv_heads);
    let layers = heads.chunks(2 * kv_heads);
    layers.map(|l| (l[..kv_heads].concat(), l[kv_heads..].concat())).collect()
}

fn filler(like: &KvSnapshot, tokens: usize) -> KvSnapshot {
    let [layers, two, kv_heads, _, head_dim] = like.shape();
    let shape = [layers, two, kv_heads, tokens, head_dim];
    KvSnapshot::from_f32(shape, vec![0.5; shape.iter().product()]).unwrap()
}

/// A part behind another is what a pass would have computed at its new positions.
#[test]
fn turned_keys_are_those_of_their_positions() {
    for model in ["mistral-tiny", "mistral-odd"] {
        let reference = Reference::open(model);
        let engine = &reference.engine;
        let frequencies = engine.frequencies();
        let tokens = &reference.texts()[2];
        let at_0 = pass(engine, tokens, Mask::Bidirectional { window: None });
        assert!(computed_at(model, tokens, 0, &frequencies) == at_0, "{model}: another pass");
        for (before, skip) in [1, 17, 130, 3900].iter().flat_map(|&b| [(b, 0), (b, 1)]) {
            let front = filler(&at_0, before);
            let parts = [Part { cache: &front, skip: 0 }, Part { cache: &at_0, skip }];
            let joined = join(&parts, Positions::Turned, &frequencies).unwrap();
            let there = computed_at(model, tokens, before - skip, &frequencies);
            let all = behind(before, &joined).into_iter().zip(behind(skip, &there));
            for (layer, ((keys, values), (right_keys, right_values))) in all.enumerate() {
                let name = format!("{model}, layer {layer} at {before}, {skip} left out");
                // Layer 0's come from the token alone; above, from what attention makes of angles.
                let bound = if layer == 0 { 1.5e-7 } else { 1e-5 };
                close(&name, &keys, &right_keys, bound);
                close(&name, &values, &right_values, bound);
                assert!(layer > 0 || values == right_values, "{name}: values");
            }
        }
    }
}

/// What the paper's code does is a plain concatenation; numbers in bfloat16 are rounded once.
#[test]
fn joins_as_published_and_in_bf16() {
    let reference = Reference::open("mistral-odd");
    let engine = &reference.engine;
    let frequencies = engine.frequencies();
    let texts = reference.texts();
    let caches = [&texts[0], &texts[2]]
        .map(|t| pass(engine, t, Mask::Bidirectional { window: None }).to_bf16());
    let parts = [Part { cache: &caches[0], skip: 0 }, Part { cache: &caches[1], skip: 0 }];
    let published = join(&parts, Positions::AsPublished, &frequencies).unwrap();
    let concatenated = KvSnapshot::concat(&[&caches[0], &caches[1]]).unwrap();
    assert!(published.to_f32() == concatenated.to_f32());

    let wide = caches.clone().map(|c| KvSnapshot::from_f32(c.shape(), c.to_f32()).unwrap());
    let of_wide = [Part { cache: &wide[0], skip: 0 }, Part { cache: &wide[1], skip: 0 }];
    let turned = join(&parts, Positions::Turned, &frequencies).unwrap();
    assert!(turned == join(&of_wide, Positions::Turned, &frequencies).unwrap());
    let twin = put_together(
        &[
            Piece { cache: caches[0].clone(), skip: 0, moved: 0 },
            Piece { cache: caches[1].clone(), skip: 0, moved: texts[0].len() as i64 },
        ],
        &frequencies,
    );
    close("turned", &turned.to_f32(), &twin.to_f32(), 1e-6);
    // Without its first token, a lone part stands one earlier.
    let cut = join(&[Part { cache: &wide[1], skip: 1 }], Positions::Turned, &frequencies).unwrap();
    let twin = put_together(&[Piece { cache: wide[1].clone(), skip: 1, moved: -1 }], &frequencies);
    close("cut", &cut.to_f32(), &twin.to_f32(), 1e-6);
}
