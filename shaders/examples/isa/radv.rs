//! Runs RADV on its null device, in a process of its own: its counts come on stderr, and a compiler
//! may crash.

use crate::compile::{BEGIN, DRIVER, END, FAILED};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The chips for which variants are compiled, as Mesa 22.3 names them: RDNA 2 and RDNA 3. That
/// version gives `gfx1100` half of the registers that later ones do, so that its record has spills.
pub(crate) const CHIPS: [&str; 2] = ["navi21", "gfx1100"];

/// What a variant takes on a chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) variant: String,
    /// Version of the compiler.
    pub(crate) driver: String,
    pub(crate) vgprs: u32,
    /// Vector registers that are kept in memory.
    pub(crate) spills: u32,
    /// Bytes of workgroup memory.
    pub(crate) lds: u32,
    /// Subgroups that can be resident on a SIMD.
    pub(crate) subgroups: u32,
    pub(crate) instructions: u32,
    /// The compiler's own estimate of cycles a subgroup, where enough of them are resident.
    pub(crate) inverse_throughput: u32,
}

/// The manifest of RADV, or `None` without it.
pub(crate) fn manifest() -> Option<PathBuf> {
    let given = std::env::var_os("VK_DRIVER_FILES").map(PathBuf::from);
    let found = std::fs::read_dir("/usr/share/vulkan/icd.d").into_iter().flatten().flatten();
    given.or_else(|| {
        let name = |file: &PathBuf| file.to_string_lossy().contains("/radeon_icd");
        found.map(|entry| entry.path()).find(name)
    })
}

/// Compiles all variants whose name contains `text` for a chip, with a user's file in place of ours where
/// `own` is `STEM=FILE`; a problem is one line for each
/// variant that fails, or one for the driver.
pub(crate) fn compile(
    manifest: &PathBuf,
    chip: &str,
    text: &str,
    own: Option<&str>,
) -> Result<Vec<Taken>, Vec<String>> {
    let start = || {
        Command::new(std::env::current_exe()?)
            .args(["compile", text])
            .args(own)
            .env("VK_DRIVER_FILES", manifest)
            .env("RADV_FORCE_FAMILY", chip)
            .env("RADV_DEBUG", "shaderstats,nocache")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let told = |problem: String| vec![format!("{chip}: {problem}")];
    let mut child = start().map_err(|e| told(format!("the compiler does not start: {e}")))?;
    let stderr = child.stderr.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
    let lines: Vec<String> = stderr.map_while(Result::ok).collect();
    let status = child.wait().map_err(|e| told(e.to_string()))?;
    if !lines.iter().any(|line| line.starts_with(DRIVER)) {
        return Err(told(lines.last().cloned().unwrap_or("says nothing".into())));
    }
    let taken = parse(&lines).map_err(|problems| -> Vec<String> {
        problems.into_iter().map(|problem| format!("{chip}: {problem}")).collect()
    })?;
    if status.success() { Ok(taken) } else { Err(told(format!("the compiler ended: {status}"))) }
}

/// Reads what [`crate::compile`] and the driver have written.
fn parse(lines: &[String]) -> Result<Vec<Taken>, Vec<String>> {
    let driver = lines.iter().find_map(|line| line.strip_prefix(DRIVER)).unwrap_or_default();
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    let begins = |line: &String| line.starts_with(BEGIN);
    let mut rest = lines;
    while let Some(at) = rest.iter().position(begins) {
        let variant = &rest[at][BEGIN.len()..];
        rest = &rest[at + 1..];
        let part = &rest[..rest.iter().position(begins).unwrap_or(rest.len())];
        let count = |name: &str| {
            let value = part.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
            value.and_then(|value| value.trim().parse().ok())
        };
        let taken = || {
            Some(Taken {
                variant: variant.into(),
                driver: driver.into(),
                vgprs: count("VGPRs")?,
                spills: count("Spilled VGPRs")?,
                lds: count("LDS size")?,
                subgroups: count("Subgroups per SIMD")?,
                instructions: count("Instructions")?,
                inverse_throughput: count("Inverse Throughput")?,
            })
        };
        let failed = part.iter().find_map(|line| line.strip_prefix(FAILED));
        match (failed, taken()) {
            (None, Some(taken)) => all.push(taken),
            (Some(failed), _) => problems.push(format!("{variant}: does not compile: {failed}")),
            (None, None) if part.iter().any(|line| line == END) => {
                problems.push(format!("{variant}: the driver says no counts"));
            }
            (None, None) => problems.push(format!("{variant}: the compiler crashes")),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}
