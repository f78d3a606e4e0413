//! The PTX that NVRTC writes for the CUDA kernels, run by `kernels/emulator/ptx`: the text that a GPU is
//! given, inline assembly included. NVRTC needs no GPU.

use crate::emulator::mutants::found;
use crate::emulator::{Alone, save};
use crate::kernels::nvrtc;
use crate::ops::check;
use crate::support::say;
use gritlm_kernels::compile::Nvrtc;
use gritlm_kernels::source::{self, Source};
use gritlm_kernels::{Cuda, Options};
use rayon::prelude::*;

/// Largest relative error of an op whose operands, or whose result, are bf16.
const BF16: f64 = 8e-3;

const ARCH: &str = "sm_80";

/// All kernels as PTX.
fn texts(nvrtc: &Nvrtc) -> Vec<Vec<u8>> {
    source::all().par_iter().map(|source| nvrtc.ptx(source, ARCH).unwrap()).collect()
}

#[test]
fn every_case_as_ptx() {
    let Some(alone) = Alone::install("ptx::every_case_as_ptx") else { return };
    let Some(nvrtc) = nvrtc("ptx::every_case_as_ptx") else { return };
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &texts(&nvrtc));
    alone.0.quiet(false);
    let cuda = Cuda::open(&Options::default().kernels(Some(folder.path().into()))).unwrap();
    check(&cuda, BF16, |case| {
        case.bf16 = true;
        true
    });
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
    let texts = texts(&nvrtc);
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
        let found = found(alone.0, stem, changed, &text);
        say(&format!("{stem}, {what}: {}", found.as_deref().unwrap_or("not found")));
        assert!(found.is_some(), "{stem}, {word}: {what}");
    }
}
