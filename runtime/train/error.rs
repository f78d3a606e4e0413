//! Defines the errors of training and says what to do about each.

use crate::{Batch, Place};
use std::path::PathBuf;

/// Result of the fallible functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of training. Its message is one line that names the file or field, what was expected
/// and what was found. Field names in advice are in backquotes, as in the engine's errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be read, a text cannot be tokenized, or the device failed. The engine's
    /// error says which, and its variants say what to do.
    #[error(transparent)]
    Engine(#[from] gritlm::Error),
    /// A line of the training data is invalid. Correct or remove it; lines count from 1.
    #[error("{}:{line}: {problem}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The line's number in the file, from 1.
        line: usize,
        /// What was expected and what was found.
        problem: String,
    },
    /// A file of training data has no samples, or a folder no files. Name another, or write some;
    /// [`Data`](crate::Data) describes the formats.
    #[error("{}: {problem}", path.display())]
    NoData {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// A file changed or became shorter while it was in use. Leave the training data as it is
    /// until training is done, then start again; a run with the same output resumes.
    #[error("{}: expected the file as it was opened; found it changed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written. Look at its permissions and at the space on its disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The output folder cannot take this run. Name another folder, or give the options of the run
    /// that began there.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// The run does not fit into the memory of the device. Do what the message advises, or train
    /// fewer parameters.
    #[error("{plan}: it does not fit; {advice}")]
    NoRoom {
        /// What the run would take.
        plan: crate::Plan,
        /// What would fit.
        advice: String,
    },
    /// A loss or a gradient is not a number, or infinite. Lower the learning rate, or look at the
    /// samples of the batch that is named.
    #[error("{what}: expected a finite number, found {found}")]
    NotFinite {
        /// Which number it is, and of which batch.
        what: String,
        /// Its value.
        found: f64,
    },
    /// A gradient is far longer than those before it. Look at the samples of the batch that is named,
    /// lower the learning rate, or raise the limit; a run with the same output goes on from its last
    /// state.
    #[error(
        "{what}: expected about {usual:.3} as in the steps before, found {found:.3}; `max_spike` \
         says how much is too much"
    )]
    Spike {
        /// Which number it is, and of which batch.
        what: String,
        /// Its value.
        found: f64,
        /// Its median in the steps before.
        usual: f64,
    },
    /// An option has an invalid value. Choose one that the message allows.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Name of the field.
        option: &'static str,
        /// The expected value.
        expected: String,
        /// The value found.
        found: String,
    },
}

impl Error {
    /// Returns a closure for `map_err` that makes an [`Error::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl Error {
    /// Names the step and the samples of a batch whose numbers are not finite, or too large.
    pub(crate) fn in_batch(mut self, step: usize, batch: &Batch) -> Self {
        let (Self::NotFinite { what, .. } | Self::Spike { what, .. }) = &mut self else {
            return self;
        };
        let pairs = batch.pairs.iter().map(|group| &group.place);
        let mut places = pairs.chain(batch.texts.iter().map(|text| &text.place));
        let first: Vec<String> = places.by_ref().take(8).map(Place::to_string).collect();
        let more = match places.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        *what += &format!(" of step {step} ({}{more})", first.join(", "));
        self
    }
}

impl From<gritlm_model::Error> for Error {
    fn from(error: gritlm_model::Error) -> Self {
        Self::Engine(error.into())
    }
}

impl From<gritlm_model::ops::DeviceError> for Error {
    fn from(error: gritlm_model::ops::DeviceError) -> Self {
        Self::Engine(error.into())
    }
}
