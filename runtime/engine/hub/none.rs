//! Replaces the Hugging Face hub in builds without the feature `hub`: only folders and GGUF files can be
//! opened.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Returns the folder of a checkpoint, or a GGUF file.
pub(crate) fn resolve(model: &str, _progress: bool) -> Result<PathBuf> {
    let path = Path::new(model);
    match path.is_dir() || (gritlm_model::gguf::is_gguf(path) && path.exists()) {
        true => Ok(path.into()),
        false => Err(Error::NoModel {
            model: model.into(),
            problem: "there is no such folder or GGUF file, and the feature hub is not built in"
                .into(),
        }),
    }
}
