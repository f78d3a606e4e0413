//! `gritlm bench ops --with STEM=FILE`: a user's own CUDA kernels, checked on the interpreter of PTX
//! and predicted, and the contract that docs/kernels.md states.

use crate::cli::{objects, run};
use crate::kernels::nvrtc;
use gritlm_bench::case::{Case, Step};
use gritlm_bench::cases::cases;
use gritlm_bench::laboratory::cuda::{Laboratory, is_product};
use gritlm_kernels::Cuda;
use gritlm_kernels::source::{self, Source};
use gritlm_kernels::tune::Form;
use gritlm_model::ops::{Ops, Pooling, PoolingSpan, RmsNorm, Route};
use gritlm_model::weights::{Dtype, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A source of the project in a folder, changed; returns the flag's value.
fn own(folder: &Path, stem: &str, change: impl Fn(&str) -> String) -> String {
    let source = source::all().iter().find(|source| source.stem == stem).unwrap();
    let (file, changed) = (folder.join("mine.cu"), change(&source.file));
    fs::write(&file, changed).unwrap();
    format!("{stem}={}", file.display())
}

/// What nobody has changed is right, and is predicted like ours.
#[test]
fn a_copy_of_ours_is_right() {
    let Some(_) = nvrtc("laboratory::a_copy_of_ours_is_right") else { return };
    let folder = tempfile::tempdir().unwrap();
    let with = own(folder.path(), "rmsnorm", str::to_string);
    let args = ["bench", "ops", "--device", "cpu", "--format", "json", "--with", &with];
    let lines = objects(&run(&args, "").ok());
    assert_eq!(lines[0]["kernel"], "rmsnorm");
    let entries = lines[0]["entries"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["registers"].as_u64().unwrap() > 0));
    assert!(
        lines[1]["cases"].as_u64().unwrap() > 5
            && lines[1]["failed"].as_array().unwrap().is_empty()
    );
    assert_eq!(lines[1]["launched"].as_array().unwrap().len(), entries.len());
    assert!(lines[1]["error"].as_f64().unwrap() > 0.0);
    assert!(lines.len() > 5);
    for pair in &lines[2..] {
        assert_eq!(pair["ours"], pair["yours"]);
        assert!(pair["ours"]["predicted_us"].as_f64().unwrap() > 0.0);
    }
}

/// A kernel that computes something else fails, with the cases; so does one that reads where nothing is.
#[test]
fn a_wrong_kernel_is_found() {
    let Some(_) = nvrtc("laboratory::a_wrong_kernel_is_found") else { return };
    let folder = tempfile::tempdir().unwrap();
    for (from, to, words) in [
        ("rsqrtf(", "1.0f / (", "relative error"),
        ("u64(row) * p.h_stride", "u64(row) * p.h_stride + (1ull << 40)", "outside every"),
    ] {
        let with = own(folder.path(), "rmsnorm", |text| {
            assert!(text.contains(from), "no {from}");
            text.replace(from, to)
        });
        let ran = run(&["bench", "ops", "--device", "cpu", "--with", &with], "");
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(ran.stdout.contains("checked on the interpreter of PTX"), "{}", ran.stdout);
        assert!(ran.stdout.contains(words), "{}", ran.stdout);
        let [problem] = ran.problems()[..] else { panic!("{}", ran.stderr) };
        assert!(problem.contains("mine.cu") && problem.contains("cases are wrong"), "{problem}");
    }
}

/// All that the compiler says is shown, with the user's lines; a header beside the file is taken.
#[test]
fn the_compiler_speaks_of_the_users_lines() {
    let Some(nvrtc) = nvrtc("laboratory::the_compiler_speaks_of_the_users_lines") else { return };
    let folder = tempfile::tempdir().unwrap();
    let with = own(folder.path(), "rmsnorm", |text| format!("int a = b;\n{text}\nint c = d;\n"));
    let ran = run(&["bench", "ops", "--device", "cpu", "--with", &with], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("mine.cu(1)") && ran.stderr.contains("\"d\""), "{}", ran.stderr);
    let problem = ran.stderr.lines().last().unwrap();
    assert!(problem.starts_with("error: --with: ") && problem.contains("sm_90a"), "{problem}");

    fs::write(folder.path().join("common.cuh"), "#error mine\n").unwrap();
    own(folder.path(), "rmsnorm", str::to_string);
    let source = Source::own("rmsnorm", &folder.path().join("mine.cu")).unwrap();
    let problem = nvrtc.compile(&source, "sm_80").unwrap_err().to_string();
    assert!(problem.contains("mine"), "{problem}");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let run = |with: &str| run(&["bench", "ops", "--device", "cpu", "--with", with], "");
    run("attention").fails(2, &["--with", "attention=my.cu", "attention"]);
    run("atention=a.cu").fails(1, &["atention", "attention, ", "sample"]);
    run("attention=no/such.cu").fails(1, &["no/such.cu"]);
}

