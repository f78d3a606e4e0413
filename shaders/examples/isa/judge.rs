//! Compares what variants take with the record.

use crate::radv::{self, CHIPS, Taken};
use gritlm_shaders::shader::Shader;
use std::path::Path;
use std::process::ExitCode;

/// Where the record is, a file a chip.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/record/shaders");

/// By how much the instructions of a variant may exceed the record's.
const BAND: f64 = 1.03;

/// Compiles for all chips at once, with a user's file if `own` names one; a line for each problem.
fn compile(text: &str, own: Option<&str>) -> Result<Vec<Vec<Taken>>, ExitCode> {
    let Some(manifest) = radv::manifest() else {
        eprintln!("no RADV in /usr/share/vulkan/icd.d (Debian: mesa-vulkan-drivers)");
        return Err(ExitCode::from(77));
    };
    let manifest = &manifest;
    let all = std::thread::scope(|scope| {
        let start = |chip| scope.spawn(move || radv::compile(manifest, chip, text, own));
        let running = CHIPS.map(start);
        running.map(|thread| thread.join().unwrap_or(Err(vec!["a thread panicked".into()])))
    });
    let (mut taken, mut problems) = (Vec::new(), Vec::new());
    for compiled in all {
        match compiled {
            Ok(compiled) => taken.push(compiled),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() { Ok(taken) } else { Err(fail(&problems)) }
}

fn fail(problems: &[String]) -> ExitCode {
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    ExitCode::FAILURE
}

/// Compiles the variants whose name contains `text` and compares them with the record of a folder.
pub(crate) fn check(text: &str, folder: &Path) -> ExitCode {
    let compiled = match compile(text, None) {
        Ok(compiled) => compiled,
        Err(code) => return code,
    };
    let mut problems = Vec::new();
    for (chip, compiled) in CHIPS.into_iter().zip(&compiled) {
        let record = match read(&folder.join(format!("{chip}.jsonl"))) {
            Ok(record) => record,
            Err(problem) => return fail(&[problem]),
        };
        let driver = compiled.first().map_or("", |taken| &taken.driver);
        let spilling = compiled.iter().filter(|taken| taken.spills > 0).count();
        println!("{chip}: {} variants by {driver}, {spilling} with spills", compiled.len());
        if !text.is_empty() {
            compiled.iter().for_each(|taken| println!("{}", line(taken)));
        }
        match record.iter().find(|known| known.driver != driver) {
            Some(known) => {
                println!("{chip}: not compared: the record is by {}", known.driver);
            }
            None => problems.extend(compare(chip, text, compiled, &record)),
        }
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { fail(&problems) }
}

/// Shows what the variants with a user's file take beside ours.
pub(crate) fn beside(given: &str, text: &str) -> ExitCode {
    let own = match crate::own(given) {
        Ok(own) => own,
        Err(problem) => return fail(&[problem]),
    };
    let has = |taken: &Taken| {
        let named = |(shader, subgroups): &(&Shader, bool)| {
            let start = if *subgroups { " subgroups" } else { "" };
            taken.variant.starts_with(&format!("{}{start} ", shader.name))
                || taken.variant == format!("{}{start}", shader.name)
        };
        own.shaders().iter().any(named)
    };
    let both = compile(text, None).and_then(|ours| Ok((ours, compile(text, Some(given))?)));
    let (ours, yours) = match both {
        Ok(both) => both,
        Err(code) => return code,
    };
    for (chip, (ours, yours)) in CHIPS.into_iter().zip(ours.iter().zip(&yours)) {
        let driver = ours.first().map_or("", |taken| &taken.driver);
        println!("{chip} by {driver}: ours and yours");
        println!("{:>11} {:>11} {:>15}  variant", "VGPRs", "spills", "instructions");
        for (a, b) in ours.iter().zip(yours).filter(|(ours, _)| has(ours)) {
            let pair = |a: u32, b: u32| format!("{a} {b}");
            println!(
                "{:>11} {:>11} {:>15}  {}",
                pair(a.vgprs, b.vgprs),
                pair(a.spills, b.spills),
                pair(a.instructions, b.instructions),
                a.variant
            );
        }
    }
    ExitCode::SUCCESS
}

/// Writes the record of all variants.
pub(crate) fn record(folder: &Path) -> ExitCode {
    let compiled = match compile("", None) {
        Ok(compiled) => compiled,
        Err(code) => return code,
    };
    for (chip, compiled) in CHIPS.into_iter().zip(&compiled) {
        let path = folder.join(format!("{chip}.jsonl"));
        let lines: String = compiled.iter().map(|taken| line(taken) + "\n").collect();
        if let Err(e) = std::fs::write(&path, lines) {
            return fail(&[format!("{}: {e}", path.display())]);
        }
        println!("{}: {} variants", path.display(), compiled.len());
    }
    ExitCode::SUCCESS
}

fn line(taken: &Taken) -> String {
    serde_json::to_string(taken).unwrap_or_default()
}

fn read(path: &Path) -> Result<Vec<Taken>, String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| told(&e))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(|e| told(&e))).collect()
}

/// What variants exceed, a line each.
fn compare(chip: &str, text: &str, compiled: &[Taken], record: &[Taken]) -> Vec<String> {
    let mut lines = Vec::new();
    for taken in compiled {
        let mut tell = |what: String| lines.push(format!("{chip}: {}: {what}", taken.variant));
        let Some(known) = record.iter().find(|known| known.variant == taken.variant) else {
            tell("not in the record".into());
            continue;
        };
        if taken.spills > known.spills {
            tell(format!("{} registers spilled, at most {}", taken.spills, known.spills));
        }
        if taken.subgroups < known.subgroups {
            tell(format!("{} subgroups a SIMD, at least {}", taken.subgroups, known.subgroups));
        }
        let most = (f64::from(known.instructions) * BAND) as u32;
        if taken.instructions > most {
            tell(format!("{} instructions, at most {most}", taken.instructions));
        }
    }
    let is_gone = |known: &&Taken| {
        known.variant.contains(text) && !compiled.iter().any(|t| t.variant == known.variant)
    };
    lines.extend(
        record.iter().filter(is_gone).map(|known| {
            format!("{chip}: {}: in the record, but no default any more", known.variant)
        }),
    );
    lines
}
