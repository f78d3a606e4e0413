//! The native half of the Python package `gritlm_rs`.
//!
//! It hands the engine's calls over to Python and adds no behaviour of its own: the package's Python
//! files beside it have the names, defaults and conventions that people of Python expect. Every call
//! that computes gives up the GIL while it does, and comes back every 100 ms so that Ctrl-C and
//! progress bars work.

mod cache;
mod embed;
mod engine;
mod error;
mod job;
mod run;
mod sampling;
mod store;
mod train;

/// The module `gritlm_rs._native`.
#[pyo3::pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use super::cache::Cache;
    #[pymodule_export]
    use super::engine::{Engine, devices};
    #[pymodule_export]
    use super::error::GritLMError;
    #[pymodule_export]
    use super::job::{Job, Piece};
    #[pymodule_export]
    use super::store::{Store, serve_parser};
    #[pymodule_export]
    use super::train::{merge, train};
}
