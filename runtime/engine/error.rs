//! Defines the errors of the engine and says what to do about each.

use std::path::PathBuf;

/// Result of the fallible functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine. Its message is one line that names the file or field, what was
/// expected and what was found. Field names in advice are in backquotes, as in
/// ``raise `kv_tokens` ``; a program that has flags for them can show those instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the checkpoint is missing or invalid, or a text cannot be tokenized. Compare a
    /// named file with its publisher's.
    #[error(transparent)]
    Model(#[from] gritlm_model::Error),
    /// The device reported an error. Choose a smaller batch or another device, or close other
    /// programs that use it.
    #[error(transparent)]
    Device(#[from] gritlm_model::ops::DeviceError),
    /// The requested device does not exist or cannot be opened. [`devices`](crate::devices) lists
    /// the devices of this machine.
    #[error("device {asked}: {problem}")]
    NoDevice {
        /// The requested device.
        asked: String,
        /// Why it cannot be used.
        problem: String,
    },
    /// The model was not found: it is neither a folder, nor a Hugging Face id that is cached or
    /// can be downloaded, nor `demo`.
    #[error("model {model}: {problem}")]
    NoModel {
        /// The requested model.
        model: String,
        /// What was tried, and what the result was.
        problem: String,
    },
    /// The free KV pages cannot hold the request. Shorten it, or open the engine with more
    /// `kv_tokens`.
    #[error(
        "the KV cache has room for {free} of {needed} more tokens (of {total} in all); shorten the \
         text or raise `kv_tokens`"
    )]
    NoRoom {
        /// Number of tokens to be stored.
        needed: usize,
        /// Number of tokens that would fit.
        free: usize,
        /// Number of tokens that all pages together hold.
        total: usize,
    },
    /// The checkpoint was saved from the bare model, without the head that computes logits. It
    /// can only embed; to generate or rank, use a checkpoint of the causal model.
    #[error(
        "the checkpoint has no lm_head.weight, so it can only embed; to generate or rank, use one \
         of the whole model (MistralForCausalLM or MixtralForCausalLM)"
    )]
    NoHead,
    /// The text leaves nothing to pool once the instruction is left out.
    #[error("text {index} (counted from 0): nothing to pool: it is empty")]
    EmptyText {
        /// Index of the text, from 0.
        index: usize,
    },
    /// The model computed NaN or infinity. Its weights contain such values or overflow, or its
    /// config belongs to another model.
    #[error("{what}: the result is not finite: the weights hold NaN or infinity, or overflow")]
    NotFinite {
        /// What was being computed.
        what: String,
    },
    /// The instruction fills the whole length, so no token of the text is left. Shorten it or
    /// raise `max_length`.
    #[error("the instruction has {tokens} tokens; with `max_length` {limit} none is left for text")]
    LongInstruction {
        /// Tokens of the instruction, `<s>` and tags included.
        tokens: usize,
        /// The value of `max_length`.
        limit: usize,
    },
    /// A prompt leaves no position of the model for an answer, or a text that must not be
    /// truncated has more tokens than the model has positions.
    #[error("the prompt has {tokens} tokens; the model has {limit} positions")]
    LongPrompt {
        /// Tokens of the prompt or text.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        limit: usize,
    },
    /// A text has so many bytes that its tokens cannot fit the model's positions, so it was
    /// refused before tokenization. Shorten it.
    #[error(
        "the {what} has {bytes} bytes, more than the model's {positions} positions can hold; \
         expected at most {limit}"
    )]
    LongText {
        /// What the text is: a prompt, an instruction.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The maximum size in bytes.
        limit: usize,
        /// The model's `max_position_embeddings`.
        positions: usize,
    },
    /// An option has an invalid value.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Name of the field.
        option: &'static str,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
    /// An input is invalid, for example a line that is not JSON, or a cache of another model.
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
        /// The system's error.
        source: std::io::Error,
    },
    /// The request's deadline passed before it was done. Allow more time, or send it when fewer
    /// requests are waiting.
    #[error("the deadline passed before the request was done")]
    Expired,
    /// Nobody waits for the result any more: a callback returned this error, or the client has
    /// disconnected.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Returns a closure for `map_err` that makes an [`Error::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
