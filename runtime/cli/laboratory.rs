//! `gritlm bench ops --with STEM=FILE`: a user's own CUDA kernels beside ours.

use super::args::{BenchHow, Global, Own};
use super::output::{Out, Progress};
use super::{handle_interrupt, note};
use crate::error::{Error, Result};
use gritlm::Device;
use gritlm_bench::laboratory::{
    Checked, Compiled, Cuda, Laboratory, Measured, Predicted, Source, beside, devices, open,
};
use gritlm_bench::limits::measure;
use gritlm_bench::ops::Named;

/// Failed cases that are shown.
const SHOWN: usize = 10;

pub(super) fn run(
    own: &[Own],
    (arch, like): (&str, &str),
    named: Vec<Named>,
    how: &BenchHow,
    global: &Global,
    out: &mut Out,
) -> Result<()> {
    handle_interrupt();
    let own = own.iter().map(|own| Source::own(&own.stem, &own.path));
    let own = own.collect::<Result<Vec<_>, _>>().map_err(gritlm::Error::from)?;
    let gpu = gpu(global)?;
    let lab = Laboratory { own, arch: arch.into() };
    let compiled = lab.compile(gpu).map_err(said)?;
    compiled.iter().try_for_each(|(source, compiled)| show_compiled(source, compiled, out))?;
    let mut device = match gpu {
        Some(ordinal) => open(ordinal, &lab.own)?,
        None => lab.interpreter()?,
    };
    let mut progress = Progress::new("cases", 0);
    let cases = lab.cases()?;
    let checked = lab.check(&mut device, &cases, |done, all| Ok(progress.of(done, all)?))?;
    drop(progress);
    show_checked(&checked, &compiled, gpu.is_none(), out)?;
    if !checked.failed.is_empty() {
        out.finish()?;
        let files = lab.own.iter().filter_map(|own| own.path.as_ref());
        let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
        return Err(Error::Input {
            what: files.join(", "),
            problem: format!("{} of {} cases are wrong", checked.failed.len(), checked.cases),
        });
    }
    match gpu {
        Some(ordinal) => time((ordinal, &device), lab.launching(named, |n| &n.case)?, how, out),
        None => show_predicted(&lab.predict(like)?, like, out),
    }
}

/// Shows what the compiler says, and returns the error's first line.
fn said(problem: gritlm_bench::Error) -> Error {
    let text = problem.to_string();
    let (first, log) = text.split_once('\n').unwrap_or((&text, ""));
    log.lines().for_each(note);
    Error::Input { what: "--with".into(), problem: first.trim_end_matches(':').into() }
}

/// Returns the number of the GPU that `--device` names, or that is there; `None` without one.
fn gpu(global: &Global) -> Result<Option<u32>> {
    match &global.device.0[..] {
        [Device::Cuda(n)] => Ok(Some(*n)),
        [Device::Auto] => Ok(devices().is_ok_and(|gpus| !gpus.is_empty()).then_some(0)),
        [Device::Cpu] => Ok(None),
        _ => Err(Error::Option {
            option: "--device",
            expected: "cuda, cuda:N, or cpu for the interpreter, with --with".into(),
            found: global.device.0.iter().map(Device::to_string).collect::<Vec<_>>().join(","),
        }),
    }
}

fn show_compiled(source: &Source, compiled: &Compiled, out: &mut Out) -> Result<()> {
    if out.json() {
        return out.object(&serde_json::json!({
            "kernel": source.stem, "said": compiled.said, "entries": compiled.usage,
        }));
    }
    out.line(format!("{}, compiled", source.stem))?;
    compiled.said.iter().try_for_each(|line| out.line(format!("  {line}")))?;
    out.line(format!("  {:<40} {:>9} {:>6} {:>6}", "entry", "registers", "spills", "stack"))?;
    compiled.usage.iter().try_for_each(|u| {
        out.line(format!("  {:<40} {:>9} {:>6} {:>6}", u.entry, u.registers, u.spills, u.stack))
    })
}

fn show_checked(
    checked: &Checked,
    compiled: &[(&Source, Compiled)],
    interpreted: bool,
    out: &mut Out,
) -> Result<()> {
    if out.json() {
        return out.object(checked);
    }
    let by = if interpreted { "the interpreter of PTX" } else { "the GPU" };
    out.line(format!(
        "\nchecked on {by}: {} cases, {} wrong",
        checked.cases,
        checked.failed.len()
    ))?;
    if !checked.worst.is_empty() {
        out.line(format!("  largest relative error {:.1e} ({})", checked.error, checked.worst))?;
    }
    for usage in compiled.iter().flat_map(|(_, compiled)| &compiled.usage) {
        if !checked.launched.contains(&usage.entry) {
            out.line(format!("  {}: no case launches it", usage.entry))?;
        }
    }
    checked.failed.iter().take(SHOWN).try_for_each(|line| out.line(format!("  {line}")))?;
    match checked.failed.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => out.line(format!("  and {more} more")),
    }
}

/// Times the ops in turn with our kernels and the user's.
fn time(
    (ordinal, yours): (u32, &Cuda),
    named: Vec<Named>,
    how: &BenchHow,
    out: &mut Out,
) -> Result<()> {
    let ours = open(ordinal, &[])?;
    let limits = measure(&ours, &Device::Cuda(ordinal).to_string())?;
    let mut progress = Progress::new("ops", named.len() as u64);
    let how = (how.repeats, how.displace << 20);
    if !out.json() {
        out.lines(format!(
            "\n{:<40} {:>9} {:>9} {:>6} {:>7}  share of",
            "measured", "ours, µs", "yours, µs", "ratio", "spread"
        ))?;
    }
    for (n, named) in (1..).zip(&named) {
        let measured = beside((&ours, yours), &limits, named, how)?;
        let Measured { ours, yours } = &measured;
        match out.json() {
            true => out.object(&measured)?,
            false => out.line(format!(
                "{:<40} {:>9.1} {:>9.1} {:>6.2} {:>6.0}%  {:.2} of {}",
                format!("{} {}", yours.op, yours.shape),
                ours.us,
                yours.us,
                ours.us / yours.us,
                100.0 * ours.spread.max(yours.spread),
                yours.share,
                yours.limit
            ))?,
        }
        progress.at(n)?;
    }
    Ok(())
}

fn show_predicted(pairs: &[Predicted], like: &str, out: &mut Out) -> Result<()> {
    if out.json() {
        return pairs.iter().try_for_each(|pair| out.object(pair));
    }
    out.lines(format!(
        "\npredicted for {like}; nothing was measured\n{:>5} {:<26} {:>7} {:>9} {:>9} {:>6} {:>11} {:>11}  share of",
        "rows", "kernel", "blocks", "ours, µs", "yours, µs", "ratio", "loop, ours", "loop, yours"
    ))?;
    pairs.iter().try_for_each(|Predicted { ours, yours }| {
        out.line(format!(
            "{:>5} {:<26} {:>7} {:>9.1} {:>9.1} {:>6.2} {:>11.0} {:>11.0}  {:.2} of {}",
            yours.rows,
            format!("{} {}", yours.kernel, yours.variant),
            yours.blocks,
            ours.predicted_us,
            yours.predicted_us,
            ours.predicted_us / yours.predicted_us,
            ours.loop_cycles,
            yours.loop_cycles,
            yours.predicted_share,
            yours.limit
        ))
    })
}
