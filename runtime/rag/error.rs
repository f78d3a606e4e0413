//! Everything that can go wrong with documents and their store.

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
    /// The scheduler refused an embedding pass or an answer.
    #[error(transparent)]
    Refused(#[from] gritlm::schedule::Refused),
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
            _ => None,
        }
    }
}

impl From<gritlm_model::Error> for Error {
    fn from(error: gritlm_model::Error) -> Self {
        Self::Engine(error.into())
    }
}
