//! Errors of reading a checkpoint. Each is one line with the file, the field, and the expected
//! and found values.

use std::path::PathBuf;

/// Result of reading a checkpoint.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a checkpoint and in which file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read. Check that it exists and that this user may read it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// `config.json` has a field with an invalid value, or one that this program does not
    /// support.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, as spelled in the file.
        field: &'static str,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// The metadata of a GGUF file have a value that is missing or invalid, or one that this
    /// program does not support.
    #[error("{}: {key}: expected {expected}, found {found}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key, as spelled in the file.
        key: String,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A tensor is missing, surplus, or of another type or shape than the config says.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file, or the folder when no file has the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A file does not have the format that its name says, is truncated, or has overlapping
    /// parts.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The checkpoint's chat template does not parse, refuses a conversation or exceeds a bound.
    /// GritLM's own format needs no template.
    #[error("chat template: {0}")]
    Template(String),
    /// A text cannot be turned into tokens, or tokens into text.
    #[error("tokenizer: {0}")]
    Tokenize(String),
}

impl Error {
    /// Returns a closure for `map_err` that makes an [`Error::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
