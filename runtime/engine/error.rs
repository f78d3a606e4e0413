//! Everything that can go wrong in the engine, and what to do about it.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages are one line and name the file or field, what was expected and what was
/// found. Names of fields in advice are in backquotes, as in ``raise `kv_tokens` ``; a program that
/// has flags for them can show those instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint is not as it should be. Compare the named file with its publisher's.
    #[error(transparent)]
    Model(#[from] gritlm_model::Error),
    /// The device refused. Choose a smaller batch, another device, or close what else uses it.
    #[error(transparent)]
    Device(#[from] gritlm_model::ops::DeviceError),
    /// The device asked for is not there. [`devices`](crate::devices) lists those that are.
    #[error("device {asked}: {problem}")]
    NoDevice {
        /// What was asked for.
        asked: String,
        /// Why it cannot be had.
        problem: String,
    },
    /// No such model: neither a folder, nor a Hugging Face id that could be had, nor `demo`.
    #[error("model {model}: {problem}")]
    NoModel {
        /// What was asked for.
        model: String,
        /// What was tried and what came of it.
        problem: String,
    },
    /// The KV pages cannot hold the request. Ask for less, or open the engine with more.
    #[error(
        "the KV cache has room for {free} of {needed} more tokens (of {total} in all); shorten the \
         text or raise `kv_tokens`"
    )]
    NoRoom {
        /// Tokens that were to be stored.
        needed: usize,
        /// Tokens that would fit.
        free: usize,
        /// Tokens of the whole pool.
        total: usize,
    },
    /// The checkpoint was saved from the bare model, without what makes logits of hidden states. It
    /// embeds; for the rest take the causal model's.
    #[error(
        "the checkpoint has no lm_head.weight, so it can only embed; to generate or rank, use one \
         of the whole model (MistralForCausalLM or MixtralForCausalLM)"
    )]
    NoHead,
    /// The text leaves nothing to pool once the instruction is left out.
    #[error("text {index} (counted from 0): nothing to pool: it is empty")]
    EmptyText {
        /// Which text, from 0.
        index: usize,
    },
    /// The model computed something that is no number. Its weights hold NaN or infinity, or its
    /// config is another model's.
    #[error("{what}: the result is not finite: the weights hold NaN or infinity, or overflow")]
    NotFinite {
        /// What was being computed.
        what: String,
    },
    /// The instruction fills the whole length, so no token of the text is left. Shorten it or
    /// raise `max_length`.
    #[error("the instruction has {tokens} tokens; with `max_length` {limit} none is left for text")]
    LongInstruction {
        /// Its tokens, `<s>` and tags counted.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// A prompt is longer than the model's positions.
    #[error("the prompt has {tokens} tokens; the model has {limit} positions")]
    LongPrompt {
        /// Its tokens.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        limit: usize,
    },
    /// A text has more bytes than the model's positions can have tokens for; it is not even
    /// tokenized. Shorten it.
    #[error(
        "the {what} has {bytes} bytes, more than the model's {positions} positions can hold; \
         expected at most {limit}"
    )]
    LongText {
        /// What it is: a prompt, an instruction.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// Bytes that it may have.
        limit: usize,
        /// The model's `max_position_embeddings`.
        positions: usize,
    },
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
    /// An input is not what it should be: a line that is no JSON, a cache of another model.
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
    /// The request's deadline came before its end. Allow more time, or ask when less waits.
    #[error("the deadline passed before the request was done")]
    Expired,
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
}
