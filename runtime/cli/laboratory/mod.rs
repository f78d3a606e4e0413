//! `gritlm bench ops --with STEM=FILE`: a user's own CUDA kernels or WGSL files beside ours.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgsl;

use super::args::{BenchHow, Global, Own};
use super::handle_interrupt;
use super::output::{Out, Progress};
use crate::error::{Error, Result};
use gritlm_bench::laboratory::{Checked, Measured, beside};
use gritlm_bench::limits::measure;
use gritlm_bench::ops::Named;
use gritlm_model::measure::Measure;
use std::path::Path;

/// Failed cases that are shown.
const SHOWN: usize = 10;

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) own: &'a [Own],
    /// Architecture of a GPU that is not there.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "of CUDA kernels"))]
    pub(super) arch: &'a str,
    /// Shape of the model whose steps are predicted.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "of CUDA kernels"))]
    pub(super) like: &'a str,
    /// Ops to time.
    pub(super) named: Vec<Named>,
    pub(super) how: &'a BenchHow,
}

pub(super) fn run(asked: Asked<'_>, global: &Global, out: &mut Out) -> Result<()> {
    handle_interrupt();
    let is_wgsl = |own: &&Own| own.path.extension().is_some_and(|end| end == "wgsl");
    match (asked.own.iter().filter(is_wgsl).count(), asked.own.len()) {
        #[cfg(feature = "cuda")]
        (0, _) => cuda::run(asked, global, out),
        #[cfg(feature = "wgpu")]
        (wgsl, all) if wgsl == all => wgsl::run(asked, global, out),
        (wgsl, all) => {
            let expected = match (cfg!(feature = "cuda"), cfg!(feature = "wgpu")) {
                (true, true) => "CUDA sources or WGSL files, not both",
                (true, false) => "CUDA sources: the WGSL backend is not built in",
                _ => "WGSL files: the CUDA backend is not built in",
            };
            let found = format!("{wgsl} of {all} files in WGSL");
            Err(Error::Option { option: "--with", expected: expected.into(), found })
        }
    }
}

/// Shows what the case table found, and which of `all` entry points no case launches.
fn show_checked<'a>(
    checked: &Checked,
    all: impl Iterator<Item = &'a str>,
    by: &str,
    out: &mut Out,
) -> Result<()> {
    if out.json() {
        return out.object(checked);
    }
    let wrong = checked.failed.len();
    out.lines(format!("\nchecked on {by}: {} cases, {wrong} wrong", checked.cases))?;
    if !checked.worst.is_empty() {
        out.line(format!("  largest relative error {:.1e} ({})", checked.error, checked.worst))?;
    }
    for entry in all.filter(|entry| !checked.launched.contains(*entry)) {
        out.line(format!("  {entry}: no case launches it"))?;
    }
    checked.failed.iter().take(SHOWN).try_for_each(|line| out.line(format!("  {line}")))?;
    match wrong.saturating_sub(SHOWN) {
        0 => Ok(()),
        more => out.line(format!("  and {more} more")),
    }
}

/// Ends the command with an error if a case is wrong.
fn wrong<'a>(
    checked: &Checked,
    files: impl Iterator<Item = &'a Path>,
    out: &mut Out,
) -> Result<()> {
    if checked.failed.is_empty() {
        return Ok(());
    }
    out.finish()?;
    let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
    Err(Error::Input {
        what: files.join(", "),
        problem: format!("{} of {} cases are wrong", checked.failed.len(), checked.cases),
    })
}

/// Times the ops in turn with ours and the user's.
fn time<O: Measure>(
    (ours, yours): (&O, &O),
    device: &str,
    named: &[Named],
    how: &BenchHow,
    out: &mut Out,
) -> Result<()> {
    let limits = measure(ours, device)?;
    let mut progress = Progress::new("ops", named.len() as u64);
    let how = (how.repeats, how.displace << 20);
    if !out.json() {
        out.lines(format!(
            "\n{:<40} {:>9} {:>9} {:>6} {:>7}  share of",
            "measured", "ours, µs", "yours, µs", "ratio", "spread"
        ))?;
    }
    for (n, named) in (1..).zip(named) {
        let measured = beside((ours, yours), &limits, named, how)?;
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
