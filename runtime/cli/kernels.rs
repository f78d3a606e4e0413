//! `gritlm kernels build`.

use super::args::Kernels;
use super::output::{Out, Progress};
use crate::error::Result;
use gritlm::backend;
use serde_json::json;
use std::sync::{Mutex, PoisonError};

pub(super) fn run(Kernels::Build { arch, output }: &Kernels, out: &mut Out) -> Result<()> {
    super::handle_interrupt();
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
