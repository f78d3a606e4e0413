//! GRIT training: one model learns to embed and to generate.

mod data;
mod encode;
mod error;

pub use data::{Data, Generative, Kind, MAX_LINE, Pair, Passage, Place, Spoken};
pub use encode::{Answer, Encoder, Lengths, Text};
pub use error::{Error, Result};
