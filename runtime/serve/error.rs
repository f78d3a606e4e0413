//! What keeps a server from starting, and what it ends with.

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages are one line and name the field, what was expected and what was found;
/// see [`gritlm::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine could not be opened, or failed.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// The store of documents could not be opened, or failed.
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
    /// A setting has a value that means nothing.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The field's name.
        option: &'static str,
        /// What would be right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The server cannot listen, or was ended before all requests were done.
    #[error("{what}: {problem}")]
    Server {
        /// What the problem is with: the address, a setting.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}
