//! Errors of the crates as Python's exceptions.

use gritlm::Error;
use gritlm::schedule::Refused;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::{PyErr, create_exception};

create_exception!(
    gritlm_rs,
    GritLMError,
    PyRuntimeError,
    "The model cannot be opened, the device failed, or a file cannot be read or written."
);

/// What is wrong with a value that the caller gave is a `ValueError`, all else a `GritLMError`.
pub(crate) fn raise(error: Error) -> PyErr {
    match error {
        Error::Option { .. }
        | Error::Input { .. }
        | Error::EmptyText { .. }
        | Error::LongInstruction { .. }
        | Error::LongPrompt { .. }
        | Error::LongText { .. }
        | Error::NoHead => PyValueError::new_err(error.to_string()),
        _ => GritLMError::new_err(error.to_string()),
    }
}

/// As [`raise`], for what the scheduler refuses.
pub(crate) fn refused(why: Refused) -> PyErr {
    match why {
        Refused::Invalid(error) => raise(error),
        Refused::TooLong { .. } | Refused::NeverFits { .. } => {
            PyValueError::new_err(why.to_string())
        }
        _ => GritLMError::new_err(why.to_string()),
    }
}

/// As [`raise`], for document stores.
pub(crate) fn raise_rag(error: gritlm_rag::Error) -> PyErr {
    match error {
        gritlm_rag::Error::Engine(error) => raise(error),
        gritlm_rag::Error::Refused(why) => refused(why),
        other => GritLMError::new_err(other.to_string()),
    }
}

/// An option's value that is none of those that there are.
pub(crate) fn unknown(option: &'static str, expected: &str, found: &str) -> PyErr {
    raise(Error::Option { option, expected: expected.into(), found: found.into() })
}

/// A request whose events end without a last one: the scheduler's thread has panicked.
pub(crate) fn ended() -> PyErr {
    GritLMError::new_err("the engine has ended, as stderr says; open the model again")
}
