//! The report of `gritlm bench`: records in files, the table, the comparison, peers, RESULTS.md,
//! and the page in a browser. Nothing is measured here.

use crate::browser::chromium;
use crate::devtools::{Browser, looking};
use crate::support::{data, say};
use gritlm_bench::compare::{Kind, compare};
use gritlm_bench::page::page;
use gritlm_bench::peer::merge;
use gritlm_bench::record::{Limits, Peer, Record, Row, Step, StepOp, VERSION};
use gritlm_bench::results::{Records, results, splice};
use gritlm_bench::shape;
use gritlm_bench::table::{WIDTH, table};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;
use tempfile::tempdir;

/// Two devices, three suites, steps, peers that are slower, much slower, faster and elsewhere.
fn sample() -> Record {
    // So that all comes back from JSON to the bit.
    let rounded = |us: f64| (us * 1e3).round() / 1e3;
    let mut record = Record {
        version: VERSION,
        date: "2026-11-25T17:00:00Z".into(),
        program: "gritlm 0.1.0 (abcdef0)".into(),
        host: "Example CPU, 16 threads, linux".into(),
        missing: vec!["wgpu: no adapter".into()],
        ..Record::default()
    };
    for (device, name, copy_gb_s, matmul_gflop_s) in
        [("cuda", "Example GPU 9000", 2900.0, 670e3), ("cpu", "Example CPU", 46.0, 388.0)]
    {
        let (device, name) = (device.to_string(), name.to_string());
        let device_limits = Limits { name, copy_gb_s, matmul_gflop_s, ..Limits::default() };
        record.devices.push(Limits { device: device.clone(), ..device_limits });
        let of = shape::heads(32, 8, 128);
        let mut works = Vec::new();
        for rows in [1, 16, 512, 4096] {
            for (op, inner, outer) in
                [("qkv", 4096, 6144), ("linear_add", 4096, 4096), ("gate_up", 4096, 28672)]
            {
                let bytes = 2 * (rows * inner + inner * outer + rows * outer);
                let shape = shape::product(rows, inner, outer);
                works.push(("ops", op, shape, bytes, 2 * rows * inner * outer));
            }
            works.push(("ops", "rmsnorm", shape::rows(rows, 4096), 8 * rows * 4096, rows * 16384));
        }
        let decode = shape::attention_decode(32, 16384, &of);
        works.push(("ops", "attention", decode, 2_150_000_000, 8_600_000_000));
        works.push(("ops", "embed", shape::rows(4096, 4096), 67_000_000, 0));
        let decode = shape::of(&shape::decode(1, 1024), "gritlm-7b");
        works.push(("model", "decode", decode, 14_200_000_000, 14_200_000_000));
        let prefill = shape::of(&shape::prefill(1, 512), "gritlm-7b");
        works.push(("model", "prefill", prefill, 14_200_000_000, 7_280_000_000_000));
        works.push(("load", "load cold", "14.2 GB of gritlm-7b".into(), 14_200_000_000, 0));
        for (n, (suite, op, shape, bytes, flops)) in works.into_iter().enumerate() {
            let (bytes, flops) = (bytes as f64, flops as f64);
            let times = [bytes / copy_gb_s / 1e3, flops / matmul_gflop_s / 1e3];
            let limit = if times[0] > times[1] { "copy" } else { "matmul" };
            let share = (95 - 3 * n) as f64 / 100.0;
            let tokens = (suite == "model").then_some(100.0);
            record.rows.push(Row {
                device: device.clone(),
                suite: suite.into(),
                op: op.into(),
                shape,
                us: rounded(times[0].max(times[1]) / share),
                spread: 0.02,
                repeats: 7,
                bytes,
                flops,
                limit: if suite == "load" { String::new() } else { limit.into() },
                share: if suite == "load" { 0.0 } else { share },
                tokens_s: tokens,
                variant: format!(
                    "tile 128x256x64 of four stages, {} blocks of 256 threads",
                    n * 96
                ),
                note: String::new(),
                error: Some(2e-3),
            });
        }
        let ops = [("gate_up", 2690.0), ("linear_add", 1970.0), ("qkv", 590.0), ("embed", 3.0)];
        let ops = ops.map(|(op, us)| {
            let (launches, bytes, flops) = (32, us * 2.5e6, us * 2.6e6);
            StepOp { op: op.into(), launches, us, bytes, flops }
        });
        let step = "decode, batch 1, context 1024 of gritlm-7b".into();
        record.steps.push(Step { device: device.clone(), step, ops: ops.to_vec() });
    }
    for (n, row) in record.rows.iter().filter(|row| row.device == "cuda").enumerate() {
        for (peer, factor) in [("torch.matmul 2.11", 0.7 + 0.1 * n as f64), ("other", 9.0)] {
            let [peer, device] = [peer, "cuda"].map(String::from);
            let (op, shape) = (row.op.clone(), row.shape.clone());
            record.peers.push(Peer { peer, device, op, shape, us: rounded(row.us * factor) });
        }
    }
    record.peers.push(Peer { op: "unknown".into(), us: 7.0, ..record.peers[0].clone() });
    record
}

