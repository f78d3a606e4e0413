//! What the compiler makes of the matrix products for Hopper: nothing spills or waits needlessly, the
//! main loops have the instructions that were planned and no others, and take the cycles that the model
//! said before. Each gate is seen to close once.

use crate::kernels::nvrtc;
use crate::support::say;
use gritlm_kernels::compile::{Nvrtc, Usage};
use gritlm_kernels::source::{self, Source};
use gritlm_kernels::tune::{TILES, Tile};
use gritlm_sass::{Block, Gpu, Kernel, Launch, MainLoops, Work, disassemble};
use std::collections::BTreeMap;

const ARCH: &str = "sm_90a";

/// Of each tile, the most instructions of a step by a warp that multiplies, and the most cycles of a step
/// by one block on each multiprocessor whose operands come from L2.
const CEILINGS: [(&str, u32, f64); 6] = [
    ("hopper_8x128", 46, 365.0),
    ("hopper_32x128", 46, 429.0),
    ("hopper_64x128", 46, 514.0),
    ("hopper_128x128", 46, 685.0),
    ("hopper_128x192", 46, 860.0),
    ("hopper_128x256", 56, 1050.0),
];

/// A compiled source: what the compiler said, and its kernels with what they use.
struct Compiled {
    said: Vec<String>,
    kernels: Vec<(Kernel, Usage)>,
}

/// Compiles and disassembles a source; `None` where there is no disassembler and nobody expects it.
fn compile(test: &str, nvrtc: &Nvrtc, source: &Source) -> Option<Compiled> {
    let compiled = nvrtc.compile(source, ARCH).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernels.cubin");
    std::fs::write(&file, &compiled.cubin).unwrap();
    let kernels = match disassemble(&file) {
        Ok(kernels) => kernels,
        Err(problem) => {
            assert!(std::env::var_os("GRITLM_EXPECT_CUDA").is_none(), "{problem}");
            say(&format!("SKIPPED {test}: {problem}"));
            return None;
        }
    };
    let hopper = kernels.into_iter().filter(|kernel| kernel.name.contains("_hopper_"));
    let used = |kernel: Kernel| {
        let usage = compiled.usage.iter().find(|usage| usage.entry == kernel.name).unwrap();
        (kernel, usage.clone())
    };
    Some(Compiled { said: compiled.said.clone(), kernels: hopper.map(used).collect() })
}

/// The tile of a kernel.
fn tile(name: &str) -> Tile {
    let hopper = |tile: &&Tile| tile.is_hopper() && name.ends_with(tile.name);
    *TILES.iter().find(hopper).unwrap()
}

/// Cycles of a step by one block on each multiprocessor, all of whose operands come from L2.
fn cycles(kernel: &Kernel, usage: &Usage) -> f64 {
    let Tile { rows, cols, threads, .. } = tile(&kernel.name);
    let block = Block { threads, registers: usage.registers, shared: tile(&kernel.name).shared() };
    // Eight warps multiply; two blocks of a cluster share the weights.
    let products = f64::from(rows * cols * 64) / 2048.0 / 8.0;
    let shared = kernel.code.iter().any(|i| i.op.contains("MULTICAST"));
    let copied = 128 * (rows + if shared { cols / 2 } else { cols });
    let work = Work { steps: 64, longest: 64, products, tiles: 1, copied };
    Gpu::H200.predict(kernel, &Launch { blocks: 132, block, work, bytes: 0 }).step
}

/// What is wrong with a source's kernels, a line each.
fn faults(compiled: &Compiled) -> Vec<String> {
    let mut lines = Vec::new();
    let serial = |line: &&String| (7508..=7519).any(|n| line.contains(&format!("C{n}")));
    lines.extend(compiled.said.iter().filter(serial).map(|line| format!("said: {line}")));
    for (kernel, usage) in &compiled.kernels {
        let mut fault = |text: String| lines.push(format!("{}: {text}", kernel.name));
        if usage.spills + usage.stack > 0 {
            fault(format!("{} bytes spilled, {} of stack", usage.spills, usage.stack));
        }
        let local = kernel.code.iter().filter(|i| matches!(i.base(), "LDL" | "STL")).count();
        if local > 0 {
            fault(format!("{local} accesses to local memory"));
        }
        let Some(MainLoops { multiplies, copies, steps }) = kernel.main_loops() else {
            fault("no loop multiplies, or none copies".into());
            continue;
        };
        let count = |range: &std::ops::Range<usize>, op: &str| {
            kernel.code[range.clone()].iter().filter(|i| i.base() == op).count() as u32
        };
        let products = count(&multiplies, "HGMMA");
        if products != 4 * steps {
            fault(format!("{products} products in {steps} steps, expected 4 in each"));
        }
        // Descriptors that are not known to be a warp's own come from its lanes.
        let moved = count(&multiplies, "R2UR");
        if moved > 0 {
            fault(format!("{moved} descriptors are taken from lanes"));
        }
        let Tile { name, cols, .. } = tile(&kernel.name);
        // One of the rows, and of the weights one for 64 rows.
        let boxes = 1 + cols / 64;
        let fillings = count(&copies, "UTMALDG");
        if fillings == 0 || !fillings.is_multiple_of(boxes) {
            fault(format!("{fillings} boxes are copied, expected {boxes} a step"));
        }
        let (_, most, longest) = CEILINGS.into_iter().find(|(known, ..)| *known == name).unwrap();
        let instructions = (multiplies.len() as u32).div_ceil(steps);
        if instructions > most {
            fault(format!("{instructions} instructions a step, at most {most}"));
        }
        let cycles = cycles(kernel, usage);
        if cycles > longest {
            fault(format!("{cycles:.0} cycles a step, at most {longest:.0}"));
        }
    }
    lines
}

