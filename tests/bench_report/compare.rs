//! Records beside other records, and beside the peers that did the same work.

use super::{message, sample};
use crate::support::data;
use gritlm_bench::compare::{Kind, compare};
use gritlm_bench::peer::merge;
use gritlm_bench::record::{Peer, Record};
use serde_json::{Value, json};
use std::fs;
use tempfile::tempdir;

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
