//! The PTX that NVRTC writes for the CUDA kernels, run by `kernels/emulator/ptx`: the text that a GPU is
//! given, inline assembly included. NVRTC needs no GPU.

use crate::emulator::mutants::found;
use crate::emulator::{A100, ARCH, Alone, H200, Model, SMALL, SMALL_HOPPER, save};
use crate::kernels::{inlined, nvrtc};
use crate::ops::check;
use crate::support::{long, say};
use gritlm::model::ops::{Attention, Expert, GateUp, LinearAdd, Logits, Mask, Qkv, RmsNorm};
use gritlm::model::weights::Dtype;
use gritlm_bench::case::{Case, Op, Seq};
use gritlm_kernels::compile::Nvrtc;
use gritlm_kernels::source::{self, Source};
use gritlm_kernels::{Cuda, Options};
use gritlm_ptx::hook::counts;
use rayon::prelude::*;

/// Largest relative error of an op whose operands, or whose result, are bf16.
const BF16: f64 = 8e-3;

/// All kernels as PTX for a device.
fn texts(nvrtc: &Nvrtc, model: Model) -> Vec<Vec<u8>> {
    source::all().par_iter().map(|source| nvrtc.ptx(source, model.arch()).unwrap()).collect()
}

/// Half of the cases on each device, all in the long form: the texts differ little.
#[test]
fn every_case_as_ptx() {
    let Some(alone) = Alone::install("ptx::every_case_as_ptx") else { return };
    let Some(nvrtc) = nvrtc("ptx::every_case_as_ptx") else { return };
    alone.0.quiet(false);
    for (i, models) in [&[A100][..], &[H200, SMALL_HOPPER]].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), models[0].arch(), &texts(&nvrtc, models[0]));
        for (again, &model) in models.iter().enumerate() {
            alone.0.be(model);
            let cuda = Cuda::open(&Options::default().kernels(Some(folder.path().into()))).unwrap();
            let mut number = 0;
            check(&cuda, BF16, |case| {
                case.bf16 = true;
                number += 1;
                let is_attention = matches!(case.op, Op::Attention(..));
                (again == 0 || is_attention) && (long() || number % 2 == i)
            });
        }
    }
}

/// In each entry point, the first line that has `word`, changed.
fn change(text: &[u8], word: &str, edit: impl Fn(&str) -> String) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).unwrap();
    let (mut changed, mut out) = (0, String::new());
    let mut wanted = true;
    for line in text.split_inclusive('\n') {
        wanted |= line.contains(".entry");
        match wanted && line.contains(word) {
            true => {
                out += &edit(line);
                (wanted, changed) = (false, changed + 1);
            }
            false => out += line,
        }
    }
    (changed > 0).then(|| out.into_bytes())
}

/// A line with two of its words in each other's place: the n-th from the end and the one before it.
fn swap(line: &str, from_end: usize) -> String {
    let mut words: Vec<&str> = line.trim_end_matches(['\n', ';']).split_whitespace().collect();
    let n = words.len() - 1 - from_end;
    let bare = |word: &str| word.trim_matches(['{', '}', ',']).to_string();
    let (a, b) = (bare(words[n - 1]), bare(words[n]));
    let (first, second) = (words[n - 1].replace(&a, &b), words[n].replace(&b, &a));
    (words[n - 1], words[n]) = (&first, &second);
    words.join(" ") + ";\n"
}

