//! A user's own kernels and shaders in place of the project's: checked over the case table against the
//! reference, then timed beside ours.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgsl;

use super::ops::{Named, row};
use super::record::{Limits, Row};
use crate::Result;
use gritlm_model::measure::Measure;
use serde::Serialize;
use std::collections::BTreeSet;

/// What the case table found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Checked {
    /// Cases that launched one of the kernels or shaders, each form of a product of kernels counted.
    pub cases: usize,
    /// Largest relative error of a case that is right.
    pub error: f64,
    /// The case that had it; empty if no case had any.
    pub worst: String,
    /// Entry points, or variants of shaders, that were launched.
    pub launched: BTreeSet<String>,
    /// Cases whose results are wrong or that did not run, a line each.
    pub failed: Vec<String>,
}

/// An op with ours and with the user's, both measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Ours.
    pub ours: Row,
    /// The user's.
    pub yours: Row,
}

/// Checks one op on both devices and times it, ours first.
///
/// # Errors
/// When a device fails or a result is wrong.
pub fn beside<O: Measure>(
    (ours, yours): (&O, &O),
    limits: &Limits,
    named: &Named,
    how: (u32, u64),
) -> Result<Measured> {
    Ok(Measured { ours: row(ours, limits, named, how)?, yours: row(yours, limits, named, how)? })
}
