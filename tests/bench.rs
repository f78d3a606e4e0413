//! `gritlm bench` as a program: devices, shapes, records, comparison, exit codes.

use crate::cli::run;
use crate::support::say;
use gritlm::model::cpu::Cpu;
use gritlm::synth;
use gritlm_bench::case::Op;
use gritlm_bench::model::ModelPlan;
use gritlm_bench::ops::{Named, model, row, table};
use gritlm_bench::record::{Limits, Record};
use gritlm_bench::shape;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Small, quick, and with its result compared.
const SHAPES: [&str; 8] = [
    "--shape",
    "linear_add:5x64x96",
    "--shape",
    "attention:40",
    "--shape",
    "rmsnorm:3x100",
    "--shape",
    "gate_up:2x32x48",
];
const QUICK: [&str; 4] = ["--repeats", "2", "--displace", "1"];

fn bench<'a>(device: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", "ops", "--device", device][..], &SHAPES, &QUICK, more].concat()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Rows of every device that is there, checked against the CPU, with limit, share and the kernels
/// that were chosen; a line for the one that is not.
#[test]
fn ops_on_every_device() {
    let folder = tempfile::tempdir().unwrap();
    let [json, html] = ["new.json", "page.html"].map(|name| folder.path().join(name));
    let here = gritlm::devices().into_iter().filter(|d| d.available);
    let here: Vec<String> = here.map(|d| d.device).collect();
    let devices = format!("{},wgpu:no such adapter", here.join(","));
    let [json_name, html_name] = [&json, &html].map(|path| path.to_str().unwrap());
    let shown = run(&bench(&devices, &["--json", json_name, "--html", html_name]), "").ok();
    let record = read(&json);
    for device in &here {
        let rows = record["rows"].as_array().unwrap().iter();
        let rows: Vec<&Value> = rows.filter(|row| row["device"] == **device).collect();
        assert_eq!(rows.len(), 4, "{device}");
        for row in rows {
            for field in ["us", "bytes", "flops", "share"] {
                assert!(row[field].as_f64().unwrap() > 0.0, "{device} {field}: {row}");
            }
            assert!(row["error"].as_f64().unwrap() < 1e-5, "{row}");
            assert!(device == "cpu" || row["variant"].as_str().unwrap().contains("grid"), "{row}");
        }
        let measured = record["devices"].as_array().unwrap().iter();
        let name = measured.filter(|d| d["device"] == **device).map(|d| d["name"].as_str());
        assert!(name.flatten().any(|name| shown.contains(name)), "{device}: {shown}");
    }
    let missing = record["missing"].as_array().unwrap();
    assert!(missing.iter().any(|line| line.as_str().unwrap().contains("no such adapter")));
    assert!(shown.contains("Not measured"), "{shown}");
    assert!(fs::read_to_string(&html).unwrap().contains("<svg"));
    say(&format!("bench ops covered: {}", here.join("; ")));
}

/// With a type of KV pages attention is another shape that moves fewer bytes; other ops are as before.
#[test]
fn ops_over_pages_of_a_type() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |more: &[&str]| {
        let path = folder.path().join("record.json");
        let json = ["--json", path.to_str().unwrap()];
        run(&bench("cpu", &[&json, more].concat()), "").ok();
        Record::read(&path).unwrap().rows
    };
    let (wide, small) = (rows(&[]), rows(&["--kv-type", "q8_0"]));
    for (wide, small) in wide.iter().zip(&small) {
        if wide.op == "attention" {
            assert_eq!(small.shape, format!("{}, q8_0 pages", wide.shape));
            assert!(small.bytes < wide.bytes, "{} {}", small.bytes, wide.bytes);
        } else {
            assert_eq!((&small.shape, small.bytes), (&wide.shape, wide.bytes));
        }
    }
    assert_eq!((wide.len(), small.len()), (4, 4));
}

