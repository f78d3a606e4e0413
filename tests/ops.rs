//! Every op on every backend: the case table against the formulas in f64.

use crate::shaders::{covered, open_all};
use crate::support::{long, say};
use gritlm::model::config::Config;
use gritlm::model::cpu::Cpu;
use gritlm::model::format::decode;
use gritlm::model::measure::Measure;
use gritlm::model::ops::{Attention, KvShape, Layout, LinearAdd, Mask, Ops, PAGE, Span};
use gritlm::model::reference::relative_error;
use gritlm::model::weights::{Dtype, Tensor, Weights};
use gritlm_bench::case::{Case, Op, stored_bytes};
use gritlm_bench::cases::cases;
use gritlm_shaders::tune::Tiles;
use gritlm_shaders::{Options, Wgpu};
use pollster::block_on;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// Largest relative error of a backend that computes and stores in f32.
const F32: f64 = 1e-5;

/// Runs those cases of the table that `chosen` takes (and may change) on one backend, if it takes
/// their weights, twice: ids must be equal, everything else within the bound, and the second time
/// has the bits of the first.
pub(crate) fn check<O: Measure>(ops: &O, bound: f64, mut chosen: impl FnMut(&mut Case) -> bool) {
    let (mut failed, mut worst, mut flops, mut bytes) = (Vec::new(), (0.0, String::new()), 0, 0);
    let mut all = cases();
    all = all.extract_if(.., |case| ops.takes(case.dtype) && chosen(case)).collect();
    for case in &all {
        match case.compare(ops, &case.expected(), bound) {
            Ok(error) if error > worst.0 => worst = (error, case.name.clone()),
            Ok(_) => {}
            Err(problem) => failed.push(format!("{}: {problem}", case.name)),
        }
        flops += case.flops();
        bytes += case.bytes();
    }
    say(&format!(
        "ops covered on {}: {} cases, {:.2} GFLOP, {:.2} GB, largest relative error {:.1e} ({})",
        ops.device(),
        all.len(),
        flops as f64 / 1e9,
        bytes as f64 / 1e9,
        worst.0,
        worst.1
    ));
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), all.len(), failed.join("\n"));
}

#[test]
fn every_case_on_the_cpu() {
    check(&Cpu, F32, |_| true);
}

/// With a GPU's tiles, and cut into dispatches and submits of a few flops; on one adapter and with
/// weights in one format.
#[test]
fn every_case_as_on_a_gpu_in_many_submits() {
    let Some(whole) = open_all().into_iter().next() else { return };
    let tiles = Tiles::default_for(false, whole.adapter().workgroup_bytes);
    let options = Options::default().name(whole.adapter().label()).tiles(Some(tiles));
    let gpu = block_on(Wgpu::open(&options.submit_flops(Some(10_000)))).unwrap();
    check(&gpu, F32, |case| case.dtype == Dtype::Bf16);
    let launches = |gpu: &Wgpu| Measure::created(gpu).launches;
    check(&whole, F32, |case| case.dtype == Dtype::Bf16);
    assert!(launches(&gpu) > 2 * launches(&whole), "{} launches", launches(&gpu));
}

/// Of the quantised formats all on the first adapter, and on all adapters in the long form; else two
/// that differ in every part of the layout. It is the compiling that takes time.
#[test]
fn every_case_on_every_adapter() {
    let gpus = open_all();
    covered("ops::every_case_on_every_adapter", &gpus);
    for (n, gpu) in gpus.iter().enumerate() {
        let two = n > 0 && !long();
        let chosen = |d: Dtype| !two || !d.is_quantized() || [Dtype::Q8_0, Dtype::Q6K].contains(&d);
        check(gpu, F32, |case| chosen(case.dtype));
    }
}

