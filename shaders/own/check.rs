//! Checks a user's own WGSL files with naga.

use super::{Own, text};
use crate::shader::Shader;
use gritlm_model::ops::{DeviceError, Result};
use wgpu::naga::front::wgsl;
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu::naga::{SourceLocation, WithSpan};

impl Shader {
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
