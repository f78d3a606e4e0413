//! Everything that can go wrong while measuring and reporting.

use gritlm_model::ops::DeviceError;
use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages are one line and name the file or field, what was expected and what was
/// found; see [`gritlm::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// The store of documents failed.
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
    /// An option has a value that means nothing.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The field's name.
        option: &'static str,
        /// What would be right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A record or a result is not what it should be.
    #[error("{what}: {problem}")]
    Input {
        /// Which one.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whoever waited for the result no longer does: a callback said so.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// [`Error::Io`] of `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Returns whether whoever waited for the result no longer does.
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
