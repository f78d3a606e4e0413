//! What can be wrong with a checkpoint: one line each, with file, field, expected and found.

use std::path::PathBuf;

/// The result of reading a checkpoint.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a checkpoint, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read. Check that it exists and that this user may read it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` has a field that no model can have, or one that this program cannot compute.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, as spelled there.
        field: &'static str,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor is missing, surplus, or of another type or shape than the config says.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file, or the folder when no file has the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file is not what its name says: cut off, overlapping, or not the format at all.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A text cannot be turned into tokens, or tokens into text.
    #[error("tokenizer: {0}")]
    Tokenize(String),
}

impl Error {
    /// [`Error::Io`] of `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
