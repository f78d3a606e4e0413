//! Everything that can go wrong while measuring and reporting.

use gritlm_model::ops::DeviceError;
use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Options and inputs that are invalid, files that cannot be read, and cancelled
/// work are errors of the engine, whatever the crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused or failed; or an option or an input is invalid, a file cannot be read or
    /// written, or the work is cancelled.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// The store of documents failed.
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
}

impl Error {
    /// Returns [`gritlm::Error::Io`] of `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let io = gritlm::Error::io(path);
        move |source| io(source).into()
    }

    /// Returns the engine's error, if it is one.
    pub fn engine(&self) -> Option<&gritlm::Error> {
        match self {
            Self::Engine(error) => Some(error),
            Self::Rag(error) => error.engine(),
        }
    }
}

impl From<gritlm_model::Error> for Error {
    fn from(error: gritlm_model::Error) -> Self {
        Self::Engine(error.into())
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::Engine(error.into())
    }
}
