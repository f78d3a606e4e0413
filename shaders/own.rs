//! A user's own WGSL files in place of the project's, for experiments.

use crate::shader::{File, Shader, shaders};
use gritlm_model::ops::{DeviceError, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use wgpu::naga::front::wgsl;
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu::naga::{SourceLocation, WithSpan};

/// A file in place of the one with its stem, in every shader that has that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The stem.
    pub stem: &'static str,
    /// Where the file is.
    pub path: PathBuf,
    text: String,
}

impl Own {
    /// Reads a file.
    ///
    /// # Errors
    /// When no shader has a file of this stem, or the file cannot be read.
    pub fn read(stem: &str, path: &Path) -> Result<Self> {
        let all: BTreeSet<&'static str> = stems();
        let Some(stem) = all.iter().copied().find(|known| *known == stem) else {
            let all: Vec<&str> = all.into_iter().collect();
            let expected = all.join(", ");
            return Err(DeviceError(format!("expected one of {expected}; found {stem}")));
        };
        let text = std::fs::read_to_string(path)
            .map_err(|e| DeviceError(format!("{}: {e}", path.display())))?;
        Ok(Self { stem, path: path.into(), text })
    }

    /// Returns the shaders that have the file, in the forms with it.
    pub fn shaders(&self) -> Vec<(&'static Shader, bool)> {
        let all = shaders().into_iter();
        let forms = all.flat_map(|shader| {
            let forms = if shader.has_forms() { &[false, true][..] } else { &[false] };
            forms.iter().map(move |&subgroups| (shader, subgroups))
        });
        forms.filter(|(shader, subgroups)| shader.has(*subgroups, self)).collect()
    }
}

/// The stems of all files.
pub fn stems() -> BTreeSet<&'static str> {
    let all = shaders().into_iter().flat_map(|s| s.files(false).chain(s.files(true)));
    all.map(|file| file.stem).collect()
}

impl Shader {
    /// Returns whether the file is one of the shader's.
    fn has(&self, subgroups: bool, own: &Own) -> bool {
        self.files(subgroups).any(|file| file.stem == own.stem)
    }

    /// Returns whether one of the files is the shader's.
    pub(crate) fn has_any(&self, subgroups: bool, own: &[Own]) -> bool {
        own.iter().any(|own| self.has(subgroups, own))
    }

    /// Returns the WGSL text with a user's files in place of ours.
    pub fn source_with(&self, subgroups: bool, own: &[Own]) -> String {
        self.files(subgroups).map(|file| text(file, own)).collect()
    }

    /// Parses and checks the text with a user's files in place of ours.
    ///
    /// # Errors
    /// With file, line and column of the first mistake.
    pub fn check_with(&self, subgroups: bool, own: &[Own]) -> Result<()> {
        let source = self.source_with(subgroups, own);
        let place = |at: Option<SourceLocation>, problem: String| {
            let at = at.map(|at| self.place(subgroups, own, at)).unwrap_or_default();
            Err(DeviceError(format!("{at}{problem}")))
        };
        let module = match wgsl::parse_str(&source) {
            Ok(module) => module,
            Err(error) => return place(error.location(&source), error.message().to_string()),
        };
        let checked = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module);
        match checked {
            Ok(_) => Ok(()),
            Err(error) => place(error.location(&source), reasons(&error)),
        }
    }

    /// Returns the file of a place in the whole text, and the line and column in it.
    fn place(&self, subgroups: bool, own: &[Own], at: SourceLocation) -> String {
        let mut files = self.files(subgroups).peekable();
        let mut line = at.line_number as usize;
        while let Some(file) = files.next() {
            let lines = text(file, own).matches('\n').count();
            // What is missing at the end is told behind the last line.
            if line > lines && files.peek().is_some() {
                line -= lines;
                continue;
            }
            let mine = own.iter().find(|own| own.stem == file.stem);
            let ours = || format!("{}.wgsl", file.stem);
            let name = mine.map_or_else(ours, |own| own.path.display().to_string());
            return format!("{name}:{line}:{}: ", at.line_position);
        }
        String::new()
    }
}

/// The text of a file, or of the user's in its place, which ends with a line's end.
fn text(file: File, own: &[Own]) -> String {
    match own.iter().find(|own| own.stem == file.stem) {
        None => file.text.into(),
        Some(own) if own.text.ends_with('\n') => own.text.clone(),
        Some(own) => format!("{}\n", own.text),
    }
}

/// An error and what has caused it, in one line.
fn reasons<E: std::error::Error>(error: &WithSpan<E>) -> String {
    let mut text = error.as_inner().to_string();
    let mut cause = error.as_inner().source();
    while let Some(why) = cause {
        text += &format!(": {why}");
        cause = why.source();
    }
    text.replace('\n', " ")
}