/// Mistakes in the text that a GPU is given, one in each entry point: all are found.
#[test]
fn mistakes_in_the_text_are_found() {
    let Some(alone) = Alone::install("ptx::mistakes_in_the_text_are_found") else { return };
    let Some(nvrtc) = nvrtc("ptx::mistakes_in_the_text_are_found") else { return };
    let texts = texts(&nvrtc, SMALL);
    let text = |source: &Source| {
        let at = source::all().iter().position(|s| s.stem == source.stem);
        texts[at.unwrap()].clone()
    };
    let none = |_: &str| String::new();
    type Edit<'a> = &'a dyn Fn(&str) -> String;
    let mistakes: [(&str, &str, &str, Edit<'_>); 11] = [
        ("linear_add", "mma.sync", "the halves of b swapped", &|line| swap(line, 4)),
        ("attention", "mma.sync", "the halves of b swapped", &|line| swap(line, 4)),
        ("linear_add", "cp.async.wait_group", "no wait", &none),
        ("attention", "cp.async.wait_group", "no wait", &none),
        ("linear_add", "bar.sync", "no barrier", &none),
        ("linear_add", "cp.async.commit_group", "no commit", &none),
        ("attention", ".trans.", "not transposed", &|line| line.replace(".trans.", ".")),
        ("attention", "cvt.rn.bf16x2", "the halves of a pair swapped", &|line| swap(line, 0)),
        ("attention", "shfl.sync.bfly", "another lane", &|line| line.replace("bfly", "up")),
        ("linear_add", "cp.async.cg", "8 bytes for 16", &|line| line.replace(" 16,", " 8,")),
        ("rmsnorm", "rsqrt", "no root", &|line| line.replace("rsqrt.approx", "rcp.rn")),
    ];
    for (stem, word, what, edit) in mistakes {
        let source = source::all().iter().find(|source| source.stem == stem).unwrap();
        let changed = change(&text(source), word, edit);
        let changed = changed.unwrap_or_else(|| panic!("{stem}: no {word}"));
        let found = found(alone.0, ARCH, stem, changed, &text);
        say(&format!("{stem}, {what}: {}", found.as_deref().unwrap_or("not found")));
        assert!(found.is_some(), "{stem}, {word}: {what}");
    }
}

/// Shapes whose rows are whole tiles, so that what is asked beyond what is needed is the kernel's own.
fn shapes() -> Vec<(&'static str, Op)> {
    let seqs = |past, rows, mask| vec![Seq { past, rows, mask }];
    let (causal, both) = (Mask::Causal { window: None }, Mask::Bidirectional { window: None });
    let attention = Attention { heads: 8, kv_heads: 2, head_dim: 128, layer: 1 };
    let qkv = |rows| Qkv { rows, dim: 256, heads: 4, kv_heads: 2, head_dim: 64, layer: 1 };
    let linear = |rows| Op::LinearAdd(LinearAdd { rows, inner: 512, outer: 256 });
    let logits = Logits { dim: 256, vocab: 512, eps: 1e-5 };
    let expert = Expert { rows: 64, dim: 256, hidden: 256, experts: 4, top_k: 2 };
    vec![
        ("rmsnorm", Op::RmsNorm(RmsNorm { rows: 4, dim: 4096, eps: 1e-5 })),
        ("product of 128 rows", linear(128)),
        ("product of 16 rows", linear(16)),
        ("product of one row", linear(1)),
        ("gate and up", Op::GateUp(GateUp { rows: 128, dim: 256, hidden: 256 })),
        ("qkv", Op::Qkv(qkv(128), seqs(0, 128, causal))),
        ("qkv of one row", Op::Qkv(qkv(1), seqs(100, 1, causal))),
        ("attention, causal", Op::Attention(attention, seqs(0, 256, causal))),
        ("attention, both ways", Op::Attention(attention, seqs(0, 256, both))),
        ("attention, one row", Op::Attention(attention, seqs(1023, 1, causal))),
        ("logits of one row", Op::Logits { p: logits, rows: vec![0] }),
        ("experts", Op::Expert(expert)),
    ]
}

/// What a kernel asks of the hardware at one of the shapes, at most: sectors of global memory and passes
/// of shared memory, each of those that are needed, and the instructions that warps take, as NVRTC 13.0
/// writes them. Another compiler's instructions are only told.
const CEILINGS: [(&str, &str, f64, f64, u64); 16] = [
    ("rmsnorm", "rmsnorm_rows", 1.0, 1.0, 12_480),
    ("product of 128 rows", "linear_add_64x128", 1.0, 1.0, 61_312),
    ("product of 128 rows", "narrow_rows", 1.0, 1.0, 46_080),
    ("product of 16 rows", "linear_add_16x32", 1.0, 1.0, 28_688),
    ("product of one row", "linear_add_16x32", 1.0, 1.0, 28_040),
    // Pairs of bf16 are half a sector a row.
    ("gate and up", "gate_up_64x128", 1.12, 1.0, 62_400),
    ("qkv", "qkv_64x128", 1.43, 1.0, 87_368),
    ("qkv of one row", "qkv_16x32", 1.02, 1.0, 39_384),
    ("attention, causal", "attention_128_causal", 1.0, 1.0, 410_016),
    ("attention, both ways", "attention_128_both", 1.0, 1.0, 554_304),
    ("attention, one row", "attention_128_causal_split", 1.01, 1.0, 97_584),
    ("logits of one row", "logits_16x32", 1.0, 1.0, 36_368),
    ("experts", "expert_add_rows", 1.0, 1.0, 19_072),
    ("experts", "expert_down_64x128", 1.0, 1.0, 57_912),
    ("experts", "expert_gate_up_64x128", 1.05, 1.0, 118_384),
    ("experts", "route_f32", 1.2, 1.0, 175_040),
];

/// Runs the shapes that `op` begins with on these kernels; returns the ceilings that they exceed, a line
/// each.
fn exceeded(texts: &[Vec<u8>], op: &str, version: (i32, i32)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), ARCH, texts);
    let cuda = Cuda::open(&Options::default().kernels(Some(folder.path().into()))).unwrap();
    let mut exceeded = Vec::new();
    for (name, op) in shapes().into_iter().filter(|(name, _)| name.starts_with(op)) {
        let mut case = Case::new(op, Dtype::Bf16);
        case.bf16 = true;
        counts();
        case.run(&cuda).unwrap();
        let found = counts();
        for (_, kernel, sectors, passes, instructions) in CEILINGS.iter().filter(|c| c.0 == name) {
            let c = found.get(*kernel).unwrap_or_else(|| panic!("{name}: no {kernel}: {found:?}"));
            let share = |asked: u64, needed: u64| asked as f64 / needed.max(1) as f64;
            let mut ceiling = |what: &str, found: f64, most: f64| {
                if found > most {
                    let line = format!("{name}, {kernel}: {what} {found:.3}, at most {most:.3}");
                    exceeded.push(line);
                }
            };
            ceiling("sectors", share(c.sectors, c.sectors_needed), *sectors);
            ceiling("passes", share(c.passes, c.passes_needed), *passes);
            if version == (13, 0) {
                ceiling("instructions", c.instructions as f64, *instructions as f64);
            } else if c.instructions > *instructions {
                say(&format!(
                    "{name}, {kernel}: {} instructions, {instructions} by 13.0",
                    c.instructions
                ));
            }
        }
    }
    exceeded
}

