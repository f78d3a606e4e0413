//! A user's own WGSL files on a device of wgpu.
//!
//! What a shader is given and what it may assume is in `docs/shaders.md`.

use super::Checked;
use crate::Result;
use crate::case::{Case, Step};
use crate::cases::cases;
use crate::ops::Named;
use gritlm_model::measure::Measure;
use gritlm_model::ops::Ops;
pub use gritlm_shaders::{Half, Options, Own, Wgpu};
use std::collections::BTreeSet;

/// Parses and checks every shader that has one of the files; returns how many there are, each form
/// counted.
///
/// # Errors
/// With file, line and column of the first mistake.
pub fn compile(own: &[Own]) -> Result<usize> {
    let mut all = Vec::new();
    for (shader, subgroups) in own.iter().flat_map(Own::shaders) {
        if !all.contains(&(shader.name, subgroups)) {
            shader.check_with(subgroups, own)?;
            all.push((shader.name, subgroups));
        }
    }
    Ok(all.len())
}

/// Opens an adapter, by a part of its name, to measure on, with these files in place of ours.
///
/// # Errors
/// As [`Wgpu::open`].
pub fn open(name: &str, half: Half, own: Vec<Own>) -> Result<Wgpu> {
    let options = Options::default().name(name).profile(true).f16(half).own(own);
    Ok(pollster::block_on(Wgpu::open(&options))?)
}

/// Runs the table's cases that launch a shader with one of the files, and compares them with the
/// reference. `at(done, all)` is called before each.
///
/// # Errors
/// That of `at`. What the device or a shader does wrong is in the result.
pub fn check(device: &Wgpu, mut at: impl FnMut(u64, u64) -> Result<()>) -> Result<Checked> {
    let all: Vec<Case> = cases().into_iter().filter(|case| device.takes(case.dtype)).collect();
    let mut checked = Checked::default();
    for (done, case) in (0..).zip(&all) {
        at(done, all.len() as u64)?;
        let compared = match launches(device, case) {
            Ok(launched) if launched.is_empty() => continue,
            Ok(launched) => {
                checked.launched.extend(launched);
                case.compare(device, &case.expected(), device.bound())
            }
            Err(problem) => Err(problem.to_string()),
        };
        checked.cases += 1;
        match compared {
            Ok(error) if error > checked.error => {
                (checked.error, checked.worst) = (error, case.name.clone());
            }
            Ok(_) => {}
            Err(problem) => checked.failed.push(format!("{}: {problem}", case.name)),
        }
    }
    Ok(checked)
}

/// Returns those ops that launch a shader with one of the device's own files.
///
/// # Errors
/// When the device fails.
pub fn launching(device: &Wgpu, all: Vec<Named>) -> Result<Vec<Named>> {
    let mut wanted = Vec::new();
    for named in all {
        if !launches(device, &named.case)?.is_empty() {
            wanted.push(named);
        }
    }
    Ok(wanted)
}

/// Returns the variants that a case launches and that have one of the files.
fn launches(device: &Wgpu, case: &Case) -> Result<BTreeSet<String>> {
    Ok(device.planned(|| case.ready(device)?(Step::Launch))?)
}
