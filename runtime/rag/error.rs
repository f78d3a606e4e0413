//! Everything that can go wrong with documents and their store.

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
    /// The scheduler refused an embedding pass or an answer.
    #[error(transparent)]
    Refused(#[from] gritlm::schedule::Refused),
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
    /// An input is not what it should be: a chunk's cache of another model, a title that fills a
    /// chunk.
    #[error("{what}: {problem}")]
    Input {
        /// Which input, and where in it.
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
    /// A store of documents is damaged, in use, full, or made with something else; the message says
    /// which. [`verify`](crate::verify) finds all that is damaged.
    #[error("{}: {problem}", path.display())]
    Store {
        /// The store's folder, or the file in it.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// A store of documents has a writer already. Wait until it is done.
    #[error("{}: {problem}", path.display())]
    Busy {
        /// The store's folder.
        path: PathBuf,
        /// Who writes.
        problem: String,
    },
    /// Whoever waited for the result no longer does: a callback said so, or the client has left.
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
        matches!(self, Self::Cancelled | Self::Engine(gritlm::Error::Cancelled))
    }
}

impl From<gritlm_model::Error> for Error {
    fn from(error: gritlm_model::Error) -> Self {
        Self::Engine(error.into())
    }
}
