//! `bench model` and `bench load` on small models: everything asked for is there, or said to be
//! missing and why; units and shares are right. How fast anything is, no test asks.

use crate::support::{data, devices};
use gritlm::{Device, Engine, Options, Prompt, Sampling, synth};
use gritlm_bench::load::{LoadPlan, load, upload};
use gritlm_bench::model::{ModelPlan, model, steps};
use gritlm_bench::record::{Limits, Record, Row};
use gritlm_bench::{Error, Result};
use std::path::Path;

/// So fast that no figure takes too long.
fn limits(device: &Device) -> Limits {
    let (copy_gb_s, matmul_gflop_s) = (10.0, 1000.0);
    Limits { device: device.to_string(), copy_gb_s, matmul_gflop_s, ..Limits::default() }
}

fn options(device: &Device) -> Options {
    Options::default().device(device.clone())
}

/// Finite, and what they say of each other.
fn check(row: &Row, limits: &Limits) {
    let name = format!("{} {} {}", row.device, row.op, row.shape);
    assert!(row.us > 0.0 && row.us.is_finite(), "{name}: {row:?}");
    assert!(row.spread >= 0.0 && row.spread.is_finite(), "{name}: {row:?}");
    assert!(row.share > 0.0 && row.share.is_finite(), "{name}: {row:?}");
    let rate = match row.limit.as_str() {
        "copy" => row.gb_s() / limits.copy_gb_s,
        "matmul" => row.gflop_s() / limits.matmul_gflop_s,
        _ => row.share,
    };
    assert!((row.share / rate - 1.0).abs() < 1e-9, "{name}: {row:?}");
}

fn quiet() -> impl FnMut(u64, u64) -> Result<()> {
    |_, _| Ok(())
}

