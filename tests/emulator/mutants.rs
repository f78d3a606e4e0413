//! The project's kernels with planted mistakes: the case table finds each on the emulator.

use super::{Alone, Emulator, Model, SMALL, SMALL_HOPPER, cubin, headers, save};
use gritlm::model::reference::relative_error;
use gritlm_bench::cases::cases;
use gritlm_kernels::source::{self, HEADERS, Source};
use gritlm_kernels::{Cuda, Options};
use rayon::prelude::*;
use std::fs;

/// Largest relative error of an op on the emulator.
const BF16: f64 = 8e-3;

/// A kernel with a mistake: in a file that its source has, a text is another.
struct Mutant {
    stem: &'static str,
    file: &'static str,
    from: String,
    /// Which time the text occurs.
    nth: usize,
    to: &'static str,
    /// What the emulator is.
    model: Model,
}

impl Mutant {
    fn name(&self) -> String {
        format!("{}, {:?} (number {}) -> {:?}", self.file, self.from, self.nth, self.to)
    }

    /// The source with the mistake, compiled.
    fn cubin(&self) -> Vec<u8> {
        let source = source::all().iter().find(|s| s.stem == self.stem).unwrap();
        let (mut text, mut headers) = (source::text(source), headers());
        let header = headers.iter_mut().find(|(name, _)| *name == self.file);
        let changed = header.map_or(&mut text, |(_, text)| text);
        let at = changed.match_indices(&self.from).nth(self.nth);
        let (at, _) = at.unwrap_or_else(|| panic!("not there: {}", self.name()));
        changed.replace_range(at..at + self.from.len(), self.to);
        // Most of the many variants of attention take as long to compile as they are alike.
        let alike = |line: &str| {
            self.stem == "attention" && line.starts_with("KERNEL") && !line.contains("_64_")
        };
        let lines: Vec<&str> = text.lines().filter(|line| !alike(line)).collect();
        cubin(self.model.arch(), self.stem, &lines.join("\n"), &headers)
    }

    fn found(&self, emulator: &Emulator, cubin: Vec<u8>) -> Option<String> {
        let built = |s: &Source| {
            let file = format!("{}.{}.cubin", s.stem, self.model.arch());
            fs::read(emulator.kernels(self.model).join(file)).unwrap()
        };
        emulator.be(self.model);
        let found = found(emulator, self.model.arch(), self.stem, cubin, &built);
        emulator.be(SMALL);
        found
    }
}

/// The fault or the wrong result that the case table finds in a kernel that is `cubin`, while the
/// others are right.
pub(crate) fn found(
    emulator: &Emulator,
    arch: &str,
    changed: &str,
    cubin: Vec<u8>,
    built: &dyn Fn(&Source) -> Vec<u8>,
) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let kernel = |s: &Source| if s.stem == changed { cubin.clone() } else { built(s) };
    save(folder.path(), arch, &source::all().iter().map(kernel).collect::<Vec<_>>());
    let kernels = Some(folder.path().into());
    let cuda = Cuda::open(&Options::default().kernels(kernels)).unwrap();
    let op = match changed {
        "linear_add" | "rmsnorm" => changed,
        "route" => "expert",
        stem => stem.split('_').next().unwrap(),
    };
    for mut case in cases().into_iter().filter(|case| case.name.starts_with(op)) {
        case.bf16 = true;
        let out = case.run(&cuda);
        let fault = emulator.fault();
        if !fault.is_empty() {
            return Some(fault);
        }
        // Without a fault, it is a variant that was left out.
        let (Ok(out), expected, exact) = (out, case.expected(), case.exact()) else { continue };
        let same = out.len() == expected.len() && out[..exact] == expected[..exact];
        if !same || (out != expected && relative_error(&out[exact..], &expected[exact..]) > BF16) {
            return Some(format!("{}: a wrong result", case.name));
        }
    }
    None
}

/// What is found of each; they are compiled side by side.
fn find(mutants: &[Mutant], emulator: &Emulator) -> Vec<Option<String>> {
    let cubins: Vec<_> = mutants.par_iter().map(Mutant::cubin).collect();
    let found = |(mutant, cubin): (&Mutant, _)| mutant.found(emulator, cubin);
    mutants.iter().zip(cubins).map(found).collect()
}

/// Without any one of the barriers and waits in the kernels, the emulator finds a fault.
#[test]
fn every_barrier_is_needed() {
    let Some(alone) = Alone::install("emulator::mutants::every_barrier_is_needed") else { return };
    let mut mutants = Vec::new();
    let files = source::all().iter().map(|s| (s.stem, s.stem, source::text(s)));
    let header = |(stem, file)| {
        let (_, text) = HEADERS.iter().find(|(name, _)| *name == file).unwrap();
        (stem, file, text.to_string())
    };
    let headers = [
        ("pool", "common.cuh"),
        ("sample", "order.cuh"),
        ("linear_add", "matmul.cuh"),
        ("attention", "attention.cuh"),
    ];
    for (stem, file, text) in files.chain(headers.map(header)) {
        for barrier in
            ["__syncthreads();", "__syncwarp();", "cp_async_wait<", "wait_for_previous();"]
        {
            for (at, _) in text.match_indices(barrier) {
                let from = text[at..].split_inclusive(';').next().unwrap().to_string();
                let nth = text[..at].matches(&from).count();
                mutants.push(Mutant { stem, file, from, nth, to: ";", model: SMALL });
            }
        }
    }
    let found = find(&mutants, alone.0);
    // A scratch may be used again at once; nothing is under way when attention ends; the emulator has a
    // KERNEL of its own.
    let kept = [
        ("common.cuh", "__syncthreads();", 0),
        ("attention", "cp_async_wait<0>();", 0),
        ("common.cuh", "wait_for_previous();", 0),
    ];
    for (mutant, found) in mutants.iter().zip(found) {
        let fault = found.is_some_and(|found| !found.ends_with("a wrong result"));
        let kept = kept.contains(&(mutant.file, &mutant.from, mutant.nth));
        assert!(fault != kept, "{}", mutant.name());
    }
}

