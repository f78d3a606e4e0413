//! GRIT training: one model learns to embed and to generate.

mod error;

pub use error::{Error, Result};
