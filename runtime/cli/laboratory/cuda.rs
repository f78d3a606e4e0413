//! A user's own CUDA kernels.

use super::{Asked, show_checked, time, wrong};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::note;
use crate::output::{Out, Progress};
use gritlm::Device;
use gritlm_bench::laboratory::cuda::{Compiled, Laboratory, Predicted, Source, devices, open};

pub(super) fn run(asked: Asked<'_>, global: &Global, out: &mut Out) -> Result<()> {
    let Asked { own, arch, like, named, how } = asked;
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
    let by = if gpu.is_none() { "the interpreter of PTX" } else { "the GPU" };
    let entries = compiled.iter().flat_map(|(_, compiled)| &compiled.usage);
    show_checked(&checked, entries.map(|usage| usage.entry.as_str()), by, out)?;
    wrong(&checked, lab.own.iter().filter_map(|own| own.path.as_deref()), out)?;
    match gpu {
        Some(ordinal) => {
            let named = lab.launching(named, |n| &n.case)?;
            let name = Device::Cuda(ordinal).to_string();
            time((&open(ordinal, &[])?, &device), &name, &named, how, out)
        }
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