/// Attention over pages of a small type is as exact as over f32, and `qkv` stores what it stores in
/// f32, rounded to the nearest.
fn every_page_type<O: Measure>(ops: &O, dtypes: &[Dtype]) {
    for &dtype in dtypes {
        assert!(ops.page_dtypes().contains(&dtype), "{dtype} on {}", ops.device());
        let fits = |head_dim: u32| (head_dim as usize).is_multiple_of(dtype.block());
        check(ops, F32, |case| {
            case.pages = Some(dtype);
            matches!(&case.op, Op::Attention(p, _) if fits(p.head_dim))
        });
        let mut stored = 0;
        for case in cases() {
            let Op::Qkv(p, _) = &case.op else { continue };
            if case.dtype != Dtype::Bf16 || !fits(p.head_dim) || p.rows == 0 {
                continue;
            }
            let run = |dtype| Case { pages: Some(dtype), ..case.clone() }.run(ops).unwrap();
            let (found, mut expected) = (run(dtype), run(Dtype::F32));
            let q = (p.rows * p.heads * p.head_dim) as usize;
            let bytes = stored_bytes(dtype, &expected[q..]);
            decode(dtype, &bytes, &mut expected[q..]);
            // A device may divide by 127 less exactly, which changes a scale in its last bit.
            let error = relative_error(&found, &expected);
            let bound = if dtype.is_quantized() { 1e-3 } else { 0.0 };
            assert!(error <= bound, "{} {dtype}: {error}", case.name);
            stored += 1;
        }
        assert!(stored > 3, "{stored} cases");
    }
}

#[test]
fn every_page_type_on_the_cpu() {
    every_page_type(&Cpu, &[Dtype::F16, Dtype::Bf16, Dtype::Q8_0]);
}

/// All types on the first adapter, and on all adapters in the long form; else f16.
#[test]
fn every_page_type_on_every_adapter() {
    let gpus = open_all();
    covered("ops::every_page_type_on_every_adapter", &gpus);
    for (n, gpu) in gpus.iter().enumerate() {
        let all = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0];
        every_page_type(gpu, if n == 0 || long() { &all } else { &all[..1] });
    }
}

#[test]
fn names_are_unique() {
    let all = cases();
    let names: BTreeSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
}

/// A checkpoint's tensors begin wherever its header ends: at each of four neighbouring addresses
/// the result has the same bits as from memory of its own.
#[test]
fn weights_at_any_address() {
    let (dim, vocab, rows) = (160, 33, 5);
    let a: Vec<f32> = (0..rows * dim).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let values: Vec<f32> = (0..vocab * dim).map(|i| ((i * 61) % 97) as f32 / 48.0 - 1.0).collect();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let bytes = stored_bytes(dtype, &values);
        let multiply = |w: Tensor, rows: usize| {
            let (inner, outer) = (dim as u32, vocab as u32);
            let w = Cpu.matrix(&[w]).unwrap();
            let a = Cpu.upload(rows, dim, &a[..rows * dim]).unwrap();
            let mut x = Cpu.upload(rows, vocab, &vec![0.0; rows * vocab]).unwrap();
            Cpu.linear_add(LinearAdd { rows: rows as u32, inner, outer }, &a, &w, &mut x);
            block_on(Cpu.read(&x, rows * vocab)).unwrap()
        };
        let mut places = BTreeSet::new();
        for pad in 0..4 {
            let w = in_a_file(dtype, &[vocab, dim], &bytes, pad);
            places.insert(w.bytes().as_ptr() as usize % 4);
            for rows in [1, rows] {
                let own = Tensor::from_bytes(dtype, &[vocab, dim], &bytes);
                assert_eq!(multiply(w.clone(), rows), multiply(own, rows), "{dtype} +{pad}");
            }
        }
        assert_eq!(places.len(), 4);
    }
}