#[test]
fn counts_stay_below_their_ceilings() {
    let Some(_alone) = Alone::install("ptx::counts_stay_below_their_ceilings") else { return };
    let Some(nvrtc) = nvrtc("ptx::counts_stay_below_their_ceilings") else { return };
    let mut texts = texts(&nvrtc, SMALL);
    let found = exceeded(&texts, "", nvrtc.version());
    assert!(found.is_empty(), "{}", found.join("\n"));

    // The ceilings are seen to be low: rows that meet in banks, sums that are stored one by one, a loop
    // with one instruction more.
    let at = source::all().iter().position(|source| source.stem == "linear_add").unwrap();
    let source = &source::all()[at];
    let (_, matmul) = source::HEADERS.iter().find(|(name, _)| *name == "matmul.cuh").unwrap();
    let right = texts[at].clone();
    let changed = |from: &str, to: &str| {
        let file = inlined(source, "matmul.cuh", matmul).file;
        assert!(file.contains(from), "no {from}");
        nvrtc.ptx(&Source { file: file.replace(from, to).into(), ..source.clone() }, ARCH).unwrap()
    };
    let one_more = |line: &str| format!("{line}\tadd.s32 %r1, %r1, 0;\n");
    let mistakes = [
        (changed("chunk ^ row % CHUNKS", "chunk"), "passes"),
        (changed("return even(p);", "return false;"), "sectors"),
        (change(&right, "mma.sync", one_more).unwrap(), "instructions"),
    ];
    for (text, what) in mistakes {
        texts[at] = text;
        let found = exceeded(&texts, "product of 128", nvrtc.version());
        let is_found = found.iter().any(|line| line.contains(what));
        assert_eq!(
            is_found,
            what != "instructions" || nvrtc.version() == (13, 0),
            "{what}: {found:?}"
        );
    }
}