#[test]
fn a_model_is_measured_on_every_device() {
    for (device, _) in devices() {
        for like in ["tiny", "tiny-moe"] {
            let engine = Engine::random(like, Some(2), &options(&device)).unwrap();
            let (limits, mut record) = (limits(&device), Record::default());
            let mut heard = Vec::new();
            let mut progress = |done, all| {
                heard.push((done, all));
                Ok(())
            };
            let plan = ModelPlan::quick(2);
            model(&engine, &limits, &plan, &mut record, &mut progress).unwrap();
            assert_eq!(heard, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
            assert!(record.missing.is_empty(), "{:?}", record.missing);
            let named = record.rows.iter().map(|r| (r.op.as_str(), r.shape.clone()));
            let name = format!("{like} with 2 layers");
            let expected = [
                ("embed", format!("4 x 32 tokens of {name}"), Some(128.0)),
                ("prefill", format!("1 x 64 tokens of {name}"), Some(64.0)),
                ("first token", format!("1 x 32 tokens of {name}"), None),
                ("decode", format!("batch 1, context 16 of {name}"), Some(1.0)),
                ("decode", format!("batch 4, context 16 of {name}"), Some(4.0)),
            ];
            let texts = expected.iter().map(|(op, shape, _)| (*op, shape.clone()));
            assert!(named.eq(texts), "{:?}", record.rows);
            for (row, (_, _, tokens)) in record.rows.iter().zip(expected) {
                check(row, &limits);
                assert!(row.suite == "model" && (1..=2).contains(&row.repeats), "{row:?}");
                let time = row.us / 1e6;
                let made = row.tokens_s.map(|rate| (rate * time).round());
                assert_eq!(made, tokens, "{row:?}");
            }
            let decode = &record.rows[3..];
            // The same weights for four times as many tokens; a mixture needs more of its experts.
            assert!(decode[1].flops > 3.9 * decode[0].flops, "{decode:?}");
            assert!(decode[1].bytes > decode[0].bytes, "{decode:?}");
        }
    }
}

#[test]
fn a_filter_keeps_what_contains_it() {
    let engine = Engine::random("tiny", Some(1), &options(&Device::Cpu)).unwrap();
    let figures = |filter: &str| -> Vec<String> {
        let plan = ModelPlan { filter: filter.into(), ..ModelPlan::quick(1) };
        let mut record = Record::default();
        model(&engine, &limits(&Device::Cpu), &plan, &mut record, &mut quiet()).unwrap();
        record.rows.iter().map(|row| format!("{} {}", row.op, row.shape)).collect()
    };
    assert_eq!(figures("decode").len(), 2);
    assert_eq!(figures("batch 4, context 16 of"), figures("decode batch 4,"));
    assert_eq!(figures("batch 4,"), ["decode batch 4, context 16 of tiny with 1 layer"]);
    assert!(figures("nothing").is_empty());
}

#[test]
fn a_step_is_taken_apart_where_the_device_measures() {
    for (device, _) in devices() {
        let how = options(&device).profile(true);
        let engine = Engine::random("tiny", Some(2), &how).unwrap();
        let mut record = Record::default();
        steps(&engine, "it", &ModelPlan::quick(1), &mut record).unwrap();
        let names: Vec<&str> = record.steps.iter().map(|s| s.step.as_str()).collect();
        if record.steps.is_empty() {
            assert!(engine.profile().is_empty());
            continue;
        }
        assert_ne!(device, Device::Cpu);
        let expected = [
            "decode, batch 1, context 16 of tiny with 2 layers",
            "embed, 4 x 32 tokens of tiny with 2 layers",
        ];
        assert_eq!(names, expected);
        for step in &record.steps {
            assert_eq!(step.device, "it");
            let launched =
                |op: &str| step.ops.iter().find(|o| o.op == op).map_or(0, |o| o.launches);
            assert_eq!(launched("gate_up"), 2 * launched("embed"), "{step:?}");
            assert!(step.ops.iter().all(|o| o.us > 0.0), "{step:?}");
        }
    }
}

#[test]
fn what_does_not_fit_or_takes_too_long_is_missing() {
    let how = options(&Device::Cpu).kv_tokens(300);
    let engine = Engine::random("tiny", Some(1), &how).unwrap();
    let mut plan = ModelPlan::quick(1);
    plan.decode = vec![(4, 16), (1, 16), (1, 1000)];
    let mut record = Record::default();
    model(&engine, &limits(&Device::Cpu), &plan, &mut record, &mut quiet()).unwrap();
    let missing: Vec<&str> = record.missing.iter().map(String::as_str).collect();
    let of = "of tiny with 1 layer: ";
    let expected = [
        format!("cpu embed 4 x 32 tokens {of}512 tokens of KV pages, `kv_tokens` has 384"),
        format!("cpu decode batch 4, context 16 {of}512 tokens of KV pages, `kv_tokens` has 384"),
        format!(
            "cpu decode batch 1, context 1000 {of}1024 tokens of KV pages, `kv_tokens` has 384"
        ),
    ];
    assert_eq!(missing, expected);
    assert_eq!(record.rows.len(), 3);

    let slow = Limits { copy_gb_s: 1e-6, matmul_gflop_s: 1e-3, ..limits(&Device::Cpu) };
    let mut record = Record::default();
    model(&engine, &slow, &plan, &mut record, &mut quiet()).unwrap();
    assert!(record.rows.is_empty(), "{:?}", record.rows);
    let late = "at the device's limits, more than 10";
    let late = record.missing.iter().filter(|m| m.ends_with(late)).count();
    assert_eq!(late, 3, "{:?}", record.missing);

    let mut stop = |_, _| Err(gritlm::Error::Cancelled.into());
    let stopped = model(&engine, &slow, &plan, &mut record, &mut stop);
    assert!(matches!(stopped, Err(Error::Engine(gritlm::Error::Cancelled))), "{stopped:?}");
}

#[test]
fn a_plan_has_every_length() {
    let plan = ModelPlan::new(1024, 5);
    let embed = [(1, 32), (32, 32), (1, 128), (8, 128), (1, 512), (2, 512), (1, 2048)];
    assert_eq!(plan.embed, embed);
    assert_eq!(plan.decode.len(), 1 + 4 * 3);
}

#[test]
fn random_weights_are_those_of_a_random_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let how = Sampling::greedy().max_tokens(4).logprobs(3).ignore_eos(true);
    let drawn = |engine: &Engine| -> Vec<_> {
        let prompt = Prompt::Tokens(vec![1, 40, 300]);
        engine.generate(&prompt, &how).unwrap().map(|piece| piece.unwrap().token).collect()
    };
    for like in ["tiny", "tiny-moe"] {
        let path = folder.path().join(like);
        synth::write(like, Some(2), 0, &path, &mut |_, _| Ok(())).unwrap();
        let options = options(&Device::Cpu);
        let written = Engine::open(path.to_str().unwrap(), &options).unwrap();
        let random = Engine::random(like, Some(2), &options).unwrap();
        assert_eq!(drawn(&random), drawn(&written));
        assert_eq!(random.loading().bytes, written.loading().bytes);
        assert_eq!(
            random.tokenizer().encode("ab").unwrap(),
            written.tokenizer().encode("ab").unwrap()
        );
    }
}