/// Small mistakes in the kernels are found, as a fault or by a wrong result.
#[test]
fn broken_kernels_are_found() {
    let Some(alone) = Alone::install("emulator::mutants::broken_kernels_are_found") else { return };
    let mutants = [
        ("linear_add", "matmul.cuh", "STAGES - 2>()", "STAGES - 1>()"),
        ("linear_add", "matmul.cuh", "ceil_div(p.inner, DEPTH)", "p.inner / DEPTH"),
        ("linear_add", "matmul.cuh", "2 * min(inner - k, 8u)", "16"),
        ("linear_add", "matmul.cuh", "2 * k + lane() / 16", "2 * k + lane() / 8 % 2"),
        ("expert_gate_up", "matmul.cuh", "m >= end", "m > end"),
        ("linear_add", "matmul.cuh", "8 * n < p.outputs", "8 * n <= p.outputs"),
        ("linear_add", "matmul.cuh", "min(m, rows.end - 1)", "m"),
        ("linear_add", "matmul.cuh", "min(j, p.outputs - 1)", "j"),
        ("attention", "attention.cuh", "F::MASK & CAUSAL", "F::MASK & WINDOW"),
        ("attention", "attention.cuh", "keys.end, at + 1", "keys.end, at + 2"),
        (
            "attention",
            "attention.cuh",
            "at + 1 - min(at + 1, tile.window)",
            "at - min(at, tile.window)",
        ),
        ("attention", "attention.cuh", "F::RING - 2>()", "F::RING - 1>()"),
        ("attention", "attention.cuh", "start + row + i < end_key", "start + row + i <= end_key"),
        ("attention", "attention", "atomic_add_ordered(", "atomic_add("),
        ("attention", "attention.cuh", "start % PAGE", "start % (PAGE / 2)"),
        ("expert_sort", "expert_sort", "", ""),
        ("rmsnorm", "rmsnorm", "if (c < p.h_stride)", "if (c < p.h_stride + 4)"),
    ];
    let mutant = |(stem, file, from, to): (_, _, &str, _)| Mutant {
        stem,
        file,
        from: from.into(),
        nth: 0,
        to,
        model: SMALL,
    };
    let mutants = mutants.map(mutant);
    for (mutant, found) in mutants.iter().zip(find(&mutants, alone.0)) {
        assert_eq!(found.is_some(), mutant.from != mutant.to, "{}", mutant.name());
    }
}

/// So are those in attention on Hopper: what is waited for, what is given back, what is masked.
#[test]
fn broken_attention_on_hopper_is_found() {
    let Some(alone) = Alone::install("emulator::mutants::broken_attention_on_hopper_is_found")
    else {
        return;
    };
    let mutants = [
        ("", ""),
        ("        barrier_init_fence();", ""),
        ("    fence_async();", ""),
        ("to.at, to.parity ^ 1", "to.at, to.parity"),
        ("of.at, of.parity", "of.at, of.parity ^ 1"),
        ("2 * rows * H::D", "2 * rows * H::D - 16"),
        ("CONSUMERS * WARPGROUP / WARP;", "1;"),
        ("if (at.is_last())", "if (true)"),
        ("wgmma_wait<1>();", ""),
        ("wgmma_wait<0>();", ""),
        ("        wgmma_fence();", ""),
        ("    if (number == 1) {", "    if (false) {"),
        ("min(tile.end_key - start, PAGE) - PAGE", "0"),
        ("max(keys.first, at.start)", "keys.first"),
        ("start < whole ||", ""),
        ("|| start + PAGE > whole_end", ""),
        ("min(start + PAGE, tile.end_key - 1)", "start"),
        ("!fresh || key > 0", "true"),
        ("            rows.begin();", ""),
        ("if (m < tile.end)", "if (true)"),
        ("step == 1 ? 2 * n : n", "n"),
        ("round % 2 ? gridDim.x - 1 - blockIdx.x", "round % 2 ? gridDim.x - 1"),
    ];
    let mutants = mutants.map(|(from, to)| Mutant {
        stem: "attention",
        file: "attention_hopper.cuh",
        from: from.into(),
        nth: 0,
        to,
        model: SMALL_HOPPER,
    });
    for (mutant, found) in mutants.iter().zip(find(&mutants, alone.0)) {
        assert_eq!(found.is_some(), mutant.from != mutant.to, "{}", mutant.name());
    }
}