/// The tables of docs/kernels.md: parameters as Rust has them, and what an H200 is asked to launch by the
/// case table, products in every form.
fn contract() -> String {
    let (mut planned, plan) = Cuda::planned("sm_90a").unwrap();
    // By source and entry point: threads of a block, and its bytes of shared memory.
    let mut entries: BTreeMap<(String, String), (u32, BTreeSet<u32>)> = BTreeMap::new();
    let all: Vec<Case> = cases().into_iter().filter(|case| planned.takes(case.dtype)).collect();
    for form in [None].into_iter().chain(Form::all().map(Some)) {
        planned.compute_as(form);
        for case in all.iter().filter(|case| form.is_none() || is_product(case)) {
            case.ready(&planned).unwrap()(Step::Launch).unwrap();
        }
    }
    // The forward pass pools and routes what a norm has written, in bf16; the table's rows come from the
    // host.
    let (rows, dim, eps) = (1, 8, 1e-5);
    let x = planned.upload(1, 8, &[0.0; 8]).unwrap();
    let mut h = planned.buffer(1, 8).unwrap();
    let weight = planned.matrix(&[Tensor::from_bytes(Dtype::F32, &[8], &[0; 32])]).unwrap();
    planned.rmsnorm(RmsNorm { rows, dim, eps }, &x, &weight, &mut h);
    let (skip, pooling, normalize) = (0, Pooling::Mean, false);
    let span = PoolingSpan { row: 0, rows, skip, pooling, normalize };
    planned.pool(dim, &[span], &h, &mut planned.buffer(1, 8).unwrap());
    let router = planned.matrix(&[Tensor::from_bytes(Dtype::F32, &[2, 8], &[0; 64])]).unwrap();
    let mut routing = planned.routing(1, 2, 1).unwrap();
    planned.route(Route { rows, dim, experts: 2, top_k: 1 }, &h, &router, &mut routing);
    for launch in plan.lock().unwrap().iter() {
        let key = (launch.source.to_string(), launch.entry.to_string());
        let entry = entries.entry(key).or_insert((launch.threads, BTreeSet::new()));
        assert_eq!(entry.0, launch.threads, "{}", launch.entry);
        entry.1.insert(launch.shared);
    }
    let mut text = String::new();
    for source in source::all() {
        write!(text, "### {}\n\n", source.stem).unwrap();
        for layout in source.params {
            let field = |(name, at): &(&str, usize)| format!("`{name}` {at}");
            let fields: Vec<String> = layout.fields.iter().map(field).collect();
            let of = format!("`{}`, {} bytes: {}.", layout.name, layout.size, fields.join(", "));
            write!(text, "{}\n\n", wrapped(&of)).unwrap();
        }
        text += "| entry point | threads | bytes of shared memory |\n|---|---|---|\n";
        for ((_, entry), (threads, shared)) in entries.iter().filter(|(k, _)| k.0 == source.stem) {
            let (least, most) = (shared.first().unwrap(), shared.last().unwrap());
            let shared =
                if least == most { most.to_string() } else { format!("{least} to {most}") };
            writeln!(text, "| `{entry}` | {threads} | {shared} |").unwrap();
        }
        text += "\n";
    }
    text
}

/// A text in lines of at most 100 columns.
pub(crate) fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        match line.len() + 1 + word.len() > 100 {
            true => lines.push(word.into()),
            false if line.is_empty() => line.push_str(word),
            false => *line += &format!(" {word}"),
        }
    }
    lines.join("\n")
}

#[test]
fn the_contract_is_on_paper() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
    let text = fs::read_to_string(file).unwrap();
    let (_, tables) = text.split_once("<!-- kernels -->\n").unwrap();
    let contract = contract();
    // The case table launches every entry point of every source.
    for line in source::all().iter().flat_map(|source| source.file.lines()) {
        if let Some(entry) = line.strip_prefix("KERNEL(").and_then(|rest| rest.split(',').next()) {
            assert!(contract.contains(&format!("| `{entry}` |")), "no case launches {entry}");
        }
    }
    assert!(
        tables.trim() == contract.trim(),
        "docs/kernels.md ends with other tables than:\n{contract}"
    );
}

/// The cases of a stem are those that launch it.
#[test]
fn cases_are_those_that_launch_a_kernel() {
    let source = |stem| source::all().iter().find(|s| s.stem == stem).unwrap().clone();
    let names = |stem| {
        let lab = Laboratory { own: vec![source(stem)], arch: "sm_80".into() };
        let cases = lab.cases().unwrap();
        cases.into_iter().map(|case| case.name).collect::<Vec<_>>()
    };
    assert!(
        names("pool").iter().all(|name| name.starts_with("pool ")) && !names("pool").is_empty()
    );
    assert!(names("expert_down").iter().all(|name| name.starts_with("expert ")));
}