/// The message, which must be one line.
#[track_caller]
fn message<T: std::fmt::Debug>(result: gritlm_bench::Result<T>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "more than a line: {message}");
    message
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    let (folder, record) = (tempdir().unwrap(), sample());
    let path = folder.path().join("device/2026-11-25-abcdef0.json");
    record.write(&path).unwrap();
    assert!(Record::read(&path).unwrap() == record, "another record");
    // What cannot be read again is not written, and what was there stays.
    let mut broken = record.clone();
    broken.rows[3].us = f64::NAN;
    assert!(message(broken.write(&path)).contains("us: expected a number above 0, found NaN"));
    assert!(Record::read(&path).unwrap() == record, "another record");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "something was left");
    assert!(message(Record::read(folder.path())).contains(&folder.path().display().to_string()));
}

#[test]
fn what_is_no_record_is_said_in_one_line() {
    let whole = serde_json::to_string_pretty(&sample()).unwrap();
    let with = |field: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&whole).unwrap();
        *json.pointer_mut(field).unwrap() = value;
        json.to_string()
    };
    let field = |name: &str, value: f64| with(&format!("/rows/2/{name}"), json!(value));
    let without = |name: &str| {
        let mut json: Value = serde_json::from_str(&whole).unwrap();
        json["rows"][2].as_object_mut().unwrap().remove(name);
        json.to_string()
    };
    for (bytes, said) in [
        (String::new(), "not JSON: it ends too early"),
        (whole[..whole.len() / 2].into(), "not JSON: it ends too early"),
        ("gritlm bench; 1.0".into(), "not JSON: expected"),
        ("\u{0}\u{1}".into(), "not JSON: expected"),
        (whole.replacen("\"us\": ", "\"us\": NaN, \"was\": ", 1), "not JSON: expected"),
        ("[]".into(), "expected a record of gritlm bench, a JSON object with version"),
        ("{\"rows\": []}".into(), "expected a record of gritlm bench, a JSON object with version"),
        (with("/version", json!(0)), "version: expected 1, found 0"),
        (with("/version", json!(2)), "version: expected 1, found 2"),
        (with("/version", json!("0.11.1")), "version: expected 1, found \"0.11.1\""),
        (without("shape"), "missing field `shape` at line 1"),
        (with("/rows/2/us", Value::Null), "invalid type: null, expected f64"),
        (with("/rows", json!({})), "invalid type: map, expected a sequence"),
        (field("us", -1.5), "us: expected a number above 0, found -1.5"),
        (field("us", 0.0), "us: expected a number above 0, found 0"),
        (field("spread", -0.1), "spread: expected a number from 0, found -0.1"),
        (field("share", -0.1), "share: expected a number from 0, found -0.1"),
        (with("/steps/0/ops/1/us", json!(-2.0)), "us: expected a number from 0, found -2"),
        (with("/peers/0/us", json!(-3.0)), "us: expected a number above 0, found -3"),
        (with("/devices/0/copy_gb_s", json!(-3.0)), "copy_gb_s: expected a number from 0"),
    ] {
        let message = message(Record::parse(bytes.as_bytes(), Path::new("old.json")));
        assert!(message.starts_with("old.json: "), "{message}");
        assert!(message.contains(said), "expected {said}, found {message}");
    }
    // Fields that a record may do without.
    let least = json!({"version": VERSION, "date": "", "program": "", "host": ""}).to_string();
    let least = Record::parse(least.as_bytes(), Path::new("least.json")).unwrap();
    assert!(table(&least).lines().count() < 3 && page(&least).contains("</html>"));
}

