//! The program's errors: those of the libraries, in which fields are named, and its own, in which
//! flags are.

use std::path::PathBuf;

/// The result of everything in the program.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    #[error(transparent)]
    Rag(#[from] gritlm_rag::Error),
    #[error(transparent)]
    Serve(#[from] gritlm_serve::Error),
    #[error(transparent)]
    Train(#[from] gritlm_train::Error),
    #[error(transparent)]
    Bench(#[from] gritlm_bench::Error),
    /// A flag has a value that means nothing.
    #[error("{option}: expected {expected}, found {found}")]
    Option { option: &'static str, expected: String, found: String },
    #[error("{what}: {problem}")]
    Input { what: String, problem: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// Ctrl-C was pressed; every library's callback can end with it.
#[derive(Debug)]
pub(crate) struct Interrupt;

impl From<Interrupt> for Error {
    fn from(_: Interrupt) -> Self {
        Self::Interrupted
    }
}

impl From<Interrupt> for gritlm::Error {
    fn from(_: Interrupt) -> Self {
        Self::Cancelled
    }
}

impl From<Interrupt> for gritlm_rag::Error {
    fn from(interrupt: Interrupt) -> Self {
        gritlm::Error::from(interrupt).into()
    }
}

impl From<Interrupt> for gritlm_bench::Error {
    fn from(interrupt: Interrupt) -> Self {
        gritlm::Error::from(interrupt).into()
    }
}

impl Error {
    /// [`Error::Io`] of `path`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Returns the engine's error, if it is one.
    fn engine(&self) -> Option<&gritlm::Error> {
        match self {
            Self::Engine(error) => Some(error),
            Self::Rag(error) => error.engine(),
            Self::Serve(error) => error.engine(),
            Self::Bench(error) => error.engine(),
            Self::Train(gritlm_train::Error::Engine(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns whether Ctrl-C is the reason. The libraries call it a cancellation.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, Self::Interrupted) || matches!(self.engine(), Some(gritlm::Error::Cancelled))
    }

    /// Returns the field whose value means nothing, if that is the reason.
    fn field(&self) -> Option<&'static str> {
        match (self, self.engine()) {
            (Self::Train(gritlm_train::Error::Option { option, .. }), _) => Some(option),
            (_, Some(gritlm::Error::Option { option, .. })) => Some(option),
            _ => None,
        }
    }

    /// Returns whether the command was given wrongly.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Option { .. }) || self.field().is_some()
    }

    /// Returns whether the reader of stdout has closed it.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Returns the message with the flags of the fields that it names.
    pub(crate) fn message(&self) -> String {
        let message = self.to_string();
        match self.field() {
            Some(field) => flag(field) + message.strip_prefix(field).unwrap_or(&message),
            None => flags(&message),
        }
    }
}

/// Returns the flag of a field: `--kv-tokens` of `kv_tokens`.
fn flag(field: &str) -> String {
    let field = match field {
        "pairs" => "batch",
        "generative" => "generative_batch",
        "group" => "group_size",
        field => field,
    };
    format!("--{}", field.replace('_', "-"))
}

/// Replaces the fields in backquotes by their flags. What is quoted otherwise, such as a file's
/// name, stays as it is, and so does a message whose backquotes are not pairs.
fn flags(message: &str) -> String {
    let parts: Vec<&str> = message.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return message.into();
    }
    let is_field =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let render = |(i, part): (usize, &str)| match i % 2 {
        0 => part.into(),
        _ if is_field(part) => flag(part),
        _ => format!("`{part}`"),
    };
    parts.into_iter().enumerate().map(render).collect()
}
