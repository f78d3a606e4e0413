//! `gritlm bench ops --with STEM=FILE.wgsl`: a user's own WGSL files, checked on an adapter and timed
//! beside ours, and the contract that docs/shaders.md states.

use crate::cli::{objects, run};
use crate::laboratory::wrapped;
use crate::shaders::{covered, open_all, parse};
use gritlm_shaders::shader::{Kind, Shader, shaders};
use gritlm_shaders::{Own, stems};
use naga::{AddressSpace, Scalar, ScalarKind, TypeInner};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Whether an adapter is here.
fn adapter(test: &str) -> bool {
    let gpus = open_all();
    covered(&format!("laboratory_wgsl::{test}"), &gpus);
    !gpus.is_empty()
}

/// A file of the project in a folder, changed; returns the flag's value.
fn own(folder: &Path, stem: &str, change: impl Fn(&str) -> String) -> String {
    let mut all = shaders().into_iter().flat_map(|s| s.files(false).chain(s.files(true)));
    let file = all.find(|file| file.stem == stem).unwrap();
    let (path, changed) = (folder.join("mine.wgsl"), change(file.text));
    fs::write(&path, changed).unwrap();
    format!("{stem}={}", path.display())
}

/// What the program says of a file; it times only the norm of a small model.
fn bench(with: &str, format: &str) -> crate::cli::Ran {
    let small = ["--like", "tiny", "--rows", "4", "--contexts", "8", "--batches", "1"];
    let ops = ["bench", "ops", "--device", "wgpu", "--format", format, "--with", with];
    run(&[&ops[..], &small, &["--filter", "rmsnorm", "--repeats", "3"]].concat(), "")
}

/// What nobody has changed is right, and both are timed.
#[test]
fn a_copy_of_ours_is_right() {
    if !adapter("a_copy_of_ours_is_right") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = objects(&bench(&own(folder.path(), "rmsnorm", str::to_string), "json").ok());
    assert_eq!(lines[0]["files"], serde_json::json!(["rmsnorm"]));
    assert_eq!(lines[0]["shaders"], 2);
    assert!(lines[1]["cases"].as_u64().unwrap() > 5);
    assert_eq!(lines[1]["failed"], serde_json::json!([]));
    assert!(lines[1]["error"].as_f64().unwrap() > 0.0);
    let launched = lines[1]["launched"].as_array().unwrap();
    assert!(launched.iter().all(|name| name.as_str().unwrap().starts_with("rmsnorm")));
    assert!(lines.len() > 2);
    for pair in &lines[2..] {
        assert_eq!(pair["ours"]["op"], "rmsnorm");
        assert!(pair["ours"]["us"].as_f64().unwrap() > 0.0);
        assert!(pair["yours"]["us"].as_f64().unwrap() > 0.0);
    }
}

/// A file that computes something else fails, with the cases, also one that many shaders share.
#[test]
fn a_wrong_shader_is_found() {
    if !adapter("a_wrong_shader_is_found") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (stem, from, to, words) in [
        ("rmsnorm", "1.0 / sqrt(", "1.0 / (", "relative error"),
        ("linear_add", "+= sum", "= sum", "relative error"),
        ("order", "order > prefix.order", "order < prefix.order", "other ids"),
    ] {
        let with = own(folder.path(), stem, |text| {
            assert!(text.contains(from), "{stem}: no {from}");
            text.replace(from, to)
        });
        let ran = bench(&with, "text");
        assert_eq!(ran.code, 1, "{stem}: {}", ran.stderr);
        assert!(ran.stdout.contains(words), "{stem}: {}", ran.stdout);
        let [problem] = ran.problems()[..] else { panic!("{}", ran.stderr) };
        assert!(problem.contains("mine.wgsl") && problem.contains("cases are wrong"), "{problem}");
    }
}

/// A mistake is told by the user's file, line and column, or by the project's file that it breaks.
#[test]
fn mistakes_have_places() {
    let folder = tempfile::tempdir().unwrap();
    let said = |stem: &str, change: &dyn Fn(&str) -> String| {
        let with = own(folder.path(), stem, change);
        let own = Own::read(stem, Path::new(with.split_once('=').unwrap().1)).unwrap();
        let (shader, subgroups) = own.shaders()[0];
        shader.check_with(subgroups, &[own]).unwrap_err().to_string()
    };
    let lines = |text: &str| text.matches('\n').count() + 1;
    // Not WGSL.
    let whole = |text: &str| format!("{text}fn broken() {{\n    let a = ;\n}}\n");
    let problem = said("linear_add", &whole);
    let line = lines(include_str!("../shaders/linear_add.wgsl")) + 1;
    assert!(problem.contains(&format!("mine.wgsl:{line}:13: ")), "{problem}");
    // Not to the end.
    let problem = said("linear_add", &|text| format!("{text}fn broken() {{\n"));
    assert!(problem.contains(&format!("mine.wgsl:{line}:1: ")), "{problem}");
    // WGSL, but not valid; and a last line without an end.
    let problem = said("dense", &|text| format!("{text}fn wrong(a: f32) -> u32 {{ return a; }}"));
    let line = lines(include_str!("../shaders/dense.wgsl"));
    assert!(problem.contains(&format!("mine.wgsl:{line}:")), "{problem}");
    // What others call is gone.
    let problem = said("dense", &|text| text.replace("fn a_row", "fn another"));
    assert!(problem.contains("a_row") && problem.contains(".wgsl:"), "{problem}");
    assert!(!problem.contains("mine.wgsl") && !problem.contains('\n'), "{problem}");
}

