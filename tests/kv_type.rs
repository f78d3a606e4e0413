//! Formats of the KV pages, and the numbers of matrix products: what each loses, and who has which.

use crate::cli::run;
use crate::support::{data, devices, say, smollm2, two_devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvSnapshot;
use gritlm::model::cpu::Cpu;
use gritlm::model::ops::{
    Attention, Compute, KvShape, Layout, Mask, Ops, PAGE, Pooling, Products, Span,
};
use gritlm::model::reference::relative_error;
use gritlm::model::weights::Dtype;
use gritlm::{Arithmetic, Attn, Device, Embed, Engine, Options, Prompt, Sampling};
use pollster::block_on;

const SMALL: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0];

/// The types of pages of the WGSL backend, and what each may change in an embedding.
const ON_ADAPTERS: [(Dtype, f64); 3] =
    [(Dtype::F16, 1e-3), (Dtype::Bf16, 1e-2), (Dtype::Q8_0, 2e-2)];

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.f32() * 4.0 - 2.0).collect()
}

/// Attention over pages in a small format is attention over their values in f32, to the bit; and
/// what is exported is what is stored.
#[test]
fn attention_reads_what_is_stored() {
    let (heads, kv_heads, head_dim) = (6, 2, 64);
    let spans = [(0, 1, 300, None), (1, 40, 100, Some(30)), (41, 9, 0, None)];
    let spans = spans.map(|(row, rows, past, window)| Span {
        row,
        rows,
        past,
        table: 0,
        mask: Mask::Causal { window },
    });
    let rows = 50;
    let layout = Layout {
        tokens: vec![0; rows],
        positions: vec![0; rows],
        slots: vec![0; rows],
        spans: spans.into(),
        tables: vec![2, 0, 1],
        frequencies: vec![1.0; head_dim / 2],
    };
    let shape = KvShape { layers: 2, pages: 3, kv_heads, head_dim, dtype: Dtype::F32 };
    let tokens = 3 * PAGE;
    let all = values(2 * 2 * kv_heads * tokens * head_dim, 1);
    let q = values(rows * heads * head_dim, 2);
    let table = [0, 1, 2];
    let attend = |dtype, values: &[f32]| {
        let mut pages = Cpu.pages(KvShape { dtype, ..shape }).unwrap();
        Cpu.import_pages(&mut pages, &table, tokens, 0, values);
        let mut out = Cpu.buffer(rows, heads * head_dim).unwrap();
        let p = Attention {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            layer: 1,
        };
        Cpu.attention(p, &q, &pages, &Cpu.batch(&layout).unwrap(), &mut out);
        (out, block_on(Cpu.export_pages(&pages, &table, tokens)).unwrap())
    };
    for (dtype, bound) in SMALL.into_iter().zip([3e-4, 3e-3, 4e-3]) {
        let (found, stored) = attend(dtype, &all);
        let error = relative_error(&stored, &all);
        assert!(error > 0.0 && error < bound, "{dtype}: {error}");
        let (expected, same) = attend(Dtype::F32, &stored);
        assert_eq!(stored, same);
        assert_eq!(found, expected, "{dtype}");
    }
}

fn engine(model: &str, kv_type: Option<Dtype>) -> Engine {
    Engine::open(model, &Options::default().device(Device::Cpu).kv_type(kv_type)).unwrap()
}

/// Alone and in a batch with others, at once and token by token: the same bits.
#[test]
fn the_same_bits_in_any_batch() {
    let model = data("mistral-tiny").to_str().unwrap().to_string();
    let texts: [Vec<u32>; 3] = [(3..150).collect(), (20..31).collect(), (100..190).rev().collect()];
    for dtype in SMALL {
        let engine = engine(&model, Some(dtype));
        assert_eq!(engine.kv_type(), dtype);
        let want = Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: false };
        let mask = Mask::Bidirectional { window: None };
        let vectors = |texts: &[&Vec<u32>]| -> Vec<Vec<f32>> {
            let mut caches: Vec<_> = texts.iter().map(|_| engine.cache()).collect();
            let sequences = texts.iter().zip(&mut caches).map(|(tokens, cache)| Sequence {
                tokens,
                cache,
                mask,
                want: want.clone(),
            });
            let outputs = engine.run(&mut sequences.collect::<Vec<_>>()).unwrap();
            let vector = |output| match output {
                Output::Embedding(vector) => vector,
                other => panic!("{other:?}"),
            };
            outputs.into_iter().map(vector).collect()
        };
        let together = vectors(&texts.iter().collect::<Vec<_>>());
        for (text, expected) in texts.iter().zip(&together) {
            assert_eq!(&vectors(&[text])[0], expected, "{dtype}");
        }
        let prompt = Prompt::Tokens(texts[0].clone());
        let tokens = |batch: usize| -> Vec<u32> {
            let options =
                Options::default().device(Device::Cpu).kv_type(Some(dtype)).batch_tokens(batch);
            let engine = Engine::open(&model, &options).unwrap();
            let sampling = Sampling::greedy().max_tokens(12).ignore_eos(true);
            let pieces = engine.generate(&prompt, &sampling).unwrap();
            pieces.map(|piece| piece.unwrap().token.token).collect()
        };
        assert_eq!(tokens(1024), tokens(32), "{dtype}");
    }
}