/// A record from before that was twice as fast: shown, and with the flag exit code 1; against itself
/// nothing has changed.
#[test]
fn a_regression_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let [new, old] = ["new.json", "old.json"].map(|name| folder.path().join(name));
    let [new_name, old_name] = [&new, &old].map(|path| path.to_str().unwrap());
    run(&bench("cpu", &["--json", new_name]), "").ok();
    let mut record = Record::read(&new).unwrap();
    // What a busy machine spreads must not explain it.
    record.rows.iter_mut().for_each(|row| row.spread = 0.01);
    record.write(&new).unwrap();
    record.rows[1].us /= 2.0;
    record.write(&old).unwrap();
    let show = ["bench", "show", new_name, "--compare", old_name];
    let lines = run(&show, "").ok();
    assert!(lines.contains("attention") && lines.contains("slower"), "{lines}");
    let failing = [&show[..], &["--fail-on-regression"]].concat();
    let ran = run(&failing, "");
    assert_eq!((ran.code, ran.problems().len()), (1, 1), "{}", ran.stderr);
    assert!(ran.problems()[0].contains("old.json") && ran.stdout.contains("slower"));
    let same = ["bench", "show", new_name, "--compare", new_name, "--fail-on-regression"];
    run(&same, "").ok();
}

#[test]
fn bad_arguments_are_one_line() {
    for (args, parts) in [
        (&["bench", "ops", "--shape", "linear_add:5x6"][..], &["--shape", "linear_add:5x6"][..]),
        (&["bench", "ops", "--shape", "conv:1x2x3"], &["conv:1x2x3"]),
        (&["bench", "ops", "--shape", "rmsnorm:0x3"], &["rmsnorm:0x3"]),
        (&["bench", "ops", "--like", "gpt"], &["--like", "gpt", "tiny-moe"]),
        (&["bench", "ops", "--device", "cpu,tpu"], &["--device", "tpu"]),
        (&["embed", "x", "--device", "cpu,cuda"], &["--device", "only bench takes several"]),
        (&["bench", "model", "--layers", "2"], &["--like"]),
        (&["bench", "ops", "--fail-on-regression"], &["--compare"]),
        (&["bench", "ops", "--repeats", "0"], &["--repeats"]),
    ] {
        run(args, "").fails(2, parts);
    }
    run(&["bench", "show", "nothing.json"], "").fails(1, &["nothing.json"]);
}

/// Every case of the table has a name of its own and can be timed; one that is wrong is an error.
#[test]
fn the_table_is_benched() {
    let all = table();
    let names: BTreeSet<(&str, &str)> =
        all.iter().map(|n| (n.op.as_str(), n.shape.as_str())).collect();
    assert_eq!(names.len(), all.len());
    let limits = Limits { copy_gb_s: 1.0, matmul_gflop_s: 1.0, ..Limits::default() };
    let named = all.iter().find(|n| n.op == "qkv").unwrap();
    let found = row(&Cpu, &limits, named, (1, 0)).unwrap();
    assert_eq!((found.op.as_str(), found.error), ("qkv", Some(0.0)));
    // At 1 GB/s and 1 GFLOP/s the limit is time itself.
    let expected = found.bytes.max(found.flops) / 1e3 / found.us;
    assert!((found.share - expected).abs() < 1e-9 * expected);
    let mut wrong = Named::parse("linear_add:3x8x8").unwrap();
    wrong.checked =
        Some(gritlm_bench::ops::Check::Rows(Named::parse("linear_add:2x8x9").unwrap().case));
    assert!(row(&Cpu, &limits, &wrong, (1, 0)).unwrap_err().to_string().contains("linear_add"));
}

/// Every op of a model has rows, all are checked, and no two have one name.
#[test]
fn a_models_ops_are_benched() {
    let folder = tempfile::tempdir().unwrap();
    for (like, own) in [("tiny", "gate_up"), ("tiny-moe", "expert")] {
        let json = folder.path().join(like);
        let args = ["bench", "ops", "--device", "cpu", "--like", like, "--rows", "1,5"];
        let sizes = ["--contexts", "40", "--batches", "1,3", "--repeats", "1", "--displace", "0"];
        run(&[&args[..], &sizes, &["--json", json.to_str().unwrap()]].concat(), "").ok();
        let record = Record::read(&json).unwrap();
        assert!(record.missing.is_empty(), "{:?}", record.missing);
        assert!(record.rows.iter().all(|row| row.error.is_some() && row.us > 0.0));
        let ops: BTreeSet<&str> = record.rows.iter().map(|row| row.op.as_str()).collect();
        let mut all = BTreeSet::from(["qkv", "linear_add", "logits", "attention", "rmsnorm"]);
        all.extend(["embed", "pool", "sample", "search", own]);
        assert_eq!(ops, all);
        let names: BTreeSet<(&str, &str)> =
            record.rows.iter().map(|row| (row.op.as_str(), row.shape.as_str())).collect();
        assert_eq!(names.len(), record.rows.len());
    }
}

