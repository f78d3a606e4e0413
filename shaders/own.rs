//! A user's own WGSL files in place of the project's, for experiments.

// A browser's WebGPU comes without naga.
#[cfg(not(target_family = "wasm"))]
mod check;

use crate::shader::{File, Shader, shaders};
use gritlm_model::ops::{DeviceError, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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
}

/// The text of a file, or of the user's in its place, which ends with a line's end.
fn text(file: File, own: &[Own]) -> String {
    match own.iter().find(|own| own.stem == file.stem) {
        None => file.text.into(),
        Some(own) if own.text.ends_with('\n') => own.text.clone(),
        Some(own) => format!("{}\n", own.text),
    }
}