#[test]
fn the_table_fits_and_has_everything() {
    let mut record = sample();
    record.missing.push("x".repeat(300));
    record.rows[0].variant = "word ".repeat(100);
    record.rows[1].op = "a_very_long_name_of_an_op_that_leaves_no_room_for_its_shape".into();
    record.devices[0].name = "bell \u{7} and \u{1b}[31mred".into();
    let text = table(&record);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    for part in [
        "copies 2900 GB/s; matmul 670 TFLOP/s",
        "0.90x torch.matmul 2.11; 9.00x other; ",
        "49.4 s",
        "Not measured",
        "wgpu: no adapter",
        "100 tokens/s",
        "Peers that did what nothing here did",
        "4096 x 4096 -> 28672",
        "38 % matmul",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    // Figures keep their columns under the names of them.
    let lines: Vec<&str> = text.lines().collect();
    let names = lines.iter().find(|line| line.starts_with("ops ")).unwrap();
    let row = lines.iter().find(|line| line.contains("16 x 4096 -> 6144")).unwrap();
    let end = |line: &str, part: &str| line.find(part).map(|at| line[..at].chars().count());
    assert_eq!(end(names, "share").unwrap() + 5, row.chars().count(), "{names}\n{row}");
    assert!(row.ends_with("83 % copy"), "{row}");
}

#[test]
fn a_planted_regression_is_found_and_noise_is_not() {
    let (old, mut new) = (sample(), sample());
    assert_eq!(compare(&old, &new).changes, []);
    assert!(!compare(&old, &new).has_regression());
    // Spreads of 2 % allow 1.5 · 4 %.
    new.rows[0].us *= 1.059;
    new.rows[1].us /= 1.059;
    assert_eq!(compare(&old, &new).changes, []);
    new.rows[2].us *= 1.07;
    new.rows[3].us /= 1.08;
    new.rows[4].us *= 1.5;
    let found = compare(&old, &new);
    let kinds: Vec<Kind> = found.changes.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [Kind::Regression, Kind::Regression, Kind::Improvement]);
    assert!(found.has_regression());
    let row = &old.rows[4];
    assert_eq!(found.changes[0].row[2..], [row.op.clone(), row.shape.clone()], "the worst first");
    let lines = found.lines();
    assert!(lines[0].starts_with("REGRESSION cuda ops ") && lines[0].contains("1.50x slower"));
    let all = old.rows.len();
    let sum = format!("{all} rows in both: 2 slower, 1 faster, {} within the spread; ", all - 3);
    assert_eq!(lines[3], sum + "0 new, 0 gone");
    // The other way round, the same rows.
    let back: Vec<Kind> = compare(&new, &old).changes.iter().map(|change| change.kind).collect();
    assert_eq!(back, [Kind::Regression, Kind::Improvement, Kind::Improvement]);
    // Wider spreads explain more, closer ones not less than 5 %.
    (new.rows[2].spread, new.rows[4].spread) = (0.2, 0.2);
    assert_eq!(compare(&old, &new).lines()[0].split(' ').next(), Some("REGRESSION"));
    assert_eq!(compare(&old, &new).changes.len(), 2);
    let (mut old, mut new) = (sample(), sample());
    (old.rows[0].spread, new.rows[0].spread) = (0.0, 0.0);
    new.rows[0].us *= 1.04;
    assert_eq!(compare(&old, &new).changes, []);
    new.rows[0].us *= 1.02;
    assert!(compare(&old, &new).has_regression());
}