#[test]
fn a_model_larger_than_memory_is_refused_with_one_that_fits() {
    let said = |result: gritlm::Result<()>| result.unwrap_err().to_string();
    synth::fits(32, 10, 5, 325).unwrap();
    let refused = said(synth::fits(32, 1 << 30, 1 << 30, 13 << 30));
    let parts =
        ["like: ", "the 14.0 GB of memory", "`layers` 12 would fit", "32 layers", "35.4 GB"];
    for part in parts {
        assert!(refused.contains(part), "{refused}");
    }
    let refused = said(synth::fits(1, 10, 5, 14));
    assert!(refused.contains("not even `layers` 1 would fit"), "{refused}");
    assert!(said(synth::fits(2, u64::MAX, 5, 14)).contains("not even"));

    // 1024 layers of 2.8 GB; where the memory is known.
    if Path::new("/proc/meminfo").exists() {
        let refused = Engine::random("gritlm-8x7b", Some(1024), &options(&Device::Cpu)).map(drop);
        let refused = said(refused);
        assert!(refused.starts_with("like: ") && refused.contains("would fit"), "{refused}");
    }
    let unknown = said(Engine::random("huge", None, &options(&Device::Cpu)).map(drop));
    assert!(unknown.contains("gritlm-7b"), "{unknown}");
    let none = said(Engine::random("tiny", Some(0), &options(&Device::Cpu)).map(drop));
    assert!(none.starts_with("layers: "), "{none}");
}

#[test]
fn a_checkpoint_is_loaded_warm_and_cold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Tiny");
    synth::write("tiny", None, 0, &path, &mut |_, _| Ok(())).unwrap();
    let path = path.to_str().unwrap();
    let program = env!("CARGO_BIN_EXE_gritlm").into();
    let mut plan = LoadPlan { program, repeats: 2, seconds: 20.0 };
    for (device, _) in devices() {
        let (mut record, mut heard) = (Record::default(), Vec::new());
        let mut progress = |done, all| {
            heard.push((done, all));
            Ok(())
        };
        load(path, &options(&device), "it", &plan, &mut record, &mut progress).unwrap();
        assert_eq!(heard, [(1, 4), (2, 4), (3, 4), (4, 4)]);
        let ops: Vec<&str> = record.rows.iter().map(|r| r.op.as_str()).collect();
        match &record.missing[..] {
            [] => {
                let all = ["load warm", "first answer warm", "load cold", "first answer cold"];
                assert_eq!(ops, all);
            }
            // Where the files are, pages may not be dropped.
            [a, b] => {
                assert!(a.starts_with("it load cold: "), "{a}");
                assert!(b.starts_with("it first answer cold: "), "{b}");
                assert_eq!(ops, ["load warm", "first answer warm"]);
            }
            other => panic!("{other:?}"),
        }
        for row in &record.rows {
            check(row, &limits(&device));
            assert_eq!((row.limit.as_str(), row.suite.as_str()), ("reading", "load"));
            assert!(row.shape.ends_with(" GB of tiny"), "{}", row.shape);
        }
    }

    // A GGUF file.
    let file = Path::new(path).with_file_name("tiny.gguf");
    gritlm::quantize(path, None, "q8_0".parse().unwrap(), &file, &mut |_, _| Ok(())).unwrap();
    let mut record = Record::default();
    let model = file.to_str().unwrap();
    load(model, &options(&Device::Cpu), "it", &plan, &mut record, &mut quiet()).unwrap();
    let warm = record.rows.iter().filter(|row| row.op.ends_with(" warm"));
    assert_eq!(warm.count(), 2, "{:?}", record.missing);

    // A program that does not answer.
    plan.program = "/bin/false".into();
    let mut record = Record::default();
    load(path, &options(&Device::Cpu), "it", &plan, &mut record, &mut quiet()).unwrap();
    let broken = record.missing.iter().find(|m| m.starts_with("it first answer warm: "));
    assert!(broken.is_some_and(|m| m.contains("false")), "{:?}", record.missing);

    let demo = load("demo", &options(&Device::Cpu), "it", &plan, &mut record, &mut quiet());
    assert!(demo.unwrap_err().to_string().contains("a checkpoint in files"));
    let missing = data("nowhere");
    load(missing.to_str().unwrap(), &options(&Device::Cpu), "it", &plan, &mut record, &mut quiet())
        .unwrap_err();
}

#[test]
fn random_weights_are_uploaded() {
    let plan = LoadPlan { program: "unused".into(), repeats: 2, seconds: 20.0 };
    for (device, _) in devices() {
        let mut record = Record::default();
        let like = ("tiny-moe", Some(2));
        upload(like, &options(&device), "it", &plan, &mut record, &mut quiet()).unwrap();
        match device {
            Device::Cpu => {
                assert!(record.rows.is_empty());
                assert_eq!(record.missing.len(), 1);
            }
            _ => {
                let [row] = &record.rows[..] else { panic!("{record:?}") };
                assert_eq!((row.op.as_str(), row.limit.as_str()), ("upload", ""));
                assert!(row.us > 0.0 && row.bytes > 1e6, "{row:?}");
                assert!(row.shape.ends_with(" GB of tiny-moe with 2 layers"), "{}", row.shape);
            }
        }
    }
}
