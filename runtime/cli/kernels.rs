//! `gritlm kernels build`.

use super::args::Kernels;
use super::output::{Out, Progress};
use crate::{Error, Result};
use gritlm_kernels::compile::{Nvrtc, save};
use gritlm_kernels::source;
use rayon::prelude::*;
use serde_json::json;
use std::sync::Mutex;

pub(super) fn run(Kernels::Build { arch, output }: &Kernels, out: &mut Out) -> Result<()> {
    super::handle_interrupt();
    let nvrtc = Nvrtc::open()?;
    arch.iter().try_for_each(|arch| nvrtc.check(arch))?;
    std::fs::create_dir_all(output).map_err(Error::io(output))?;
    let of_arch = |arch| source::all().iter().map(move |source| (arch, source));
    let wanted: Vec<_> = arch.iter().flat_map(of_arch).collect();
    let progress = Mutex::new((0, Progress::new("compiling", wanted.len() as u64)));
    let built = wanted.into_par_iter().map(|(arch, source)| {
        let compiled = nvrtc.compile(source, arch)?;
        // Whoever panicked while counting has left a count.
        let mut progress = progress.lock().unwrap_or_else(|e| e.into_inner());
        progress.0 += 1;
        let done = progress.0;
        progress.1.at(done)?;
        Ok((source, arch.as_str(), compiled))
    });
    let built = built.collect::<Result<Vec<_>>>()?;
    drop(progress);
    let files: Vec<_> = built.iter().map(|(s, arch, c)| (*s, *arch, &c.cubin[..])).collect();
    save(output, &files)?;

    if !out.json() {
        out.line(format!(
            "{:<7} {:<17} {:<28} {:>9} {:>6} {:>6} {:>9}",
            "arch", "source", "entry", "registers", "spills", "stack", "bytes"
        ))?;
    }
    for (source, arch, compiled) in &built {
        let bytes = compiled.cubin.len();
        for u in &compiled.usage {
            if out.json() {
                out.object(&json!({
                    "arch": arch, "source": source.stem, "entry": u.entry,
                    "registers": u.registers, "spills": u.spills, "stack": u.stack,
                    "bytes": bytes,
                }))?;
            } else {
                out.line(format!(
                    "{arch:<7} {:<17} {:<28} {:>9} {:>6} {:>6} {bytes:>9}",
                    source.stem, u.entry, u.registers, u.spills, u.stack
                ))?;
            }
        }
    }
    Ok(())
}