/// The effect on a real model: these are the figures of `--help`.
#[test]
fn the_effect_on_a_real_model() {
    let Some(model) = smollm2("kv_type::the_effect_on_a_real_model") else { return };
    let texts = [
        "Packets are captured by a program that listens on an interface.",
        "The cat sat on the mat, and nobody knew why it had come there.",
        "In 1905 he published four papers that changed how we think about space and time.",
    ];
    let embed = Embed::default().attn(Some(Attn::Cccc)).normalize(false);
    let prompts = ["What is a packet?", "Tell me about the sea.", "Write a poem about rain."];
    let sampling = Sampling::greedy().max_tokens(24).ignore_eos(true);
    let measure = |dtype| {
        let engine = engine(&model, dtype);
        let found = engine.embed(&texts, &embed).unwrap();
        let vectors: Vec<f32> = found.into_iter().flat_map(|one| one.vector).collect();
        let tokens = prompts.map(|prompt| {
            let pieces = engine.generate(&Prompt::user(prompt), &sampling).unwrap();
            pieces.map(|piece| piece.unwrap().token.token).collect::<Vec<_>>()
        });
        (vectors, tokens.concat())
    };
    let (exact, tokens) = measure(None);
    for (dtype, bound) in SMALL.into_iter().zip([1e-3, 5e-3, 2e-2]) {
        let (found, others) = measure(Some(dtype));
        let error = relative_error(&found, &exact);
        let same = tokens.iter().zip(&others).filter(|(a, b)| a == b).count();
        say(&format!("kv_type {dtype}: hidden {error:.1e}, {same} of {} tokens", tokens.len()));
        assert!(error > 0.0 && error < bound, "{dtype}: {error}");
    }
}

/// The demo model on an adapter: how far embeddings are from those over f32, that an exported
/// cache has the stored values and comes back as it was, also from a device with other pages, and
/// that a cache takes the memory that its type says.
#[test]
fn embeddings_and_caches_on_an_adapter() {
    let texts = ["Packets are captured by a program.", "The cat sat on the mat.", "A chess game."];
    let open = |device: Device, dtype| {
        Engine::open("demo", &Options::default().device(device).kv_type(Some(dtype))).unwrap()
    };
    for (device, _) in two_devices().into_iter().filter(|(device, _)| *device != Device::Cpu) {
        let exact = open(device.clone(), Dtype::F32);
        let vectors = |engine: &Engine| -> Vec<f32> {
            let found = engine.embed(&texts, &Embed::default()).unwrap();
            found.into_iter().flat_map(|one| one.vector).collect()
        };
        let expected = vectors(&exact);
        for (dtype, bound) in ON_ADAPTERS {
            let engine = open(device.clone(), dtype);
            let c = engine.config();
            assert_eq!(engine.kv_type(), dtype);
            let elements = 2 * c.layers * c.kv_heads * c.head_dim;
            assert_eq!(engine.kv_bytes_per_token(), dtype.bytes(elements));
            let error = relative_error(&vectors(&engine), &expected);
            say(&format!("kv_type {dtype} on {device}: embeddings {error:.1e}"));
            assert!(error > 0.0 && error < bound, "{dtype} on {device}: {error}");

            let tokens: Vec<u32> = (3..180).collect();
            let run = |engine: &Engine| {
                let (mut cache, want) = (engine.cache(), Want::Nothing);
                let mask = Mask::Causal { window: None };
                let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want };
                engine.run(&mut [sequence]).unwrap();
                engine.export(&cache).unwrap()
            };
            let (wide, found) = (run(&exact), run(&engine));
            let again = |from: &KvSnapshot, engine: &Engine| {
                engine.export(&engine.import(from).unwrap()).unwrap().to_f32()
            };
            assert_eq!(again(&found, &engine), found.to_f32(), "{dtype} on {device}");
            assert_eq!(again(&found, &exact), found.to_f32(), "{dtype} on {device}");
            let cpu = open(Device::Cpu, dtype);
            assert_eq!(again(&wide, &engine), again(&wide, &cpu), "{dtype} on {device}");
        }
    }
}

#[test]
fn what_a_device_has_not() {
    let model = data("mistral-tiny").to_str().unwrap().to_string();
    let refused = |options: Options| {
        let device = options.device.to_string();
        format!("{device}: {}", Engine::open(&model, &options).unwrap_err())
    };
    for (device, _) in devices() {
        let found = refused(Options::default().device(device).kv_type(Some(Dtype::Q4K)));
        assert!(found.contains("kv_type: expected one of f32, f16, bf16"), "{found}");
    }
    let cpu = Options::default().device(Device::Cpu);
    let line = refused(cpu.clone().compute(Some(Arithmetic::In(Compute::F16))));
    assert!(line.contains("compute: expected f32, bf16, int8 or auto on cpu"), "{line}");
    assert!(line.ends_with("found f16"), "{line}");
    for compute in [None, Some(Arithmetic::In(Compute::F32))] {
        let engine = Engine::open(&model, &cpu.clone().compute(compute)).unwrap();
        assert_eq!(engine.products(), Products::all(Compute::F32));
    }
    let embed =
        |flags: [&str; 2]| run(&[&["embed", "--device", "cpu", "a"], &flags[..]].concat(), "");
    embed(["--compute", "bf17"]).fails(2, &["expected f32, f16, bf16, int8 or auto", "bf17"]);
    let refused = embed(["--compute", "f16"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""));
    let line = "error: --compute: expected f32, bf16, int8 or auto on cpu";
    assert!(refused.stderr.starts_with(line), "{}", refused.stderr);
    embed(["--kv-type", "q4_0"]).fails(2, &["expected f32, f16, bf16 or q8_0, found q4_0"]);
    assert_ne!(embed(["--kv-type", "bf16"]).ok(), embed(["--kv-type", "F32"]).ok());
}
