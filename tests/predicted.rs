//! The predictions for the CUDA kernels do not get worse unseen: registers, instructions and cycles of
//! the loops, and times, beside a record. A record of another compiler is only named.
//!
//! To write it again: `gritlm kernels report --format json > benches/record/kernels/gritlm-7b.sm_90a.jsonl`
//! (and for sm_80), with the reasons in `kernels/NOTES.md`.

use crate::kernels::inlined;
use crate::support::{long, say};
use gritlm::predict::{Predictor, Row, predict};
use gritlm_kernels::source;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// By how much a prediction may exceed the record's.
const BAND: f64 = 1.03;

fn record(arch: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record/kernels");
    let text = fs::read_to_string(folder.join(format!("gritlm-7b.{arch}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Opens the compiler and the disassembler; `None` where they are missing and nobody expects them.
fn open(test: &str, arch: &str) -> Option<Predictor> {
    match Predictor::open(arch) {
        Ok(predictor) => Some(predictor),
        Err(problem) => {
            assert!(std::env::var_os("GRITLM_EXPECT_CUDA").is_none(), "{problem}");
            say(&format!("SKIPPED {test}: {problem}"));
            None
        }
    }
}

/// What rows exceed of those of the record, a line each.
fn exceeded(rows: &[Row], record: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        let name =
            format!("{} {} of {} rows, {} blocks", row.kernel, row.variant, row.rows, row.blocks);
        let found = serde_json::to_value(row).unwrap();
        let keys = ["kernel", "variant", "rows", "blocks", "bytes", "flops"];
        let same = |known: &&Value| keys.iter().all(|key| known[key] == found[key]);
        let Some(known) = record.iter().find(same) else {
            lines.push(format!("{name}: not in the record"));
            continue;
        };
        for (what, band) in
            [("loop_instructions", 1.0), ("loop_cycles", BAND), ("predicted_us", BAND)]
        {
            let (found, most) =
                (found[what].as_f64().unwrap(), known[what].as_f64().unwrap() * band);
            if found > most + 1e-9 {
                lines.push(format!("{name}: {what} {found:.1}, at most {most:.1}"));
            }
        }
    }
    lines
}

#[test]
fn kernels_are_predicted_as_recorded() {
    const TEST: &str = "predicted::kernels_are_predicted_as_recorded";
    let archs = if long() { vec!["sm_90a", "sm_80"] } else { vec!["sm_90a"] };
    for arch in archs {
        let Some(mut predictor) = open(TEST, arch) else { return };
        let record = record(arch);
        let rows = predict(&predictor, "gritlm-7b").unwrap();
        assert!(rows.len() > 60 && rows.iter().all(|row| row.spills == 0));
        assert!(rows.iter().all(|row| row.predicted_share > 0.0 && row.predicted_share <= 1.1));
        let (compiler, recorded) = (&rows[0].compiler, &record[0]["compiler"]);
        if *recorded != **compiler {
            say(&format!("{arch}: the record is NVRTC {recorded}'s, and this is {compiler}"));
            continue;
        }
        let found = exceeded(&rows, &record);
        assert!(found.is_empty(), "{arch}:\n{}", found.join("\n"));

        // A loop with a few instructions more is seen.
        let source = source::all().iter().find(|source| source.stem == "linear_add").unwrap();
        let (header, line) = match arch {
            "sm_80" => ("matmul.cuh", "            multiply(k);\n"),
            _ => ("matmul_hopper_few.cuh", "        wgmma_wait<1>();\n"),
        };
        let (_, text) = source::HEADERS.iter().find(|(name, _)| *name == header).unwrap();
        let slow = text.replace(
            line,
            &format!("{line}__nanosleep(steps); __nanosleep(k); __nanosleep(stage);\n"),
        );
        assert_ne!(*text, slow);
        predictor.replace(&inlined(source, header, &slow)).unwrap();
        let found = exceeded(&predict(&predictor, "gritlm-7b").unwrap(), &record);
        let longer =
            |line: &String| line.starts_with("linear_add") && line.contains("loop_instructions");
        assert!(found.iter().any(longer), "{found:?}");
    }
}
