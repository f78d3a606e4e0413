//! The report of `gritlm bench`: records in files, the table, and RESULTS.md. Nothing is measured
//! here.

mod compare; // comparison with records and peers
mod page; // the page

use gritlm_bench::page::page;
use gritlm_bench::record::{Limits, Peer, Record, Row, Step, StepOp, VERSION};
use gritlm_bench::results::{Records, results, splice};
use gritlm_bench::shape;
use gritlm_bench::table::{WIDTH, table};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
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