/// A query far behind its first key has the same bits alone, when its pages are shared among the
/// threads, and among many, when a thread has them all.
#[test]
fn a_long_context_alone_and_among_many() {
    let (heads, kv_heads, head_dim, past, many) = (6, 2, 40, 4990, 30);
    let pages = (past + many) / PAGE + 1;
    let number = |i: usize| ((i * 7919) % 1009) as f32 / 250.0 - 2.0;
    let shape = KvShape { layers: 1, pages, kv_heads, head_dim, dtype: Dtype::F32 };
    let tokens = pages * PAGE;
    let cached: Vec<f32> = (0..2 * kv_heads * tokens * head_dim).map(number).collect();
    let q: Vec<f32> = (0..many * heads * head_dim).map(|i| number(3 * i + 1)).collect();
    let table: Vec<u32> = (0..pages as u32).rev().collect();
    let mut cache = Cpu.pages(shape).unwrap();
    Cpu.import_pages(&mut cache, &table, tokens, 0, &cached);
    let [h, k, d] = [heads, kv_heads, head_dim].map(|n| n as u32);
    let p = Attention { heads: h, kv_heads: k, head_dim: d, layer: 0 };
    for window in [None, Some(700)] {
        let mask = Mask::Causal { window };
        let run = |rows: Range<usize>| {
            let spans = rows.clone().map(|i| Span {
                row: (i - rows.start) as u32,
                rows: 1,
                past: (past + i) as u32,
                table: 0,
                mask,
            });
            let layout = Layout {
                tokens: vec![0; rows.len()],
                positions: vec![0; rows.len()],
                slots: vec![0; rows.len()],
                spans: spans.collect(),
                tables: table.clone(),
                frequencies: vec![1.0; head_dim / 2],
            };
            let q = q[rows.start * heads * head_dim..rows.end * heads * head_dim].to_vec();
            let mut out = vec![0.0; q.len()];
            Cpu.attention(p, &q, &cache, &Cpu.batch(&layout).unwrap(), &mut out);
            out
        };
        let all = run(0..many);
        for (i, among) in all.chunks(heads * head_dim).enumerate() {
            assert_eq!(run(i..i + 1), among, "query {i}, window {window:?}");
        }
        // The last query, as the formula has it.
        let i = many - 1;
        let keys = mask.keys(past + i, past + i + 1);
        let vector = |plane: usize, head: usize, token: usize| {
            &cached[((plane * kv_heads + head) * tokens + token) * head_dim..][..head_dim]
        };
        let expected: Vec<f32> = (0..heads)
            .flat_map(|head| {
                let kv_head = head / (heads / kv_heads);
                let q = &q[(i * heads + head) * head_dim..][..head_dim];
                let weight = |t: usize| -> f64 {
                    let pairs = q.iter().zip(vector(0, kv_head, t));
                    let dot: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys.clone().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                let value = |c: usize| -> f64 {
                    let each = keys.clone().zip(&weights);
                    each.map(|(t, w)| w * f64::from(vector(1, kv_head, t)[c])).sum::<f64>() / sum
                };
                (0..head_dim).map(|c| value(c) as f32).collect::<Vec<_>>()
            })
            .collect();
        let error = relative_error(&all[i * heads * head_dim..], &expected);
        assert!(error < F32, "window {window:?}: {error}");
    }
}

/// The matrix as `lm_head` of a checkpoint whose header is longer by `pad` bytes.
fn in_a_file(dtype: Dtype, shape: &[usize; 2], bytes: &[u8], pad: usize) -> Tensor {
    let [vocab, dim] = *shape;
    let config = format!(
        r#"{{"model_type": "mistral", "hidden_size": {dim}, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 1,
        "vocab_size": {vocab}, "rms_norm_eps": 1e-5, "max_position_embeddings": 8,
        "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0, "hidden_act": "silu"}}"#
    );
    let path = Path::new("in memory");
    let config = Config::parse(config.as_bytes(), path).unwrap();
    let (mut header, mut end, mut data) = (Vec::new(), 0, Vec::new());
    for tensor in gritlm::model::weights::expected(&config) {
        let len = dtype.bytes(tensor.shape.iter().product());
        let (name, shape) = (&tensor.name, &tensor.shape);
        let range = [end, end + len];
        let dtype = dtype.to_string();
        header.push(format!(
            r#""{name}": {{"dtype": "{dtype}", "shape": {shape:?}, "data_offsets": {range:?}}}"#
        ));
        if name == "lm_head.weight" {
            data.extend_from_slice(bytes);
        } else {
            data.resize(data.len() + len, 0);
        }
        end += len;
    }
    let header = format!("{{{}}}{}", header.join(", "), " ".repeat(pad));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    let weights = Weights::from_static(file.leak(), path, &config).unwrap();
    weights.get("lm_head.weight").unwrap()
}