#[test]
fn other_rows_hosts_and_limits_are_told() {
    let (mut old, mut new) = (sample(), sample());
    old.rows.remove(1);
    new.rows.remove(0);
    new.host = "another".into();
    new.devices[0].name = "Example GPU 9001".into();
    new.devices[1].copy_gb_s *= 0.9;
    let found = compare(&old, &new);
    let kinds: Vec<Kind> = found.changes.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [Kind::New, Kind::Gone]);
    assert!(!found.has_regression());
    let text = found.lines().join("\n");
    for part in [
        "another host: Example CPU, 16 threads, linux -> another",
        "cuda: another device: Example GPU 9000 -> Example GPU 9001",
        "cpu: the copy limit moved: 46.0 GB/s -> 41.4 GB/s",
        "1 new, 1 gone",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

#[test]
fn peers_stand_beside_the_same_work() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("peer.json");
    let mut record = sample();
    record.peers.clear();
    let merged = |record: &mut Record, text: &str| {
        fs::write(&file, text).unwrap();
        merge(record, &file)
    };
    // A line each, as benches/peers/torch writes.
    let lines = concat!(
        r#"{"op": "qkv", "shape": "1 x 4096 -> 6144", "peer": "torch.matmul", "us": 40, "x": 1}"#,
        "\n\n",
        r#"{"op": "attention", "shape": "T 1", "peer": "SDPA", "not_measured": "no such kernel"}"#,
        "\n"
    );
    merged(&mut record, lines).unwrap();
    assert_eq!(record.peers.len(), 1);
    assert_eq!(record.missing[1..], ["SDPA, attention T 1: no such kernel"]);
    let qkv = record.rows[0].clone();
    assert_eq!((qkv.op.as_str(), record.beside(&qkv).len()), ("qkv", 1));
    // Again, and an array: the newer figure counts, and nothing is told twice.
    merged(&mut record, lines).unwrap();
    let array =
        json!([{"op": "qkv", "shape": qkv.shape, "peer": "torch.matmul", "us": 50.0}]).to_string();
    merged(&mut record, &array).unwrap();
    assert_eq!((record.peers.len(), record.peers[0].us, record.missing.len()), (1, 50.0, 2));
    // A record of ours.
    merged(&mut record, &sample().json()).unwrap();
    assert_eq!(record.peers.len(), 1 + sample().peers.len());

    // Beside the device that they ran on only.
    let beside = |said: &str, device: &str, name: &str| {
        let mut record = sample();
        (record.devices[0].device, record.devices[0].name) = (device.into(), name.into());
        record.rows[0].device = device.into();
        record.peers.truncate(1);
        record.peers[0].device = said.into();
        record.beside(&record.rows[0]).len() == 1
    };
    assert!(beside("", "cuda", "GPU") && beside("cuda", "cuda:1", "GPU"));
    assert!(beside("CUDA (Example GPU 9000)", "wgpu:vulkan", "Example GPU 9000"));
    assert!(beside("example gpu 9000", "cuda", "NVIDIA Example GPU 9000 80GB"));
    assert!(!beside("cpu", "wgpu:llvmpipe", "llvmpipe, vulkan, a CPU"));
    let lavapipe = "wgpu (llvmpipe (LLVM 15.0.6, 256 bits), vulkan, a CPU)";
    assert!(beside("wgpu (llvmpipe (LLVM 15.0.6, 256 bits))", "wgpu:llvmpipe", lavapipe));
    assert!(beside("CPU (Example CPU)", "cpu", "cpu (avx512, 2 threads)"));
    assert!(!beside("CPU (Example CPU)", "wgpu:llvmpipe", lavapipe));
    assert!(!beside("CUDA (Example GPU 8000)", "cuda", "Example GPU 9000"));

    for (text, said) in [
        ("", "not JSON"),
        ("{\"peer\": \"x\"", "not JSON: it ends too early"),
        ("{\"peer\": \"x\"}\nno", "not JSON"),
        ("{\"peer\": \"x\", \"op\": \"qkv\"}", "row 1: expected peer, op, shape and us"),
        (r#"[{"peer": "x", "op": "a", "shape": "b"}]"#, "missing field `us`"),
        (r#"[{"peer": "x", "op": "a", "shape": "b", "us": 1}, 7]"#, "row 2: expected peer"),
        (r#"[{"peer": "x", "op": "a", "shape": "b", "us": -1}]"#, "us: expected a number above 0"),
        (r#"{"version": 9, "peers": []}"#, "version: expected 1, found 9"),
        (
            r#"[{"n_prompt": 1, "n_gen": 0, "avg_ns": 1}]"#,
            "llama-bench: missing field `model_type`",
        ),
    ] {
        let before = record.clone();
        let message = message(merged(&mut record, text));
        assert!(message.starts_with(&file.display().to_string()), "{message}");
        assert!(message.contains(said), "expected {said}, found {message}");
        assert!(record == before, "a bad file changed the record");
    }
}

#[test]
fn llama_bench_is_understood() {
    let mut record = sample();
    record.peers.clear();
    merge(&mut record, &data("bench/llama-bench.json")).unwrap();
    let peer = |at: usize| {
        let Peer { peer, device, op, shape, us } = record.peers[at].clone();
        (peer, device, [op, shape].join(": "), us)
    };
    let (bf16, q4) = ("llama.cpp 6001, llama 7B BF16", "llama.cpp 6001, qwen2 7B Q4_K - Medium");
    let (gpu, cpu) = ("CUDA (Example GPU 9000)", "CPU (Example CPU)");
    let expected = |peer: &str, on: &str, what: &str, us| (peer.into(), on.into(), what.into(), us);
    // The median of five; an average where there are no samples, a token of 128; the model's name
    // from the file, or none.
    let what = "prefill: 1 x 512 tokens of gritlm-7b";
    assert_eq!(peer(0), expected(bf16, gpu, what, 44_500.0));
    let what = "decode: batch 1, context 1024 of gritlm-7b";
    assert_eq!(peer(1), expected(bf16, gpu, what, 10_000.0));
    assert_eq!(peer(2), expected(q4, cpu, "decode: batch 1, context 0", 100_000.0));
    assert_eq!(record.peers.len(), 3);
    assert_eq!(record.missing[1..], [format!("{q4}: -p 512 -n 128 -d 0 is no row of ours")]);
    for op in ["prefill", "decode"] {
        let row = record.rows.iter().find(|row| row.device == "cuda" && row.op == op).unwrap();
        assert_eq!(record.beside(row).len(), 1, "{op}");
    }
    // A line each is the same.
    let rows: Vec<Value> =
        serde_json::from_slice(&fs::read(data("bench/llama-bench.json")).unwrap()).unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("lines"), lines.join("\n")).unwrap();
    let mut again = sample();
    again.peers.clear();
    merge(&mut again, &folder.path().join("lines")).unwrap();
    assert!(again == record, "another record");
}

#[test]
fn results_are_what_the_records_give() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
    let found = Records::read(&folder).unwrap();
    let path = folder.join("RESULTS.md");
    let text = fs::read_to_string(&path).unwrap();
    let renewed = splice(&text, &results(&found.records), &path).unwrap();
    assert!(text == renewed, "RESULTS.md is not what the records give: gritlm bench results");
}

#[test]
fn results_keep_what_is_written_by_hand() {
    let folder = tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let mut later = sample();
    later.date = "2026-12-01T00:00:00Z".into();
    later.devices[0].name = "a | b <script>".into();
    later.rows[0].note = "7 computed".into();
    sample().write(&folder.path().join("gpu/2026-11-25-abcdef0.json")).unwrap();
    later.write(&folder.path().join("gpu/2026-12-01-abcdef1.json")).unwrap();
    write("cpu/older.json", "{\"commit\": \"39958af\"}");
    write("cpu/notes.txt", "no record");
    let found = Records::read(folder.path()).unwrap();
    let names: Vec<&str> = found.records.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["gpu/2026-12-01-abcdef1.json", "gpu/2026-11-25-abcdef0.json"]);
    assert_eq!(found.older, ["cpu/older.json"]);
    let text = results(&found.records);
    assert!(text.contains("### cuda: a \\| b \\<script\\>; copies 2900 GB/s"), "{text}");
    assert!(text.contains("| qkv | 1 x 4096 -\\> 6144 | "), "{text}");
    assert_eq!(text.matches("x other; 7 computed |\n").count(), 1, "{text}");
    assert!(text.contains("Not measured:\n\n- wgpu: no adapter\n"), "{text}");

    let path = Path::new("RESULTS.md");
    let once = splice("# Results\n\nBy hand.\n", &text, path).unwrap();
    assert!(once.starts_with("# Results\n\nBy hand.\n\n<!-- generated"), "{once}");
    assert_eq!(splice(&once, &text, path).unwrap(), once, "twice is not once");
    let other = splice(&format!("{once}\nAfter.\n"), "less", path).unwrap();
    assert!(other.starts_with("# Results\n\nBy hand.\n\n") && other.ends_with("\n\nAfter.\n"));
    assert!(other.len() < once.len());
    let half = once.replace("<!-- end", "<!-- and");
    assert!(message(splice(&half, &text, path)).starts_with("RESULTS.md: expected <!-- generated"));
    write("cpu/broken.json", "{\"version\": 1, ");
    assert!(message(Records::read(folder.path())).contains("broken.json: not JSON"));
}

#[test]
fn devices_that_are_missing_are_told() {
    // None at all: what is missing is the report.
    let mut none = Record { version: VERSION, ..Record::default() };
    none.missing = vec!["cuda: there is no NVIDIA driver".into(), "wgpu: no adapter".into()];
    // Rows whose limits were not measured.
    let mut unlimited = sample();
    unlimited.devices.clear();
    unlimited.missing.clone_from(&none.missing);
    for record in [none, unlimited] {
        for text in [table(&record), page(&record), results(&[("a.json".into(), record.clone())])] {
            for line in &record.missing {
                assert!(text.contains(line), "no {line} in\n{text}");
            }
            assert!(text.contains("Not measured"), "{text}");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }
    let measured = sample();
    let page = page(&Record { missing: vec![], ..measured.clone() });
    assert!(!page.contains("Not measured") && !page.contains("class=\"missing\""));
    assert!(!table(&Record { missing: vec![], ..measured }).contains("Not measured"));
}

/// The sample, with markup wherever a record has text.
fn hostile() -> Record {
    let text = sample().json();
    let evil = "<script>alert(1)</script>\\\"'><img src=x onerror=alert(2)>&amp;";
    let mut json: Value = serde_json::from_str(&text).unwrap();
    fn spoil(value: &mut Value, evil: &str) {
        match value {
            Value::String(text) => text.push_str(evil),
            Value::Array(all) => all.iter_mut().for_each(|value| spoil(value, evil)),
            Value::Object(all) => all.values_mut().for_each(|value| spoil(value, evil)),
            _ => {}
        }
    }
    spoil(&mut json, evil);
    Record::parse(json.to_string().as_bytes(), Path::new("hostile.json")).unwrap()
}

#[test]
fn the_page_is_one_file_of_escaped_text() {
    for record in [sample(), hostile()] {
        let page = page(&record);
        for part in ["<script", "<img", "http:", "https:", "@import", "url(", "\"><", "src="] {
            let found = page.find(part).map(|at| &page[at.saturating_sub(80)..at + 40]);
            let is_text = part == "src=" && page.contains("&lt;img src=x");
            assert!(found.is_none() || is_text || part == "\"><", "{part} in {found:?}");
        }
        for part in ["wgpu: no adapter", "Not measured", "<svg", "<th scope=\"row\">"] {
            assert!(page.contains(part), "no {part}");
        }
    }
    assert!(page(&hostile()).contains("cuda&lt;script&gt;alert(1)&lt;/script&gt;"));
}

/// What is wrong with a page, a line each: pictures and marks without size, text that leaves its
/// picture, text that is hard to tell from what is behind it, a page wider than its window.
pub(crate) const LOOK: &str = r#"
    const svgs = [...document.querySelectorAll("svg")];
    for (const svg of svgs) {
        const name = svg.querySelector("title")?.textContent;
        const { width, height } = svg.getBoundingClientRect();
        if (!(width > 200 && height > 20)) wrong.push(`${name}: ${width} x ${height}`);
        if (!svg.querySelector("desc")?.textContent) wrong.push(`${name}: no description`);
        const box = svg.viewBox.baseVal;
        for (const text of svg.querySelectorAll("text")) {
            const b = text.getBBox();
            const label = `${name}: ${text.textContent}`;
            const turned = text.hasAttribute("transform");
            const inside = b.x > -0.5 && b.x + b.width < box.width + 0.5
                && b.y >= 0 && b.y + b.height <= box.height;
            if (!turned && !inside) {
                wrong.push(`${label}: leaves the picture`);
            }
            let back = page;
            if (text.classList.contains("on")) {
                let rect = text;
                while (rect.tagName !== "rect") rect = rect.previousElementSibling;
                back = getComputedStyle(rect).fill;
                const r = rect.getBBox();
                const fits = b.x >= r.x && b.x + b.width <= r.x + r.width;
                if (!fits) wrong.push(`${label}: leaves its bar`);
            }
            const ratio = contrast(getComputedStyle(text).fill, back);
            if (ratio < 4.5) wrong.push(`${label}: contrast ${ratio}`);
        }
        for (const mark of svg.querySelectorAll("rect, circle, path")) {
            const b = mark.getBBox();
            if (!(b.width > 0 || b.height > 0)) wrong.push(`${name}: an empty ${mark.tagName}`);
        }
    }
    for (const element of document.querySelectorAll("body *:not(svg *)")) {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own) continue;
        const ratio = contrast(getComputedStyle(element).color, behind(element));
        if (ratio < 4.5) wrong.push(`${element.tagName} ${element.textContent}: contrast ${ratio}`);
    }
    if (document.documentElement.scrollWidth > innerWidth) wrong.push("wider than the window");
    for (const table of document.querySelectorAll("table")) {
        const columns = table.querySelectorAll("thead th[scope=col]").length;
        for (const row of table.tBodies[0].rows) {
            if (row.cells.length !== columns) wrong.push("a row that is not as its heading");
        }
    }
    return {
        wrong, svgs: svgs.length, background: light(page), scripts: document.scripts.length,
        images: document.images.length, rows: document.querySelectorAll("tbody tr").length,
        marks: document.querySelectorAll("svg .dot title").length,
        title: document.title,
    };
"#;

#[test]
fn the_page_looks_right_in_a_browser() {
    let Some(program) = chromium() else {
        return say(
            "SKIPPED bench_report::the_page_looks_right_in_a_browser: no Chromium here (Debian: \
             chromium; elsewhere CHROMIUM=its program)",
        );
    };
    let start = Instant::now();
    let mut browser = Browser::open(&program);
    for record in [sample(), hostile()] {
        let page = page(&record);
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "light")] {
            browser.screen(width, "screen", scheme);
            let url = browser.visit_page(&page);
            let look = browser.value(&looking(LOOK));
            let complaints = browser.complaints(&url);
            assert!(complaints.is_empty(), "{complaints:?}");
            // Cards are as wide as a window; only hostile names without a space are wider.
            let wrong: Vec<&Value> = look["wrong"].as_array().unwrap().iter().collect();
            assert!(wrong.is_empty(), "{scheme}, {width}: {wrong:#?}");
            // A roofline and a step each, and bars for seven ops and loading of the one with peers.
            assert_eq!((&look["svgs"], &look["scripts"]), (&json!(4 + 9), &json!(0)));
            assert_eq!(look["images"], 0);
            let ops: usize = record.steps.iter().map(|step| step.ops.len()).sum();
            assert_eq!(look["rows"], record.rows.len() + ops + record.alone().len());
            let is_dark = look["background"].as_f64().unwrap() < 0.2;
            assert_eq!(is_dark, scheme == "dark", "background {}", look["background"]);
        }
    }
    // On paper it is light, and all of it is there.
    browser.screen(1280, "print", "dark");
    browser.visit_page(&page(&sample()));
    assert!(browser.value(&looking(LOOK))["background"].as_f64().unwrap() > 0.8);
    let pdf = browser.call("Page.printToPDF", json!({"printBackground": true}));
    assert!(pdf["data"].as_str().unwrap().len() > 50_000);

    // And this test sees what it is there for.
    browser.screen(1280, "screen", "light");
    let planted = page(&sample())
        .replace("<h1>", "<img src=\"http://127.0.0.1:9/x.png\"><script>alert(1)</script><h1>")
        .replace("<text x=\"", "<text fill=\"red\" x=\"9")
        .replace("--muted: #57606a", "--muted: #d0d0d0");
    let url = browser.visit_page(&planted);
    assert!(browser.complaints(&url).len() >= 2, "a request and a script were not noticed");
    let wrong = browser.value(&looking(LOOK))["wrong"].to_string();
    assert!(wrong.contains("leaves the picture") && wrong.contains("contrast"), "{wrong}");
    say(&format!("bench page: {:.0} s in a browser", start.elapsed().as_secs_f64()));
}
