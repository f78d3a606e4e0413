//! What GPU vendors' own compilers make of the shaders: the counts of AMD's, which runs without a
//! GPU, beside a record; and what Apple's and Microsoft's get to read.

use crate::shaders::{parse, validator};
use crate::support::say;
use gritlm::model::weights::Dtype;
use gritlm_shaders::shader::{default_variants, runtime_checks, shaders};
use naga::back::{hlsl, msl, pipeline_constants::process_overrides};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the program `isa` of `shaders/examples`, which `cargo test` builds beside the tests.
fn isa(arguments: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_BIN_EXE_gritlm")).with_file_name("examples");
    let program = folder.join("isa");
    let output = Command::new(&program).args(arguments).output();
    output.unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

fn record() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record/shaders")
}

/// Says that a test was skipped if RADV is missing, unless all software adapters are expected.
fn skipped(test: &str, output: &Output) -> bool {
    let is_skipped = output.status.code() == Some(77) || !cfg!(target_os = "linux");
    if is_skipped {
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("GRITLM_EXPECT_ADAPTERS").is_none(), "{problem}");
        say(&format!("SKIPPED {test}: {}", problem.trim()));
    }
    is_skipped
}

/// The default variants take no more of AMD's GPUs than the record says. After a change that is worth
/// it: `cargo run --release -p gritlm-shaders --example isa -- record`.
#[test]
fn default_variants_take_what_is_recorded() {
    let output = isa(&["check"]);
    if skipped("vendors::default_variants_take_what_is_recorded", &output) {
        return;
    }
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    told.lines().for_each(say);
    assert!(told.contains("navi21: ") && told.contains("gfx1100: "), "{told}");
}

/// What a user's own file takes stands beside ours; mistakes in it are told.
#[test]
fn a_users_file_beside_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.wgsl");
    let with = format!("rmsnorm={}", path.display());
    let text = include_str!("../shaders/rmsnorm.wgsl");
    std::fs::write(&path, text.replace("sum / f32(p.dim)", "sin(sum) / f32(p.dim)")).unwrap();
    let output = isa(&["with", &with, "rmsnorm subgroups"]);
    if skipped("vendors::a_users_file_beside_ours", &output) {
        return;
    }
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Vec<&str>> = (told.lines())
        .filter(|line| line.contains("DTYPE"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.len() >= 12, "{told}");
    for row in rows {
        let count = |at: usize| row[at].parse::<u32>().unwrap();
        assert!(count(5) > count(4) && count(4) > 50 && row[6] == "rmsnorm", "{row:?}");
    }
    std::fs::write(&path, format!("{text}fn broken() {{")).unwrap();
    let output = isa(&["with", &with, "rmsnorm subgroups"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("mine.wgsl:") && told.contains("does not compile"), "{told}");
    let output = isa(&["with", "rmsnom=a.wgsl"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("found rmsnom"));
}

/// A change of a record's line.
type Change<'a> = &'a dyn Fn(&mut Value);

/// Against a record with better counts, the check fails and names each; a record of another version is
/// only named.
#[test]
fn a_variant_that_takes_more_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let write = |change: Change<'_>| {
        for chip in ["navi21", "gfx1100"] {
            let name = format!("{chip}.jsonl");
            let text = std::fs::read_to_string(record().join(&name)).unwrap();
            let lines = text.lines().filter(|line| line.contains("\"pool ")).map(|line| {
                let mut taken = serde_json::from_str(line).unwrap();
                change(&mut taken);
                format!("{taken}\n")
            });
            let text: String = lines.collect();
            assert!(!text.is_empty());
            std::fs::write(folder.path().join(&name), text).unwrap();
        }
    };
    write(&|_| ());
    let same = isa(&["check", "pool ", path]);
    if skipped("vendors::a_variant_that_takes_more_is_named", &same) {
        return;
    }
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stderr));
    if String::from_utf8_lossy(&same.stdout).contains("not compared") {
        return;
    }
    let less = |taken: &mut Value, name: &str, by: i64| {
        taken[name] = (taken[name].as_i64().unwrap() - by).into();
    };
    let changes: [(Change<'_>, &str); 4] = [
        (&|taken| less(taken, "instructions", 30), "instructions, at most "),
        (&|taken| less(taken, "subgroups", -1), "subgroups a SIMD, at least "),
        (&|taken| taken["variant"] = "pool of nothing".into(), "not in the record"),
        (&|taken| taken["variant"] = "pool of nothing".into(), "no default any more"),
    ];
    for (change, expected) in changes {
        write(change);
        let output = isa(&["check", "pool ", path]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{expected}: {told}");
        for chip in ["navi21: pool", "gfx1100: pool"] {
            let names = |line: &str| line.starts_with(chip) && line.contains(expected);
            assert!(told.lines().any(names), "{expected}: {told}");
        }
    }
    write(&|taken| {
        less(taken, "instructions", 30);
        taken["driver"] = "Mesa 1.0".into();
    });
    let other = isa(&["check", "pool ", path]);
    assert!(other.status.success());
    let told = String::from_utf8_lossy(&other.stdout);
    assert!(told.contains("not compared: the record is by Mesa 1.0"), "{told}");
}

/// naga writes every default variant in the languages of Metal and DirectX, as wgpu asks for it on an
/// Apple or a Windows machine.
#[test]
fn default_variants_become_metal_and_hlsl() {
    let modules: HashMap<_, _> = (shaders().into_iter())
        .flat_map(|shader| [(shader, false), (shader, true)])
        .map(|(shader, subgroups)| {
            let module = parse(&shader.source(subgroups), shader.name);
            let info = validator(shader, subgroups).validate(&module).unwrap();
            ((shader.name, subgroups), (shader, module, info))
        })
        .collect();
    let checks = runtime_checks();
    let policy = BoundsCheckPolicy::Restrict;
    let metal = msl::Options {
        lang_version: (2, 4),
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            ..Default::default()
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checks.force_loop_bounding,
        emit_int_div_checks: checks.int_div_checks,
        ..Default::default()
    };
    let direct = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checks.force_loop_bounding,
        ..Default::default()
    };
    let all = default_variants(&Dtype::ALL);
    for variant in &all {
        let (shader, module, info) = &modules[&(variant.shader, variant.subgroups)];
        let constants = variant.constants.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        let entry = (naga::ShaderStage::Compute, "main");
        let (module, _) = process_overrides(module, info, Some(entry), &constants).unwrap();
        let info = validator(shader, variant.subgroups).validate(&module).unwrap();
        let entry = Some((entry.0, entry.1.to_string()));
        let options = msl::PipelineOptions { entry_point: entry.clone(), ..Default::default() };
        let (text, _) = msl::write_string(&module, &info, &metal, &options)
            .unwrap_or_else(|e| panic!("{variant} in Metal: {e}"));
        assert!(text.contains("kernel void"), "{variant}");
        let mut text = String::new();
        let options = hlsl::PipelineOptions { entry_point: entry };
        let written = hlsl::Writer::new(&mut text, &direct, &options).write(&module, &info, None);
        let written = written.unwrap_or_else(|e| panic!("{variant} in HLSL: {e}"));
        let names: Vec<_> = written.entry_point_names.into_iter().map(Result::unwrap).collect();
        assert!(text.contains("[numthreads("), "{variant}: {names:?}");
    }
    say(&format!("shaders: {} default variants in Metal and HLSL", all.len()));
}
