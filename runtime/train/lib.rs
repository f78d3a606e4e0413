//! GRIT training: one model learns to embed and to generate.

mod error;
mod pack;
mod parameters;
mod pass;

pub use error::{Error, Result};
