//! `gritlm kernels`: what the compiler makes of the kernels, and what that would reach.

use super::args::Kernels;
use super::output::{Out, Progress};
use crate::error::Result;
use gritlm::backend;
use serde_json::json;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

pub(super) fn run(what: &Kernels, out: &mut Out) -> Result<()> {
    super::handle_interrupt();
    match what {
        Kernels::Build { arch, output } => build(arch, output, out),
        #[cfg(feature = "cuda")]
        Kernels::Report { arch, like, .. } => report(arch, like, out),
    }
}

fn build(arch: &[String], output: &Path, out: &mut Out) -> Result<()> {
    let progress = Mutex::new(Progress::new("compiling", 0));
    let built = backend::build_kernels(arch, output, |done, all| {
        // A thread that panicked while drawing has left a usable bar.
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.of(done, all).map_err(gritlm::Error::from)
    })?;
    drop(progress);

    if !out.json() {
        out.line(format!(
            "{:<7} {:<17} {:<28} {:>9} {:>6} {:>6} {:>9}",
            "arch", "source", "entry", "registers", "spills", "stack", "bytes"
        ))?;
    }
    for (b, u) in built.iter().flat_map(|b| b.usage.iter().map(move |u| (b, u))) {
        if out.json() {
            out.object(&json!({
                "arch": b.arch, "source": b.source, "entry": u.entry, "registers": u.registers,
                "spills": u.spills, "stack": u.stack, "bytes": b.bytes,
            }))?;
        } else {
            out.line(format!(
                "{:<7} {:<17} {:<28} {:>9} {:>6} {:>6} {:>9}",
                b.arch, b.source, u.entry, u.registers, u.spills, u.stack, b.bytes
            ))?;
        }
    }
    Ok(())
}

/// Prints the predictions, a line a row.
#[cfg(feature = "cuda")]
fn report(arch: &str, like: &str, out: &mut Out) -> Result<()> {
    let predictor = gritlm::predict::Predictor::open(arch).map_err(gritlm::Error::from)?;
    let rows = gritlm::predict::predict(&predictor, like)?;
    if out.json() {
        return rows.iter().try_for_each(|row| out.object(row));
    }
    let (gpu, (major, minor)) = (predictor.gpu().name, predictor.compiler());
    out.lines(format!(
        "predicted for {like} on one {gpu} from what NVRTC {major}.{minor} makes for {arch}; nothing \
         was measured\n\n{:>5} {:<17} {:<22} {:>8} {:>7} {:>9} {:>6} {:>12} {:>9}  share of",
        "rows", "kernel", "variant", "launches", "blocks", "registers", "spills", "loop cycles", "µs"
    ))?;
    for row in &rows {
        out.line(format!(
            "{:>5} {:<17} {:<22} {:>8} {:>7} {:>9} {:>6} {:>12.0} {:>9.1}  {:.2} of {}",
            row.rows,
            row.kernel,
            row.variant,
            row.launches,
            row.blocks,
            row.registers,
            row.spills,
            row.loop_cycles,
            row.predicted_us,
            row.predicted_share,
            row.limit
        ))?;
    }
    Ok(())
}
