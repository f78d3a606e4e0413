//! Errors of measuring and reporting.

use gritlm_model::ops::DeviceError;
use std::path::PathBuf;

/// Result of every function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. A message is one line that names the file or field, what was expected and
/// what was found; see [`gritlm::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// The store of documents failed.
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
    /// An option has an invalid value.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The field's name.
        option: &'static str,
        /// What would be valid.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A record or a measured result is invalid.
    #[error("{what}: {problem}")]
    Input {
        /// Which record or result.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A callback reported that nobody waits for the result any more.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Returns a function that makes [`Error::Io`] of `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Returns whether the caller has cancelled the work.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled | Self::Engine(gritlm::Error::Cancelled) => true,
            Self::Rag(error) => error.is_cancelled(),
            _ => false,
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