/// What is too large for the CPU twin is compared in part, or in a smaller shape.
#[test]
fn what_is_large_is_checked_in_part() {
    let [dense, mixture] = ["gritlm-7b", "gritlm-8x7b"].map(|m| synth::config(m, None).unwrap());
    for config in [dense, mixture] {
        for named in model(&config, &[1, 4096], &[16384], &[1, 32]) {
            let (op, shape) = (&named.op, &named.shape);
            let checked = named.checked.as_ref().map_or(&named.case, |check| check.case());
            assert!(checked.flops() < 25_000_000_000, "{op} {shape}");
            if let Op::Attention(_, sequences) = &checked.op {
                assert!(sequences.iter().map(|s| s.past).sum::<u32>() <= 1 << 16, "{op} {shape}");
            }
        }
    }
}

/// The keys that are counted for bytes and operations are those of the masks' definition.
#[test]
fn keys_are_counted_as_defined() {
    for named in table() {
        if let Op::Attention(_, sequences) = &named.case.op {
            for sequence in sequences {
                let ranges: Vec<Vec<usize>> = sequence.ranges().map(Iterator::collect).collect();
                assert_eq!(ranges, sequence.keys().collect::<Vec<_>>(), "{sequence:?}");
            }
        }
    }
}

/// Peers are put beside our rows by name, so every name that PyTorch's scripts have must be one of
/// ours, in the sizes that `benches/device.sh` asks for.
#[test]
fn peers_have_our_names() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/torch/shapes.py");
    for more in [&[][..], &["--quick"]] {
        let Ok(output) = Command::new("python3").arg(script).args(more).output() else {
            return say("SKIPPED bench::peers_have_our_names: no python3");
        };
        let sizes: Value = serde_json::from_slice(&output.stdout).unwrap();
        let list =
            |name: &str| -> Vec<u32> { serde_json::from_value(sizes[name].clone()).unwrap() };
        let text = |name: &str| sizes[name].as_str().unwrap().to_string();
        let config = |name: &str| synth::config(&text(name), None).unwrap();
        let (rows, batches) = (list("rows"), list("batches"));
        let contexts = [list("prefill"), list("contexts")].concat();
        let mut ours = model(&config("like"), &rows, &contexts, &batches);
        ours.extend(model(&config("mixture"), &list("expert_rows"), &[], &[]));
        let mut ours: BTreeSet<(String, String)> =
            ours.into_iter().map(|named| (named.op, named.shape)).collect();
        let plan = match more {
            [] => ModelPlan::new(sizes["batch_tokens"].as_u64().unwrap() as usize, 1),
            _ => ModelPlan::quick(1),
        };
        let like = text("like");
        let mut add = |op: &str, pairs: &[(usize, usize)], shape: fn(u64, u64) -> String| {
            for &(sequences, tokens) in pairs {
                let shape = shape(sequences as u64, tokens as u64);
                ours.insert((op.into(), shape::of(&shape, &like)));
            }
        };
        add("embed", &plan.embed, shape::embed);
        add("prefill", &plan.prefill, shape::prefill);
        add("decode", &plan.decode, shape::decode);
        let theirs = [&sizes["ops"], &sizes["model"]].map(|names| names.as_array().unwrap());
        for name in theirs.into_iter().flatten() {
            let name: (String, String) = serde_json::from_value(name.clone()).unwrap();
            assert!(ours.contains(&name), "{name:?} is no row of ours");
        }
    }
}