#[test]
fn what_is_no_shader_is_refused() {
    let run = |with: &[&str], device: &str| {
        let with = with.iter().flat_map(|with| ["--with", with]);
        run(&["bench", "ops", "--device", device].into_iter().chain(with).collect::<Vec<_>>(), "")
    };
    run(&["matmull=a.wgsl"], "wgpu").fails(1, &["matmull", "matmul, ", "sample"]);
    run(&["matmul=no/such.wgsl"], "wgpu").fails(1, &["no/such.wgsl"]);
    run(&["matmul=a.wgsl"], "cpu").fails(2, &["--device", "wgpu", "cpu"]);
    run(&["matmul=a.wgsl", "attention=b.cu"], "wgpu").fails(2, &["--with", "not both"]);
}

/// A type as WGSL writes it.
fn written(module: &naga::Module, ty: naga::Handle<naga::Type>) -> String {
    let scalar = |scalar: Scalar| {
        let kind = match scalar.kind {
            ScalarKind::Float => "f",
            ScalarKind::Uint => "u",
            ScalarKind::Sint => "i",
            _ => panic!("{scalar:?}"),
        };
        format!("{kind}{}", 8 * scalar.width)
    };
    let ty = &module.types[ty];
    match &ty.inner {
        TypeInner::Scalar(of) => scalar(*of),
        TypeInner::Atomic(of) => format!("atomic<{}>", scalar(*of)),
        TypeInner::Vector { size, scalar: of } => {
            format!("vec{}<{}>", *size as u8, scalar(*of))
        }
        TypeInner::Array { base, .. } => format!("array<{}>", written(module, *base)),
        TypeInner::Struct { .. } => ty.name.clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A shader's bindings and constants, a line each.
fn interface(shader: &Shader) -> String {
    let module = parse(&shader.source(true), shader.name);
    let mut bindings = BTreeMap::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(at) = &variable.binding else { continue };
        let access = match (shader.bindings[at.binding as usize], variable.space) {
            (Kind::Params, AddressSpace::Uniform) => "uniform",
            (Kind::Read, AddressSpace::Storage { .. }) => "read",
            (Kind::Write, AddressSpace::Storage { .. }) => "read_write",
            other => panic!("{other:?}"),
        };
        let (name, ty) = (variable.name.as_deref().unwrap(), written(&module, variable.ty));
        bindings.insert(at.binding, format!("`{name}` {ty} ({access})"));
    }
    let bindings: Vec<String> = bindings.into_values().collect();
    let mut constants: Vec<&str> =
        module.overrides.iter().filter_map(|(_, o)| o.name.as_deref()).collect();
    constants.sort_unstable();
    let constants: Vec<String> = constants.iter().map(|name| format!("`{name}`")).collect();
    let constants = match constants.is_empty() {
        true => "none".into(),
        false => constants.join(", "),
    };
    format!("Bindings: {}.\nConstants: {constants}.\n", bindings.join(", "))
}

/// The end of docs/shaders.md: parameters as Rust has them, the shaders of each file, and what each
/// shader binds.
fn contract() -> String {
    let mut text = "### Parameters\n\n".to_string();
    for layout in gritlm_shaders::params() {
        let field = |(name, at): &(&str, usize)| format!("`{name}` {at}");
        let fields: Vec<String> = layout.fields.iter().map(field).collect();
        let of = format!("`{}`, {} bytes: {}.", layout.name, layout.size, fields.join(", "));
        write!(text, "{}\n\n", wrapped(&of)).unwrap();
    }
    text += "### Files\n\n";
    for stem in stems() {
        let has = |s: &&Shader| s.files(false).chain(s.files(true)).any(|f| f.stem == stem);
        let names: Vec<&str> = shaders().into_iter().filter(has).map(|s| s.name).collect();
        let names = match names.len() == shaders().len() {
            true => "all".into(),
            false => names.join(", "),
        };
        writeln!(text, "{}", wrapped(&format!("- `{stem}`: {names}"))).unwrap();
    }
    text += "\n### Shaders\n\n";
    // Forms of a product differ in their constants alone.
    let mut seen: Vec<(String, Vec<&str>)> = Vec::new();
    for shader in shaders() {
        let has = interface(shader);
        match seen.iter_mut().find(|(known, _)| *known == has) {
            Some((_, names)) => names.push(shader.name),
            None => seen.push((has, vec![shader.name])),
        }
    }
    for (has, names) in seen {
        let lines: Vec<String> = has.lines().map(wrapped).collect();
        write!(
            text,
            "{}\n\n{}\n\n",
            wrapped(&format!("**{}**", names.join(", "))),
            lines.join("\n\n")
        )
        .unwrap();
    }
    text
}

#[test]
fn the_contract_is_on_paper() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/shaders.md");
    let text = fs::read_to_string(file).unwrap();
    let (_, tables) = text.split_once("<!-- shaders -->\n").unwrap();
    let contract = contract();
    assert!(
        tables.trim() == contract.trim(),
        "docs/shaders.md ends with other tables than:\n{contract}"
    );
}
