//! What keeps a server from starting, and what it ends with.

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Options and inputs that are invalid, files that cannot be read, and cancelled
/// work are errors of the engine, whatever the crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine could not be opened or failed; or a setting is invalid, the server cannot listen,
    /// or it ended before all requests were done.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// The store of documents could not be opened, or failed.
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
}

impl Error {
    /// Returns the engine's error, if it is one.
    pub fn engine(&self) -> Option<&gritlm::Error> {
        match self {
            Self::Engine(error) => Some(error),
            Self::Rag(error) => error.engine(),
        }
    }
}