#[test]
fn products_are_compiled_as_planned() {
    const TEST: &str = "hopper::products_are_compiled_as_planned";
    let Some(nvrtc) = nvrtc(TEST) else { return };
    let mut seen = BTreeMap::new();
    for source in source::all() {
        if !source.file.contains("MATMULS_HOPPER(") {
            continue;
        }
        let Some(compiled) = compile(TEST, &nvrtc, source) else { return };
        let found = faults(&compiled);
        assert!(found.is_empty(), "{}:\n{}", source.stem, found.join("\n"));
        for (kernel, _) in &compiled.kernels {
            *seen.entry(tile(&kernel.name).name).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), CEILINGS.len(), "{seen:?}");
    assert!(seen.values().all(|count| *count == 6), "{seen:?}");
}

/// A product with one tile whose source or headers are changed.
fn planted(changes: &[(&str, &str)]) -> Source {
    let source = source::all().iter().find(|source| source.stem == "linear_add").unwrap();
    let header = |name: &str| source::HEADERS.iter().find(|(n, _)| *n == name).unwrap().1;
    let mut matmul = header("matmul_hopper.cuh").replace("#include \"ptx_hopper.cuh\"\n", "");
    matmul = matmul.replace("#pragma once", "");
    let before = "#include \"matmul.cuh\"\n";
    let ptx = header("ptx_hopper.cuh").replace("#pragma once", "");
    matmul = matmul.replace(before, &format!("{before}#ifdef GRITLM_HOPPER\n{ptx}\n#endif\n"));
    for (from, to) in changes {
        assert!(matmul.contains(from), "{from}");
        matmul = matmul.replace(from, to);
    }
    let one = "KERNEL_CLUSTER(linear_add_hopper_128x128, ProductMaps, 384, 1, 1, \
               matmul_hopper<LinearAdd, 128, 6, 1>)";
    let file = source.file.replace("#include \"matmul_hopper_few.cuh\"", &matmul);
    let file = file.replace("MATMULS(linear_add, LinearAdd)", "");
    let file = file.replace("MATMULS_HOPPER(linear_add, LinearAdd)", one);
    let file = file.replace("SUM_PARTS(linear_add, LinearAdd)", "");
    Source { file: file.into(), ..source.clone() }
}

#[test]
fn each_gate_closes() {
    const TEST: &str = "hopper::each_gate_closes";
    let Some(nvrtc) = nvrtc(TEST) else { return };
    let Some(compiled) = compile(TEST, &nvrtc, &planted(&[])) else { return };
    assert_eq!(faults(&compiled), [""; 0]);
    let all = [
        // The sums are touched while products are under way.
        ("wgmma_wait<1>();", "sums[0] += 1.0f; wgmma_wait<1>();", "said: "),
        ("u32 before = 0;", "u32 before = 0; volatile u32 kept[64]; kept[n % 64] = n;", "of stack"),
        // Whose product it is comes from the thread's number.
        ("__shfl_sync(ALL, threadIdx.x / WARPGROUP, 0)", "threadIdx.x / WARPGROUP", "from lanes"),
        ("i < DEPTH / 16; i++", "i < DEPTH / 16 - 1; i++", "expected 4 in each"),
        ("box < ROWS / BOX; box++", "box < ROWS / BOX - 1; box++", "expected 3 a step"),
        (
            "before = stage;",
            "before = stage; __nanosleep(k); __nanosleep(stage);",
            "instructions a",
        ),
        ("wgmma_wait<1>();", "wgmma_wait<0>(); __threadfence();", "cycles a step"),
    ];
    for (from, to, says) in all {
        let compiled = compile(TEST, &nvrtc, &planted(&[(from, to)])).unwrap();
        let found = faults(&compiled);
        assert!(found.iter().any(|line| line.contains(says)), "{to}: {found:?}");
    }
}
